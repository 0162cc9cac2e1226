// Sparse rows times a batch, over the connections alone: out[s][r] = act(bias[r] + Σ_i value[i] · x[s][index[i]]).
//
// The forward pass over rows, and the gradient of the input over columns (index: rows by place; the value of place i is
// value[slot[i]]). The CPU's twin is cpu/sparse/product.inl.
//
// Layout     x [K | 1][B][features], out [K][B][rows]
// Owner      a block to 32 samples and 16 rows of each of its warps. The samples' features stand side by side in shared
//            memory, in as many chunks as it takes; a lane is a sample, and the sums of its 16 rows stay in registers
//            over all chunks. They leave through shared memory, so that rows of y are written side by side
// Order      each sum begins with the bias and runs over the row's connections in order, one fused multiply-add after
//            the other: a function of the topology alone, whatever the chunks
// Limits     none; a batch that is no multiple of 32 leaves lanes idle, and a small one most of them
// Roof       32 connections · samples cost one word of shared memory from each bank: 32 multiply-adds a clock and
//            multiprocessor; staging reads every panel once for each 16 · warps rows
#pragma once
#include "cuda/sparse/stored.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct SlotsTask {
    int64_t n_models, rows, features, capacity, batch_size;
    const int64_t* start;  // [K, rows + 1]
    const int32_t* index;  // [K · C] below features
    const int32_t* slot;   // [K · C], or null: value i is value[i]
    const void* value;     // [K · C]
    const void* x;
    int64_t x_model_stride;
    const void* bias;  // [K, rows], or null
    bool relu;
    void* out;
    int warps;      // of a block
    int64_t chunk;  // features in shared memory at a time
};

constexpr int kSlotsRows = 16;   // of a warp
constexpr int kSlotsWarps = 16;  // of a block, at most
constexpr int kSlotsSamples = 32;
constexpr int kSlotsPitch =
    kSlotsSamples + 1;  // of a feature: lanes that write one sample's features hit different banks

template <class T>
struct SlotsProduct {
    static constexpr const char* kName = "sparse_slots_product";
    using A = typename Stored<T>::Computed;

    static TOYKERN_DEVICE void run(const Block& b, const SlotsTask& t, int64_t block, char* shared) {
        const int64_t block_rows = (int64_t)kSlotsRows * t.warps;
        const int64_t parts = (t.rows + block_rows - 1) / block_rows;
        const int64_t panels = (t.batch_size + kSlotsSamples - 1) / kSlotsSamples;
        const int64_t model = block / parts / panels, sample0 = block / parts % panels * kSlotsSamples;
        const int64_t block_row0 = block % parts * block_rows;
        const int samples = (int)least(kSlotsSamples, t.batch_size - sample0);
        const int64_t* start = t.start + model * (t.rows + 1);
        const int32_t* index = t.index + model * t.capacity;
        const int32_t* slot = t.slot ? t.slot + model * t.capacity : nullptr;
        const T* value = static_cast<const T*>(t.value) + model * t.capacity;
        const T* x = static_cast<const T*>(t.x) + model * t.x_model_stride + sample0 * t.features;
        const T* bias = t.bias ? static_cast<const T*>(t.bias) + model * t.rows : nullptr;
        A* panel = reinterpret_cast<A*>(shared);  // [chunk][kSlotsPitch]

        PerThread<A> sum[kSlotsRows];
        PerThread<int> at[kSlotsRows];
        b.each([&](int thread) {
            const int64_t row0 = block_row0 + thread / kWarpLanes * kSlotsRows;
            TOYKERN_UNROLL
            for (int i = 0; i < kSlotsRows; ++i) {
                const bool there = row0 + i < t.rows;
                sum[i][thread] = there && bias ? Stored<T>::get(bias[row0 + i]) : (A)0;
                at[i][thread] = there ? (int)start[row0 + i] : 0;
            }
        });
        const bool whole = t.chunk >= t.features;
        for (int64_t c0 = 0; c0 < t.features; c0 += t.chunk) {
            const int count = (int)least(t.chunk, t.features - c0), end_column = (int)c0 + count;
            b.each([&](int thread) {
                const int lane = thread % kWarpLanes;
                for (int s = thread / kWarpLanes; s < kSlotsSamples; s += t.warps) {
                    const T* from = x + s * t.features + c0;
                    for (int c = lane; c < count; c += kWarpLanes)
                        panel[c * kSlotsPitch + s] = s < samples ? Stored<T>::get(from[c]) : (A)0;
                }
            });
            b.sync();  // the panel is there for all
            b.each([&](int thread) {
                const int64_t row0 = block_row0 + thread / kWarpLanes * kSlotsRows;
                const A* mine = panel + thread % kWarpLanes;
                TOYKERN_UNROLL
                for (int i = 0; i < kSlotsRows; ++i) {
                    if (row0 + i >= t.rows) continue;
                    const int end = (int)start[row0 + i + 1];
                    int k = at[i][thread];
                    A total = sum[i][thread];
                    if (whole) {
                        TOYKERN_NO_UNROLL
                        for (; k + 4 <= end; k += 4) {  // four loads under way at a time
                            int column[4];
                            A weight[4];
                            TOYKERN_UNROLL
                            for (int j = 0; j < 4; ++j) {
                                column[j] = index[k + j];
                                weight[j] = Stored<T>::get(value[slot ? slot[k + j] : k + j]);
                            }
                            TOYKERN_UNROLL
                            for (int j = 0; j < 4; ++j) total = fused(weight[j], mine[column[j] * kSlotsPitch], total);
                        }
                    }
                    TOYKERN_NO_UNROLL
                    for (; k < end && index[k] < end_column; ++k)
                        total = fused(Stored<T>::get(value[slot ? slot[k] : k]),
                                      mine[(index[k] - (int)c0) * kSlotsPitch], total);
                    sum[i][thread] = total;
                    at[i][thread] = k;
                }
            });
            b.sync();  // the panel has been read before the next one comes
        }
        const int pitch = (int)block_rows + 1;
        b.each([&](int thread) {
            A* mine = panel + thread % kWarpLanes * pitch + thread / kWarpLanes * kSlotsRows;
            TOYKERN_UNROLL
            for (int i = 0; i < kSlotsRows; ++i) {
                const A y = sum[i][thread];
                mine[i] = t.relu && y <= (A)0 ? (A)0 : y;  // a NaN stays one
            }
        });
        b.sync();  // the outputs are there before other threads write them out
        T* out = static_cast<T*>(t.out) + (model * t.batch_size + sample0) * t.rows + block_row0;
        const int rows = (int)least(block_rows, t.rows - block_row0);
        b.each([&](int thread) {
            for (int s = 0; s < samples; ++s)
                for (int r = thread; r < rows; r += t.warps * kWarpLanes)
                    out[s * t.rows + r] = Stored<T>::put(panel[s * pitch + r]);
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
