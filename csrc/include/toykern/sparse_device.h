// The seam to the sparse layers' kernels on a device. Everything here exists in every build; without CUDA kernels the
// calls raise CudaNotBuilt.
//
// Three back ends share it (docs/sparse_layers.md): "dense" moves values to and from dense matrices that cuBLAS
// multiplies, "groups" gathers the inputs that a group of rows shares, "slots" multiplies over the connections alone.
// Calls are asynchronous on their stream; all memory, the workspace too, comes from the caller.
#pragma once
#include "toykern/cuda_devices.h"
#include "toykern/sparse.h"

namespace toykern {

// Values of slots at places in dense rows, and back. Numbers are moved, not computed with, so that only their size
// counts.
struct SparseDense {
    int64_t n_models, out_features, width, capacity;
    int32_t element_bytes;     // 2, 4 or 8
    const int64_t* row_start;  // [K, out + 1]
    const int32_t* column;     // [K · C] below width; or null: the i-th slot of a row stands at i
    const void* from;          // scatter: values [K · C]; gather: dense [K, out, width]
    void* to;                  // the other
};

// Inputs of groups of rows that have the same columns (those of the group's first row).
struct SparseGroups {
    int64_t n_models, out_features, in_features, capacity, batch_size;
    int64_t group;             // rows of each; divides out_features
    int64_t width;             // no row has more connections
    int32_t scalar;            // Scalar of the arrays below
    const int64_t* row_start;  // [K, out + 1]
    const int32_t* column;     // [K · C]
    int64_t x_model_stride;    // B · in, or 0 when one batch serves all models
    const void* from;          // inputs: x [K | 1, B, in]; gradient: [K, groups, B, width]
    void* to;                  // inputs: [K, groups, B, width], 0 beyond a row's connections; gradient: dx [K, B, in]
};

struct SparseLaunch {
    int device = 0;
    void* stream = nullptr;               // cudaStream_t
    int64_t shared_limit = kSharedLimit;  // of the device: cuda_shared_limit
    void* workspace = nullptr;            // of sparse_slots_workspace bytes, for sparse_slots_values_gradient
};

// Bytes of workspace for the gradient of the values; reads the shapes alone.
size_t sparse_slots_workspace(const SparseLinearParams& params);

// Of SparseLinearParams the slots back end reads what each call needs; dy is the gradient behind the activation (relu
// counts in forward alone).
namespace cuda {
void sparse_scatter(const SparseDense& task, const SparseLaunch& launch);
void sparse_gather(const SparseDense& task, const SparseLaunch& launch);
void sparse_group_inputs(const SparseGroups& task, const SparseLaunch& launch);
void sparse_group_inputs_gradient(const SparseGroups& task, const SparseLaunch& launch);
void sparse_slots_forward(const SparseLinearParams& params, const SparseLaunch& launch);          // y
void sparse_slots_input_gradient(const SparseLinearParams& params, const SparseLaunch& launch);   // dx
void sparse_slots_values_gradient(const SparseLinearParams& params, const SparseLaunch& launch);  // dvalues
}  // namespace cuda

// The same source on the host (cuda/warp.h): for tests.
namespace host {
void sparse_scatter(const SparseDense& task, const SparseLaunch& launch, bool descending);
void sparse_gather(const SparseDense& task, const SparseLaunch& launch, bool descending);
void sparse_group_inputs(const SparseGroups& task, const SparseLaunch& launch, bool descending);
void sparse_group_inputs_gradient(const SparseGroups& task, const SparseLaunch& launch, bool descending);
void sparse_slots_forward(const SparseLinearParams& params, const SparseLaunch& launch, bool descending);
void sparse_slots_input_gradient(const SparseLinearParams& params, const SparseLaunch& launch, bool descending);
void sparse_slots_values_gradient(const SparseLinearParams& params, const SparseLaunch& launch, bool descending);
}  // namespace host

}  // namespace toykern
