// Inputs of groups of rows that share their columns, for products by cuBLAS: gathered[g][s][j] = x[s][column of group
// g, j].
//
//   GroupInputs           x -> gathered, 0 beyond the group's connections
//   GroupInputsGradient   its transpose: dx[s][c] = Σ over the groups g that have column c of gathered[g][s][its j]
//
// Layout     x, dx [K | 1][B][in]; gathered [K][groups][B][width]; a group's columns are those of its first row
// Owner      inputs: a warp to four samples of a group, which share the loads of the columns. Gradient: a block to a
//            sample and up to 10,240 columns (5,120 of float64), summed in shared memory; a group's columns are
//            distinct, so no two threads meet
// Order      a column's sum runs over its groups in order
// Limits     none. The gradient waits at a barrier for each group, with its loads: blocks side by side hide it
// Roof       memory: gathered is written (read) once, x mostly comes from the caches
#pragma once
#include "cuda/sparse/stored.cuh"
#include "toykern/sparse_device.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <class T>
struct GroupInputs {
    static constexpr const char* kName = "sparse_group_inputs";
    static constexpr int kThreads = 256, kWarps = kThreads / kWarpLanes, kEach = 4;
    static constexpr int64_t kSamples = (int64_t)kWarps * kEach;  // of a block
    static constexpr int64_t kShared = 0;

    static TOYKERN_DEVICE void run(const Block& b, const SparseGroups& t, int64_t block, char*) {
        const int64_t groups = t.out_features / t.group, tiles = (t.batch_size + kSamples - 1) / kSamples;
        const int64_t model = block / tiles / groups, g = block / tiles % groups;
        const int64_t* start = t.row_start + model * (t.out_features + 1) + g * t.group;
        const int count = (int)(start[1] - start[0]);
        const int32_t* column = t.column + model * t.capacity + start[0];
        const T* x = static_cast<const T*>(t.from) + model * t.x_model_stride;
        T* out = static_cast<T*>(t.to) + (model * groups + g) * t.batch_size * t.width;
        b.each_warp([&](const Warp& w) {
            const int64_t s0 = block % tiles * kSamples + w.number * kEach;
            const int samples = (int)least(kEach, t.batch_size - s0);
            w.each([&](int lane) {
                for (int j = lane; j < t.width; j += kWarpLanes) {
                    const int c = j < count ? column[j] : -1;
                    TOYKERN_UNROLL
                    for (int s = 0; s < kEach; ++s)
                        if (s < samples) out[(s0 + s) * t.width + j] = c < 0 ? T{} : x[(s0 + s) * t.in_features + c];
                }
            });
        });
    }
};

template <class T>
struct GroupInputsGradient {
    static constexpr const char* kName = "sparse_group_inputs_gradient";
    using A = typename Stored<T>::Computed;
    static constexpr int kThreads = 128;
    static constexpr int64_t kShared = 40960, kTile = kShared / (int64_t)sizeof(A);

    static TOYKERN_DEVICE void run(const Block& b, const SparseGroups& t, int64_t block, char* shared) {
        const int64_t groups = t.out_features / t.group, tiles = (t.in_features + kTile - 1) / kTile;
        const int64_t column0 = block % tiles * kTile, sample = block / tiles % t.batch_size;
        const int64_t model = block / tiles / t.batch_size;
        const int columns = (int)least(kTile, t.in_features - column0);
        const int64_t* start = t.row_start + model * (t.out_features + 1);
        const int32_t* column = t.column + model * t.capacity;
        const T* from = static_cast<const T*>(t.from) + (model * groups * t.batch_size + sample) * t.width;
        A* sum = reinterpret_cast<A*>(shared);
        b.each([&](int thread) {
            for (int c = thread; c < columns; c += kThreads) sum[c] = (A)0;
        });
        b.sync();  // the sums are 0 before anything is added to them
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t first = start[g * t.group];
            const int count = (int)(start[g * t.group + 1] - first);
            const T* mine = from + g * t.batch_size * t.width;
            b.each([&](int thread) {
                for (int j = thread; j < count; j += kThreads) {
                    const int64_t c = column[first + j] - column0;
                    if (c >= 0 && c < columns) sum[c] = sum[c] + Stored<T>::get(mine[j]);
                }
            });
            b.sync();  // a group is added before the next, which may meet the same columns
        }
        T* dx = static_cast<T*>(t.to) + (model * t.batch_size + sample) * t.in_features + column0;
        b.each([&](int thread) {
            for (int c = thread; c < columns; c += kThreads) dx[c] = Stored<T>::put(sum[c]);
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
