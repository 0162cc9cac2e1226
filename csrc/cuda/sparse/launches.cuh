// Which kernels a call of toykern/sparse_device.h consists of, and their shapes: one list for the device and for the
// host.
//
// A Queue has put<Kernel>(task, blocks, threads, shared_bytes), which runs Kernel::run for each block.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "cuda/sparse/dense.cuh"
#include "cuda/sparse/groups.cuh"
#include "cuda/sparse/slots.cuh"
#include "cuda/sparse/slots_gradient.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// ---- dense ----

template <class E, class Queue>
void queue_scatter(const Queue& queue, const SparseDense& t) {
    using Kernel = SparseScatter<E>;
    const int64_t rows = t.width <= Kernel::kTile ? std::min(Kernel::kTile / t.width, Kernel::kMostRows) : 1;
    const int64_t blocks = pieces_of(t.n_models * t.out_features, rows) * pieces_of(t.width, Kernel::kTile);
    queue.template put<Kernel>(t, blocks, Kernel::kThreads, Kernel::kShared);
}

template <class E, class Queue>
void queue_gather(const Queue& queue, const SparseDense& t) {
    using Kernel = SparseGather<E>;
    const int64_t blocks = pieces_of(t.n_models * (t.out_features + 1), Kernel::kWarps);
    queue.template put<Kernel>(t, blocks, Kernel::kThreads, Kernel::kShared);
}

// Calls visit with a null pointer of the unsigned integer of that size.
template <class Visit>
void with_element(int32_t bytes, const Visit& visit) {
    if (bytes == 2)
        visit((uint16_t*)nullptr);
    else if (bytes == 4)
        visit((uint32_t*)nullptr);
    else if (bytes == 8)
        visit((uint64_t*)nullptr);
    else
        throw std::invalid_argument("element_bytes must be 2, 4 or 8");
}

// Likewise of the stored type.
template <class Visit>
void with_scalar(int32_t scalar, const Visit& visit) {
    if (scalar == (int32_t)Scalar::kFloat32)
        visit((float*)nullptr);
    else if (scalar == (int32_t)Scalar::kBFloat16)
        visit((BFloat16*)nullptr);
    else if (scalar == (int32_t)Scalar::kFloat64)
        visit((double*)nullptr);
    else
        throw std::invalid_argument("scalar must be 0, 1 or 2");
}

// ---- groups ----

template <class T, class Queue>
void queue_group_inputs(const Queue& queue, const SparseGroups& t) {
    using Kernel = GroupInputs<T>;
    const int64_t tasks = t.n_models * (t.out_features / t.group);
    queue.template put<Kernel>(t, tasks * pieces_of(t.batch_size, Kernel::kSamples), Kernel::kThreads, Kernel::kShared);
}

template <class T, class Queue>
void queue_group_inputs_gradient(const Queue& queue, const SparseGroups& t) {
    using Kernel = GroupInputsGradient<T>;
    const int64_t blocks = t.n_models * t.batch_size * pieces_of(t.in_features, Kernel::kTile);
    queue.template put<Kernel>(t, blocks, Kernel::kThreads, Kernel::kShared);
}

// ---- slots ----

// The panel takes what shared memory a block has (the large archs have it twice); the block has as many warps as there
// is room for their rows of the output.
template <class T, class Queue>
void queue_slots_product(const Queue& queue, SlotsTask t, int64_t shared_limit) {
    using A = typename Stored<T>::Computed;
    const int64_t numbers = shared_limit / (int64_t)sizeof(A);
    const int64_t warps = std::min<int64_t>(kSlotsWarps, (numbers / kSlotsSamples - 1) / kSlotsRows);
    t.warps = (int)std::min(warps, pieces_of(t.rows, kSlotsRows));
    t.chunk = pieces_of(t.features, pieces_of(t.features, numbers / kSlotsPitch));
    const int64_t staged = t.chunk * kSlotsPitch, out = kSlotsSamples * ((int64_t)kSlotsRows * t.warps + 1);
    const int64_t blocks =
        t.n_models * pieces_of(t.batch_size, kSlotsSamples) * pieces_of(t.rows, (int64_t)kSlotsRows * t.warps);
    queue.template put<SlotsProduct<T>>(t, blocks, t.warps * kWarpLanes, std::max(staged, out) * (int64_t)sizeof(A));
}

