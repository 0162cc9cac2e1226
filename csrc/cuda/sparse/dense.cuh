// Values to their places in dense rows, the rest 0, and back: dense[k][r][column[i]] = value[i] for i in the slots of
// row r.
//
//   SparseScatter   values -> dense   before a product by cuBLAS
//   SparseGather    dense -> values   the gradient at the connections; 0 in the slack
//
// Layout     dense [K][out][width] contiguous; E is an unsigned integer of the numbers' size
// Owner      scatter: a block to some whole rows, or to a piece of one, put together in shared memory and written once;
//            gather: a warp to a row. The slots beyond a model's last row count as one more row, which is cleared
// Order      nothing is added
// Limits     none
// Roof       scatter writes K · out · width numbers, gather reads a sector of 32 bytes for each connection
#pragma once
#include "cuda/sparse/stored.cuh"
#include "toykern/sparse_device.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct alignas(16) SixteenBytes {
    uint32_t word[4];
};

template <class E>
struct SparseScatter {
    static constexpr const char* kName = "sparse_scatter";
    static constexpr int kThreads = 256;
    static constexpr int64_t kTile = 16384 / (int64_t)sizeof(E);
    static constexpr int64_t kShared = 16384;
    static constexpr int64_t kMostRows = 64;

    static TOYKERN_DEVICE int64_t tile_rows(int64_t width) {
        return width <= kTile ? least(kTile / width, kMostRows) : 1;
    }

    static TOYKERN_DEVICE void run(const Block& b, const SparseDense& t, int64_t block, char* shared) {
        const int64_t tiles = (t.width + kTile - 1) / kTile, rows = t.n_models * t.out_features;
        const int64_t row0 = block / tiles * tile_rows(t.width), row1 = least(rows, row0 + tile_rows(t.width));
        const int64_t column0 = block % tiles * kTile, column1 = least(t.width, column0 + kTile);
        const int width = (int)(column1 - column0), count = (int)(row1 - row0) * width;
        E* cell = reinterpret_cast<E*>(shared);
        b.each([&](int thread) {
            for (int i = thread; i < count; i += kThreads) cell[i] = 0;
        });
        b.sync();  // the tile is cleared before values come into it
        b.each_warp([&](const Warp& w) {
            for (int64_t row = row0 + w.number; row < row1; row += kThreads / kWarpLanes) {
                const int64_t model = row / t.out_features, first = model * t.capacity;
                const int64_t* start = t.row_start + model * (t.out_features + 1) + row % t.out_features;
                const E* value = static_cast<const E*>(t.from) + first;
                E* mine = cell + (row - row0) * width;
                w.each([&](int lane) {
                    for (int64_t i = start[0] + lane; i < start[1]; i += kWarpLanes) {
                        const int64_t at = (t.column ? t.column[first + i] : i - start[0]) - column0;
                        if (at >= 0 && at < width) mine[at] = value[i];
                    }
                });
            }
        });
        b.sync();  // the tile is there for those who write it out
        E* out = static_cast<E*>(t.to) + row0 * t.width + column0;
        constexpr int kEach = 16 / (int)sizeof(E);
        const int whole = reinterpret_cast<uintptr_t>(out) % 16 ? 0 : count / kEach;
        b.each([&](int thread) {
            for (int i = thread; i < whole; i += kThreads)
                reinterpret_cast<SixteenBytes*>(out)[i] = reinterpret_cast<const SixteenBytes*>(cell)[i];
            for (int i = whole * kEach + thread; i < count; i += kThreads) out[i] = cell[i];
        });
    }
};

template <class E>
struct SparseGather {
    static constexpr const char* kName = "sparse_gather";
    static constexpr int kThreads = 256, kWarps = kThreads / kWarpLanes;
    static constexpr int64_t kShared = 0;

    static TOYKERN_DEVICE void run(const Block& b, const SparseDense& t, int64_t block, char*) {
        b.each_warp([&](const Warp& w) {
            const int64_t task = block * kWarps + w.number, model = task / (t.out_features + 1);
            if (model >= t.n_models) return;
            const int64_t row = task % (t.out_features + 1), first = model * t.capacity;
            const int64_t* start = t.row_start + task;
            E* value = static_cast<E*>(t.to) + first;
            const E* dense = static_cast<const E*>(t.from) + (model * t.out_features + row) * t.width;
            const bool slack = row == t.out_features;
            const int64_t end = slack ? t.capacity : start[1];
            w.each([&](int lane) {
                for (int64_t i = start[0] + lane; i < end; i += kWarpLanes)
                    value[i] = slack ? (E)0 : dense[t.column ? t.column[first + i] : i - start[0]];
            });
        });
    }
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
