// What one model is and what its loss is: options, not kernels. The trainer, the layer and both backends read the same
// numbers. Python knows the names alone, which stand beside the numbers here (`_native.numbers`).
//
// A new activation is a number and a name here, a struct in common/activation.h and a row of the Python table; a new
// loss the same in common/loss.h (docs/adding_an_option.md).
#pragma once
#include <cstdint>

namespace toykern {

enum class Activation : int32_t {
    kNone = 0,
    kRelu = 1,
    kTopK = 2,       // the largest codes of a sample stay: of codes alone, and of the layer alone
    kGelu = 3,       // the exact one, z Φ(z)
    kLeakyRelu = 4,  // its option: the slope below 0
    kSoftplus = 5,
    kSquare = 6,  // z²
    kXExp = 7,    // z e^z
    kSolu = 8,    // z softmax(z) over a sample's codes: of codes alone, and not elementwise
};
constexpr const char* kActivationNames[] = {"none",     "relu",   "topk",  "gelu", "leaky_relu",
                                            "softplus", "square", "x_exp", "solu"};

// Cross-entropy is not elementwise: the softmax is over a sample's outputs, or over all outputs of the batch together.
enum class Loss : int32_t { kSquaredError = 0, kCrossEntropy = 1, kBatchCrossEntropy = 2 };
constexpr const char* kLossNames[] = {"squared_error", "cross_entropy", "batch_cross_entropy"};

// x, |x|, what the layer is given, or T x with a matrix T (TargetProjection).
enum class Target : int32_t { kInput = 0, kMagnitude = 1, kTensor = 2, kProjection = 3 };
constexpr const char* kTargetNames[] = {"identity", "abs", "tensor", "projection"};

// A mean over the batch and all features, or over the batch of a sum over features.
enum class Reduction : int32_t { kMean = 0, kSum = 1 };
constexpr const char* kReductionNames[] = {"mean", "sum"};

// What a tensor is to the mathematics. The last two are fixed: nothing trains them.
enum class Role : int32_t { kEncoder = 0, kDecoder = 1, kBias = 2, kHiddenBias = 3, kEmbedding = 4, kUnembedding = 5 };
constexpr const char* kRoleNames[] = {"encoder", "decoder", "bias", "hidden_bias", "embedding", "unembedding"};
constexpr int32_t kRoles = sizeof(kRoleNames) / sizeof(*kRoleNames);

// y = g(Q (e + D f(E (e − b) + c)) + b) with e = P x: P and Q where there are some, e in the sum where it is residual, −b
// where it is centered.
struct Network {
    int64_t n_features, n_hidden;
    int64_t n_outputs;                                // n_features, unless the decoder is given another length
    int64_t n_embedding;                              // d, the length of e where there is a P; else 0
    bool unembedded;                                  // there is a Q; then there is a P
    bool residual;                                    // D h and e have one length
    bool centered;                                    // so have b and e, and there is no Q
    bool has_hidden_bias;                             // c
    bool tied;                                        // decoder = encoderᵀ
    int32_t hidden_activation, output_activation;     // Activation
    double hidden_option = 0.0, output_option = 0.0;  // what the activation takes, if it takes something
    bool has_bias;                                    // of the outputs
    int32_t loss;                                     // Loss
    int32_t target;                                   // Target
    int32_t reduction;                                // Reduction
    bool sparse;  // not all connections exist (TrainParams::connected). Tied networks
};

}  // namespace toykern