template <class Queue>
void queue_slots_forward(const Queue& queue, const SparseLinearParams& p, int64_t shared_limit) {
    const SparseTopology& c = p.topology;
    const SlotsTask t = {
        c.n_models, c.out_features,   c.in_features, c.capacity, p.batch_size, c.row_start, c.column, nullptr, p.values,
        p.x,        p.x_model_stride, p.bias,        p.relu,     p.y,          0,           0};
    with_scalar(p.scalar,
                [&](auto* stored) { queue_slots_product<std::decay_t<decltype(*stored)>>(queue, t, shared_limit); });
}

template <class Queue>
void queue_slots_input_gradient(const Queue& queue, const SparseLinearParams& p, int64_t shared_limit) {
    const SparseTopology& c = p.topology;
    const SlotsTask t = {c.n_models,
                         c.in_features,
                         c.out_features,
                         c.capacity,
                         p.batch_size,
                         c.column_start,
                         c.row,
                         c.slot,
                         p.values,
                         p.dy,
                         p.batch_size * c.out_features,
                         nullptr,
                         false,
                         p.dx,
                         0,
                         0};
    with_scalar(p.scalar,
                [&](auto* stored) { queue_slots_product<std::decay_t<decltype(*stored)>>(queue, t, shared_limit); });
}

template <class T, class Queue>
void queue_slots_gradient(const Queue& queue, const SparseLinearParams& p, void* workspace) {
    using A = typename Stored<T>::Computed;
    using Kernel = SlotsGradient<T>;
    const SparseTopology& c = p.topology;
    SlotsGradientTask t = {
        c.n_models, c.out_features, c.in_features,    c.capacity, p.batch_size, c.row_start, c.column,
        p.x,        p.dy,           p.x_model_stride, nullptr,    p.dvalues,    1,           p.batch_size,
        0};
    t.splits = slots_splits(c.capacity, p.batch_size);
    t.split_samples = pieces_of(p.batch_size, t.splits);
    if (t.splits > 1) t.shares = workspace;
    const int64_t sample_bytes = c.in_features * (int64_t)sizeof(A);
    t.staged = std::min<int64_t>(Kernel::kStagedBytes / sample_bytes, 32);
    const int64_t blocks = c.n_models * pieces_of(c.capacity, kGradientSlotsOfBlock) * t.splits;
    queue.template put<Kernel>(t, blocks, Kernel::kThreads, t.staged * sample_bytes);
    using Combine = SlotsGradientCombine<T>;
    if (t.splits > 1)
        queue.template put<Combine>(t, pieces_of(c.n_models * c.capacity, Combine::kThreads), Combine::kThreads, 0);
}

template <class Queue>
void queue_slots_values_gradient(const Queue& queue, const SparseLinearParams& p, void* workspace) {
    with_scalar(p.scalar,
                [&](auto* stored) { queue_slots_gradient<std::decay_t<decltype(*stored)>>(queue, p, workspace); });
}

// ---- the calls ----

template <class Queue>
void queue_sparse_scatter(const Queue& queue, const SparseDense& t) {
    with_element(t.element_bytes, [&](auto* e) { queue_scatter<std::decay_t<decltype(*e)>>(queue, t); });
}
template <class Queue>
void queue_sparse_gather(const Queue& queue, const SparseDense& t) {
    with_element(t.element_bytes, [&](auto* e) { queue_gather<std::decay_t<decltype(*e)>>(queue, t); });
}
template <class Queue>
void queue_sparse_group_inputs(const Queue& queue, const SparseGroups& t) {
    with_scalar(t.scalar, [&](auto* stored) { queue_group_inputs<std::decay_t<decltype(*stored)>>(queue, t); });
}
template <class Queue>
void queue_sparse_group_inputs_gradient(const Queue& queue, const SparseGroups& t) {
    with_scalar(t.scalar,
                [&](auto* stored) { queue_group_inputs_gradient<std::decay_t<decltype(*stored)>>(queue, t); });
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
