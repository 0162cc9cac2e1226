// The seam to the autoencoder layer's CUDA kernels. All of it exists in every build; without CUDA kernels the calls
// throw CudaNotBuilt.
//
// LayerParams as in layer.h with device addresses and these differences: T is float or bfloat16 (LayerLaunch::bf16;
// sums are float either way), importance and l1 are float, hidden_bias is the caller's own (centering is the kernels'
// work), and the loss is float. Calls are asynchronous on the stream that they are given, allocate nothing and wait for
// nothing: CUDA graphs can capture them.
#pragma once
#include "toykern/cuda_devices.h"
#include "toykern/layer.h"

namespace toykern {

struct LayerLaunch {
    int device = 0;
    void* stream = nullptr;  // cudaStream_t
    bool bf16 = false;
    bool centered = false;  // the encoder sees x − bias
    int64_t entries = 0;    // elements of feature and value: nothing beyond is read, whatever row_start says
    float* loss = nullptr;  // [K]
    float* partial = nullptr;
    int64_t first_model = 0, models = 0;  // the stacked kernel: a group; `partial` is [models][stacked_partial_floats]
};

// ---- many small models, each within one block's shared memory (cuda/layer/stacked.cuh) ----

// `shared_limit`: of the device (cuda_shared_limit).
// `given`: with a tensor of targets or output gradients; `direct`: with a gradient to x or to the target.
bool layer_is_stacked(int64_t n_features, int64_t n_hidden, bool tied, bool given, bool direct,
                      int32_t hidden_activation, int64_t shared_limit);
int64_t stacked_partial_floats(const LayerParams& params);  // of one model; 0 where a model's batch is one block's work

// ---- large models: what happens between the products (cuda/layer/large.cuh) ----

// A tile of the work: some models, rows (samples) and features. Scratch is float unless it says T.
struct LayerTileParams {
    LayerParams p;
    bool bf16;
    int64_t entries;
    int64_t first_model, models, first_row, rows, first_feature, features;
    float* z;       // [models][rows][features] products without bias; null (backward from a saved output): not needed
    void* dz;       // T [models][rows][features]; is z itself where T is float and both are wanted
    float* codes;   // [models][rows][m] a without its bias, becomes h; in the backward half, h
    float* slopes;  // [models][rows][m] of the codes; null where h tells them
    void* stored_codes;  // T of h, where T is not float; else null
    float* code_grad;    // [models][rows][m] dh, becomes da
    void* stored_code_grad;
    const float* code_bias;        // [K][m], centering included; null: none
    const void* encoder_rows;      // T [models][features][m]: the encoder's columns of this tile
    const int64_t* by_feature;     // [entries] entries in the order of (model,) feature, then sample
    const int64_t* feature_start;  // [(K | 1) · n + 1] into by_feature
    const int64_t* entry_row;      // [entries] row of an entry, counted over models
    bool add;                      // encoder_grad holds a part already
    float* column_sums;            // [models][row blocks][features or m]
    float* loss_sums;              // [models][loss_blocks]
    int32_t* active;               // [models][row blocks][column blocks] outputs with a gradient; null: not wanted
};

// Kernels of a tile, by number.
enum class LayerKernel : int32_t {
    kOutput = 0,          // z → y, or loss, dz, its column sums, and what goes straight to x or target
    kCodes = 1,           // a → h; Σ|h| by row into loss_sums
    kCodeGradient = 2,    // dh → da and its column sums
    kEncodeEntries = 3,   // a += the tile's entries
    kEncoderEntries = 4,  // encoder_grad from the entries of the tile's features
    kValueGradient = 5,   // value_grad += the encoder's part
    kActiveCodes = 6,     // dh += dz · encoder_rows, from the outputs that have a gradient alone
    kActiveDecoder = 7,   // decoder's gradient dzᵀ h, from the outputs that have a gradient alone
};

constexpr int64_t kTileRows = 32, kTileColumns = 256;  // of a block of kOutput and kCodeGradient

// to[model][first + i] += Σ_blocks from[model][block][i], in order, in float; and to[model] += scale[model]·factor·Σ in
// double.
struct LayerSums {
    const float* from;
    int64_t models, blocks, count;
    float* to;
    int64_t to_stride, first;
    const float* scale;  // one for each model, or null
    int64_t scale_stride;
    double factor;
    bool whole;  // blocks·count numbers make one sum a model
};

namespace cuda {
void layer_stacked(const LayerParams& params, const LayerLaunch& launch);
void layer_tile(const LayerTileParams& params, int kernel, int device, void* stream);
void layer_sums(const LayerSums& sums, int device, void* stream);
}  // namespace cuda

// The device's source run on the host, for tests.
namespace host {
void layer_stacked(const LayerParams& params, const LayerLaunch& launch, bool descending);
void layer_tile(const LayerTileParams& params, int kernel, bool descending);
void layer_sums(const LayerSums& sums, bool descending);
}  // namespace host

}  // namespace toykern
