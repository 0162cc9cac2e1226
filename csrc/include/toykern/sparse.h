// The contract of the sparse layers' kernels: which connections exist, and what is computed over them.
//
// Shapes stand behind each pointer; arrays are contiguous in the order of their shapes unless a stride is given.
// K = n_models, B = batch_size, C = capacity: the slots set aside for one model. Model k owns slots [k·C, (k+1)·C);
// those that no row claims (after pruning) stand at the end of its range, and their values and gradients are zero.
#pragma once
#include <cstddef>
#include <cstdint>

namespace toykern {

constexpr int kPanelSamples = 64;  // samples that a panel holds side by side

// What is stored; float32 and bfloat16 are computed in float32, float64 in float64.
enum class Scalar : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat64 = 2 };

// Slots by row (CSR) and, for what runs over columns, the same slots by column.
struct SparseTopology {
    int64_t n_models, out_features, in_features, capacity;
    const int64_t* row_start;     // [K, out + 1] slots of each row, counted from the model's first
    const int32_t* column;        // [K · C] ascending within a row
    const int64_t* column_start;  // [K, in + 1] places of each column, likewise
    const int32_t* row;           // [K · C] by place: the connection's row, ascending within a column
    const int32_t* slot;          // [K · C] by place: the connection's slot, counted from the model's first
};

// y = act(x Wᵀ + bias) and its gradients, for K layers of one shape.
struct SparseLinearParams {
    SparseTopology topology;
    int32_t scalar;  // Scalar of every array below
    int64_t batch_size;
    const void* x;           // [K | 1, B, in]
    int64_t x_model_stride;  // B · in, or 0 when one batch serves all models
    const void* values;      // [K · C]
    const void* bias;        // [K, out], or null
    bool relu;               // act is ReLU; otherwise nothing
    void* y;                 // [K, B, out]: written by forward; read by backward where relu is set (else null)

    const void* dy;  // [K, B, out]
    void* dx;        // [K, B, in], or null: not wanted
    void* dvalues;   // [K · C], or null
    void* dbias;     // [K, out], or null
    int threads;
};

// Fills column_start, row and slot (cast from the const pointers' fields: they are written) from row_start and column.
struct SparseTransposeParams {
    int64_t n_models, out_features, in_features, capacity;
    const int64_t* row_start;  // [K, out + 1]
    const int32_t* column;     // [K · C]
    int64_t* column_start;     // [K, in + 1]
    int32_t* row;              // [K · C]; places beyond the connections are 0
    int32_t* slot;             // [K · C]
    int threads;
};

// ---- between the entry points (cpu/sparse/sparse_linear.cpp) and the kernels of a level ----

// Samples of one tile put side by side: panel[f][s] = x[s][f], in the type of the computation.
struct SparsePack {
    const void* x;  // first sample of the tile; a sample holds `features` numbers in a row
    const void*
        unless_0;      // shaped as x, or null: where it is 0, so is the panel (the derivative of ReLU, from its output)
    int64_t features;  // also the stride between samples
    int64_t samples;   // of this tile, 1 … kPanelSamples; the rest of the panel is 0
    void* panel;       // [features][kPanelSamples]
};

// out[s][r] = act(bias[r] + Σ_i value[i] · panel[index[i]][s]), i over start[r] … start[r + 1].
struct SparseProduct {
    const int64_t* start;  // [rows + 1]
    const int32_t* index;
    const void* value;  // in the type of the computation
    const void* panel;  // [features][kPanelSamples]
    const void* bias;   // [rows] as stored, or null
    bool relu;
    void* out;           // first sample of the tile, as stored
    int64_t out_stride;  // rows in all: numbers between samples
    int64_t samples;
    const int32_t* slot;  // not null: value[slot[i]] stands for value[i] (types that are computed as they are stored)
    bool past_caches;     // out is too large for them
};

// dvalue[i] (+)= Σ_s dy[r][s] · x[column[i]][s] over some tiles, and dbias[r] (+)= Σ_s dy[r][s].
struct SparseValuesGradient {
    const int64_t* start;   // [rows + 1]
    const int32_t* column;  // by slot
    const void* x;          // [tiles][in][kPanelSamples]
    const void* dy;         // [tiles][out][kPanelSamples]
    int64_t in_features, out_features, samples;
    bool add;      // to what earlier tiles left; otherwise it is written
    void* dvalue;  // by slot, in the type of the computation, or null
    void* dbias;   // [rows], in the type of the computation, or null
};

// The kernels for one stored type.
struct SparseKernels {
    size_t stored_bytes, computed_bytes;
    void (*pack)(const SparsePack&, int64_t feature0, int64_t feature1);
    void (*product)(const SparseProduct&, int64_t row0, int64_t row1);
    void (*values_gradient)(const SparseValuesGradient&, int64_t row0, int64_t row1);
    void (*widen)(const void* stored, void* computed, int64_t count);
    void (*narrow)(const void* computed, void* stored, int64_t count);
    bool (*within)(const int32_t* index, int64_t count, int64_t limit);  // all in 0 … limit - 1
    // computed[i] = stored[slot[i]]
    void (*gather)(const void* stored, const int32_t* slot, void* computed, int64_t count);
};

// ---- what the binding calls: std::invalid_argument where an index would lead out of its array ----
void sparse_linear_forward(const SparseLinearParams& params);
void sparse_linear_backward(const SparseLinearParams& params);
void sparse_check_index(const SparseTransposeParams& params);  // row_start and column alone
void sparse_transpose(const SparseTransposeParams& params);

}  // namespace toykern
