// The contract of the autoencoder layer: forward, loss and gradients of K stacked models on one given batch.
//
// K = n_models, B = batch, n = n_features, m = n_hidden. T is float or double (`is_double`). Arrays are contiguous in
// the order of their shape; a stride is the distance between models in elements, 0 where one serves all.
#pragma once
#include <cstddef>
#include <cstdint>

#include "toykern/network.h"

namespace toykern {

enum class LayerTask : int32_t {
    kForward = 0,   // output
    kLoss = 1,      // loss and, where wanted, the gradients of the sum of the losses
    kBackward = 2,  // gradients from output_grad
};

struct LayerParams {
    int32_t task;  // LayerTask
    bool is_double;
    bool tied;                                     // decoder = encoderᵀ
    int32_t hidden_activation, output_activation;  // Activation
    double hidden_option, output_option;           // what the activation takes, if it takes something
    int32_t loss_function;                         // Loss
    int32_t target;                                // Target
    int64_t top_k;                                 // hidden units kept by kTopK
    int64_t n_models, batch, n_features, n_hidden;
    int threads;

    const void* encoder;      // T [K, m, n]
    const void* decoder;      // T [K, n, m]; null when tied
    const void* bias;         // T [K, n]; null: none
    const void* hidden_bias;  // T [K, m]; null: none

    // The input: dense, or active entries by sample (features rise within a sample).
    const void* x;  // T [K | 1, B, n]; null: entries
    int64_t x_stride;
    const int64_t* row_start;  // [(K | 1) · B + 1] offsets into feature and value
    const int32_t* feature;
    const void* value;          // T
    int64_t row_stride;         // B, or 0 where all models share the entries
    int64_t value_grad_stride;  // entries, where all models share them; else 0

    const void* target_values;  // T [K | 1, B, n] with Target::kTensor
    int64_t target_stride;
    const void* importance;  // T [K | 1, n]
    int64_t importance_stride;
    const void* l1;  // T [K | 1] weight of Σ |h| in the loss of a sample; null: none
    int64_t l1_stride;
    double loss_scale;  // of the sum of the losses of outputs: 1 / (B n) or 1 / B
    double l1_scale;    // of the sum of |h|: 1 / B

    void* output;  // T [K, B, n] (kForward); the saved output (kBackward, null where it must be computed again)
    const void* output_grad;  // T [K, B, n] (kBackward)
    void* loss;               // T [K] (kLoss)

    // Gradients, each null where not wanted.
    void* encoder_grad;      // T [K, m, n]; of both uses of the weights when tied
    void* decoder_grad;      // T [K, n, m]
    void* bias_grad;         // T [K, n]
    void* hidden_bias_grad;  // T [K, m]
    void* x_grad;            // T [K, B, n], of each model apart also where they share x
    void* value_grad;        // T [entries], or [K, entries] where all models share them
    void* target_grad;       // T [K, B, n] (kTensor)

    int64_t* active;  // [K] outputs with a slope other than 0 (for reports); null: not wanted
};

}  // namespace toykern
