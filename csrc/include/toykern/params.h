// The contract between Python and the kernels: plain structs of pointers and numbers, checked by Python's gate.
//
// Shapes stand behind each pointer; every array is contiguous in the order of its shape unless a stride is given.
// K = n_models, n = n_features, m = n_hidden, T = steps of this call.
#pragma once
#include <cstddef>
#include <cstdint>

#include "toykern/network.h"

namespace toykern {

constexpr int kStreamVersion = 1;

enum class Magnitude : int32_t {
    kUniform = 0,
    kSymmetric = 1,
    kHalfNormal = 2,
    kConstant = 3,
    kExponential = 4,
    kLognormal = 5
};
constexpr const char* kMagnitudeNames[] = {"uniform",  "symmetric",   "half_normal",
                                           "constant", "exponential", "lognormal"};
enum class UnitKind : uint8_t { kSingle = 0, kCorrelated = 1, kExclusive = 2 };
// How the features of a sample depend on each other (docs/data_stream.md §2 and §10).
enum class Joint : int32_t { kUnits = 0, kSubset = 1, kHierarchy = 2, kCopula = 3 };
constexpr const char* kJointNames[] = {"units", "subset", "hierarchy", "copula"};
enum class Purpose : uint32_t { kTraining = 0, kEvaluation = 1 };
constexpr const char* kPurposeNames[] = {"training", "evaluation"};

// Whether a call is to end before its work is done; kernels ask between batches. Without `asked` it never is.
struct Stop {
    bool (*asked)(void* context);
    void* context;
    bool now() const { return asked && asked(context); }
};

// A feature distribution (docs/data_stream.md §2). Shared by all models but for the probabilities.
struct Distribution {
    int64_t n_features;
    int64_t n_units;
    const int64_t* unit_start;    // [n_units + 1] offsets into unit_member
    const uint32_t* unit_member;  // [n_features] features by unit, ordered
    const uint8_t* unit_kind;     // [n_units] UnitKind
    const double* probability;    // [K | 1, n]
    int64_t probability_stride;   // n, or 0 when one row serves all models
    int32_t magnitude;            // Magnitude
    float noise;                  // standard deviation of the Gaussian input noise; 0 = none
    int32_t joint;     // Joint; all units are single features but with kUnits. The CPU's kernels alone know others
    int64_t n_active;  // kSubset: active features of every sample
    const uint32_t* parent;       // kHierarchy: [n] the parent of each feature; n where it has none
    const uint32_t* order;        // kHierarchy: [n] the features, parents before their children
    int64_t n_factors;            // kCopula: r
    const float* loading;         // kCopula: [n, r]
    const uint32_t* loading_end;  // kCopula: [n] a feature's loadings from this one on are 0
    const float* unique;          // kCopula: [n] of each feature's own normal; null: none has one
    const float* threshold;       // kCopula: [K | 1, n] strided as the probability
};

// A finite dataset, which may stand in place of the stream: T rows of each model, dense or as entries.
struct FiniteData {
    int64_t rows;              // T; 0: there is none, and the stream is drawn
    const int64_t* samples;    // [K] how many of its rows a model has, from 1 to T, the first ones; null: all
    const float* input;        // [K | 1, T, n] dense, or null: as entries
    const int64_t* row_start;  // [(K | 1) · T + 1] where a row's entries begin, all models' rows one after another
    const int32_t* feature;    // [entries] below n
    const float* value;        // [entries]
    bool per_model;            // K of them; else one that all models share
    const float* target;       // [K | 1, T, n_outputs] what the target is made from; null: the input, or the label
    bool target_per_model;
    const int32_t* label;  // [K | 1, T] below n_outputs: a target of 1 there and of 0 elsewhere; null: none
    bool label_per_model;
    bool full;  // a step sees all of a model's rows, in order; batch_size is then T. Else by shuffle.h
};

// T of targets T x (Target::kProjection).
struct TargetProjection {
    const float* matrix;  // [K | 1, n_outputs, n]; null: none
    bool per_model;
};

// Draw one batch per model: the oracle's view of what training sees.
struct SampleParams {
    Distribution data;
    int64_t n_models;
    int64_t batch_size;
    const int64_t* seed;  // [K | 1]
    int64_t seed_stride;  // 1, or 0
    uint32_t step;
    uint32_t purpose;  // Purpose
    float* clean;      // [K, batch, n] without noise, or null
    float* noisy;      // [K, batch, n] with noise, or null
    Stop stop;         // the CPU's kernels ask it
};

enum class Optimizer : int32_t { kSGD = 0, kAdam = 1, kAdamW = 2, kLAMB = 3, kSGLD = 4 };
constexpr const char* kOptimizerNames[] = {"SGD", "Adam", "AdamW", "LAMB", "SGLD"};
// What each keeps of a parameter, by PyTorch's names: its list of states, in the order of TensorView::state.
constexpr int kMostStates = 2;
constexpr const char* kStateNames[][kMostStates] = {{"momentum_buffer", nullptr},
                                                    {"exp_avg", "exp_avg_sq"},
                                                    {"exp_avg", "exp_avg_sq"},
                                                    {"exp_avg", "exp_avg_sq"},
                                                    {"initial", nullptr}};

// A model's part of a tensor: a matrix (a bias has one row), and the elements of the tensors that stand before it in
// the table. common/tensors.h has those of a network.
struct TensorShape {
    int64_t rows, columns, offset;
};
// A tensor of all models as the caller holds it. Kernels find it by its role, and its states in the order above.
struct TensorView {
    float* data;                // [K, rows, columns]; null: the network has none
    float* state[kMostStates];  // [K, rows, columns] the optimiser's; null where it keeps none
    TensorShape shape;
    bool frozen;  // it and its states stay as they are
    bool shared;  // of fixed tensors: [rows, columns], one for all models
    // Of its updates, in training.
    const double* lr_scale;            // [K] a factor of the learning rate; null: 1
    const double* weight_decay_scale;  // [K] a factor of the weight decay; null: 1
    const double* shrink;  // [K] steps before shrink_until end with a multiplication by 1 - shrink · lr; null: none do
    bool unit_norm;  // steps end with each hidden unit's vector (rows of an encoder, columns of a decoder) at norm 1
};

// A stretch of training, steps [first_step, first_step + steps) of K models, in place.
struct TrainParams {
    Network network;
    Distribution data;
    FiniteData finite;
    int64_t n_models, batch_size;
    const int64_t* seed;        // [K]
    const float* importance;    // [K | 1, n_outputs]
    int64_t importance_stride;  // n_outputs, or 0
    TargetProjection projection;
    const double* l1;  // [K] the weight of the codes' L1 norm, a mean over the batch; null: 0

