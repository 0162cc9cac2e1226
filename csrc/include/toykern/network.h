// What one model is and what its loss is: options, not kernels. The trainer, the layer and both backends read the same
// numbers.
//
// A new activation is a number here, a struct in common/activation.h and a row of the Python table
// (docs/adding_an_option.md).
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
};
constexpr int32_t kActivations = 6;

enum class Target : int32_t { kInput = 0, kMagnitude = 1, kTensor = 2 };  // x, |x|, or what the layer is given

struct Network {
    int64_t n_features, n_hidden;
    bool tied;                                        // decoder = encoderᵀ
    int32_t hidden_activation, output_activation;     // Activation
    double hidden_option = 0.0, output_option = 0.0;  // what the activation takes, if it takes something
    bool has_bias;                                    // of the outputs
    int32_t target;                                   // Target
    bool loss_sum;                                    // sum over features, mean over batch; else mean over both
    bool sparse;  // not all connections exist (TrainParams::connected). Tied networks
};

}  // namespace toykern