    TensorView tensors[kRoles];  // by Role
    // With network.sparse. Where there is no connection, weight and state are 0 when the call begins, and stay so.
    const uint8_t* connected;  // [K, m, n] 1 where a connection exists, else 0
    float* gradient;  // [K, m, n] written by the last step: its gradient, where there is no connection too; null: not
                      // wanted. That of a model that has diverged is left as it was

    int32_t optimizer;         // Optimizer
    double beta1, beta2, eps;  // SGD: beta1 = momentum, beta2 = dampening
    bool nesterov;
    double norm_clamp;                 // LAMB: the most that the norm of a tensor counts for
    bool debias_step, debias_moments;  // LAMB: of the learning rate, or of the moments by themselves; or neither
    const double* nbeta;               // SGLD: [K] what the gradient is multiplied by
    const double* localization;        // SGLD: [K] γ; null: 0, and there is no state
    const double* lr;                  // [K]
    const double* weight_decay;        // [K]
    const double* clip_norm;  // [K] the most that the norm of a model's gradient may be, before the step; null: any
    int64_t shrink_until;     // of TensorView::shrink
    bool remove_parallel;     // of TensorView::unit_norm: gradients lose what is parallel to the vector

    int64_t first_step, steps;
    const double* lr_factor;    // [T] the schedule
    const double* correction1;  // [T] 1 - beta1^(step + 1) (Adam, AdamW); made by train()
    const double* correction2;  // [T] sqrt(1 - beta2^(step + 1))
    int64_t record_every;       // steps to a record
    float* loss_records;        // [K, n_records] mean loss of each record; null: not wanted
    int64_t n_records;
    int64_t total_steps;  // of the whole run: the last record may be shorter than record_every
    double* loss_carry;  // [K] sum of the losses of the record under way; of a last one that is shorter, at the end too
    int64_t* diverged_at;  // [K] step whose batch loss was not finite, or -1; such a model is left alone

    const int64_t* order;  // [K] the order in which models are taken, costliest first; null: 0 … K-1
    int threads;
    int64_t together;  // models that a worker takes at once; made by train()
};

// Mean loss over fresh samples of the evaluation stream, without training.
struct EvaluateParams {
    Network network;
    Distribution data;
    FiniteData finite;
    int64_t n_models, batch_size;
    int64_t batches;          // steps of the evaluation stream
    const int64_t* seed;      // [K]
    const float* importance;  // [K | 1, n_outputs]
    int64_t importance_stride;
    TargetProjection projection;
    const double* l1;            // [K], or null
    TensorView tensors[kRoles];  // by Role; only read, and without states
    double* loss;                // [K]
    int threads;
    Stop stop;  // the CPU's kernels ask it
};

}  // namespace toykern
