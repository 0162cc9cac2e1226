// Products of single-precision matrices on the cores of one block: a tile of C += Aᵀ B, eight by eight elements to a
// thread.
//
//   c[i][j] = Σ_k a(k, i) b(k, j), i < kRows, j < kColumns, k in order: one chain of fused multiply-adds an element, so
//   that no bit depends on the tile's shape
//
// Layout     operands lie in device memory with either i (Across) or k (Along) contiguous, in vectors of four; they
//            pass through two buffers in shared memory, [kDepth][kRows + 4] and [kDepth][kColumns + 4]: while one is
//            multiplied the next is under way in registers
// Owner      a block to a tile; a warp to 32 × 64 elements (64 × 32 where the tile is narrow), a thread to four
//            quarters of 4 × 4
// Limits     outside its bounds an operand counts as 0; those along vectors are multiples of four
// Roof       64 multiply-adds for four shared vector loads an element of k and a thread; at 128 × 64 a vector from
//            device memory (or L2) for each 170
#pragma once
#include "cuda/large/task.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// A number that the compiler knows nothing of: what follows from it is not computed ahead, where it would take
// registers from a product.
TOYKERN_DEVICE int unforeseen(int x) {
#if defined(__CUDACC__)
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// How an operand lies in memory: element (k, i) at k · stride + i, or at i · stride + k.
enum class Lie { kAcross, kAlong };

// Element (0, 0) of a tile's operand, and how much of it there is from there.
struct Operand {
    const float* base;
    int64_t stride;
    int width, depth;  // i < width, k < depth

    TOYKERN_DEVICE Operand(const float* base_, int64_t stride_, int64_t width_, int64_t depth_)
        : base(base_), stride(stride_), width(clamp(width_)), depth(clamp(depth_)) {}

  private:
    // Tiles are at most 128 wide, and no chain is as long as 2^30 (that many hidden units are four gigabytes a sample).
    static TOYKERN_DEVICE int clamp(int64_t x) { return x < (1 << 30) ? (int)x : 1 << 30; }
};

struct Quarters {
    float v[8][8];
};

template <int kTileRows, int kTileColumns, int kTileDepth>
struct Tile {
    static constexpr int kRows = kTileRows, kColumns = kTileColumns, kDepth = kTileDepth;
    static constexpr int kThreads = kRows * kColumns / 64;
    // Blocks of a multiprocessor: three warps to each of its schedulers, 168 registers a thread; narrow tiles two and
    // 255.
    static constexpr int kResident = (kColumns < 64 ? 8 : 12) * kWarpLanes / kThreads;
    static constexpr int kWarpColumns = kColumns / 8 < 8 ? kColumns / 8 : 8, kWarpRows = kWarpLanes / kWarpColumns;
    static constexpr int kWarpsAcross = kColumns / 8 / kWarpColumns;
    static constexpr int kRowPitch = kRows + 4, kColumnPitch = kColumns + 4;
    static constexpr int64_t kShared = 2 * kDepth * (kRowPitch + kColumnPitch) * (int64_t)sizeof(float);
    static_assert(kRows % (8 * kWarpRows) == 0 && kColumns % (8 * kWarpColumns) == 0, "a warp covers whole rows");

    // Row (column) number of a thread's element i: four in the tile's first half, four in the second.
    static TOYKERN_DEVICE int row(int thread, int i) {
        const int group = thread / kWarpLanes / kWarpsAcross * kWarpRows + thread % kWarpLanes / kWarpColumns;
        return 4 * group + (i < 4 ? i : kRows / 2 + i - 4);
    }
    static TOYKERN_DEVICE int column(int thread, int i) {
        const int group = thread / kWarpLanes % kWarpsAcross * kWarpColumns + thread % kWarpColumns;
        return 4 * group + (i < 4 ? i : kColumns / 2 + i - 4);
    }
    static TOYKERN_DEVICE float* rows_buffer(char* shared, int which) {
        return reinterpret_cast<float*>(shared) + which * kDepth * kRowPitch;
    }
    static TOYKERN_DEVICE float* columns_buffer(char* shared, int which) {
        return reinterpret_cast<float*>(shared) + 2 * kDepth * kRowPitch + which * kDepth * kColumnPitch;
    }
};

// One thread's part of a slab [kDepth][kWidth] of an operand.
template <Lie kLie, int kWidth, int kDepth, int kThreads, int kPitch>
struct Slab {
    static constexpr int kVectors = kWidth * kDepth / 4 / kThreads;
    static_assert(kVectors * 4 * kThreads == kWidth * kDepth, "whole vectors to every thread");
    Float4 staged[kVectors];

    TOYKERN_DEVICE void fetch(const Operand& from, int k0, int thread) {
        TOYKERN_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            const int at = thread + v * kThreads;
            const int k = k_of(at), i = i_of(at);
            const bool inside = k0 + k < from.depth && i < from.width;
            const float* address = from.base + (kLie == Lie::kAcross ? (int64_t)(k0 + k) * from.stride + i
                                                                     : (int64_t)i * from.stride + (k0 + k));
            staged[v] = inside ? load4(address) : Float4{{0.0f, 0.0f, 0.0f, 0.0f}};
        }
    }
    TOYKERN_DEVICE void put(float* to, int thread) const {
        TOYKERN_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            const int at = thread + v * kThreads;
            const int k = k_of(at), i = i_of(at);
            if (kLie == Lie::kAcross) {
                store4(to + k * kPitch + i, staged[v]);
            } else {
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) to[(k + q) * kPitch + i] = staged[v].v[q];
            }
        }
    }

  private:
    static TOYKERN_DEVICE int k_of(int at) { return kLie == Lie::kAcross ? at / (kWidth / 4) : at % (kDepth / 4) * 4; }
    static TOYKERN_DEVICE int i_of(int at) { return kLie == Lie::kAcross ? at % (kWidth / 4) * 4 : at / (kDepth / 4); }
};

// c += Σ_k over the operands' depth. `seen(thread, rows, many)` is called with every slab [kDepth][kRowPitch] of the
// first operand.
template <class T, Lie kLieA, Lie kLieB, class Seen>
TOYKERN_DEVICE void multiply(const Block& b, char* shared, const Operand& left, const Operand& right,
                             PerThread<Quarters>& c, const Seen& seen) {
    using SlabA = Slab<kLieA, T::kRows, T::kDepth, T::kThreads, T::kRowPitch>;
    using SlabB = Slab<kLieB, T::kColumns, T::kDepth, T::kThreads, T::kColumnPitch>;
    const int slabs = (left.depth + T::kDepth - 1) / T::kDepth;
    if (slabs <= 0) return;
    b.each([&](int thread) {
        SlabA next_a;
        SlabB next_b;
        next_a.fetch(left, 0, thread);
        next_b.fetch(right, 0, thread);
        next_a.put(T::rows_buffer(shared, 0), thread);
        next_b.put(T::columns_buffer(shared, 0), thread);
    });
    b.sync();  // the first slab is there for all
    TOYKERN_NO_UNROLL
    for (int slab = 0; slab < slabs; ++slab) {
        const int now = slab & 1;
        b.each([&](int thread) {
            SlabA next_a;
            SlabB next_b;
            next_a.fetch(left, (slab + 1) * T::kDepth, thread);  // zeros after the last
            next_b.fetch(right, (slab + 1) * T::kDepth, thread);
            const float* rows = T::rows_buffer(shared, now) + T::row(thread, 0);
            const float* columns = T::columns_buffer(shared, now) + T::column(thread, 0);
            Quarters& sum = c[thread];
            TOYKERN_UNROLL
            for (int k = 0; k < T::kDepth; ++k) {
                const Float4 a0 = load4(rows + k * T::kRowPitch), a1 = load4(rows + k * T::kRowPitch + T::kRows / 2);
                const Float4 b0 = load4(columns + k * T::kColumnPitch);
                const Float4 b1 = load4(columns + k * T::kColumnPitch + T::kColumns / 2);
                TOYKERN_UNROLL
                for (int i = 0; i < 8; ++i) {
                    const float a = i < 4 ? a0.v[i & 3] : a1.v[i & 3];
                    TOYKERN_UNROLL
                    for (int j = 0; j < 8; ++j) sum.v[i][j] = fused(a, j < 4 ? b0.v[j & 3] : b1.v[j & 3], sum.v[i][j]);
                }
            }
            seen(thread, T::rows_buffer(shared, now));
            next_a.put(T::rows_buffer(shared, 1 - now), thread);
            next_b.put(T::columns_buffer(shared, 1 - now), thread);
        });
        b.sync();  // the next slab is there, and this one has been read: its buffer is free
    }
}

template <class T, Lie kLieA, Lie kLieB>
TOYKERN_DEVICE void multiply(const Block& b, char* shared, const Operand& left, const Operand& right,
                             PerThread<Quarters>& c) {
    multiply<T, kLieA, kLieB>(b, shared, left, right, c, [](int, const float*) {});
}

TOYKERN_DEVICE void clear(const Block& b, PerThread<Quarters>& c) {
    b.each([&](int thread) {
        TOYKERN_UNROLL
        for (int i = 0; i < 8; ++i) {
            TOYKERN_UNROLL
            for (int j = 0; j < 8; ++j) c[thread].v[i][j] = 0.0f;
        }
    });
}

// Calls f(thread, i, half, four elements) for the two halves of each of a thread's eight rows.
template <class F>
TOYKERN_DEVICE void each_vector(const Quarters& c, int thread, const F& f) {
    TOYKERN_UNROLL
    for (int i = 0; i < 8; ++i) {
        f(thread, i, 0, Float4{{c.v[i][0], c.v[i][1], c.v[i][2], c.v[i][3]}});
        f(thread, i, 1, Float4{{c.v[i][4], c.v[i][5], c.v[i][6], c.v[i][7]}});
    }
}

// The same where f is long: one row after the other, since eight copies of f do not fit the registers beside what they
// work on. Registers have no addresses, so all are visited for every row.
template <class F>
TOYKERN_DEVICE void each_vector_in_turn(const Quarters& c, int thread, const F& f) {
    TOYKERN_NO_UNROLL
    for (int i = 0; i < 8; ++i) {
        const int own = unforeseen(thread);
        float row[8];
        TOYKERN_UNROLL
        for (int r = 0; r < 8; ++r) {
            TOYKERN_UNROLL
            for (int q = 0; q < 8; ++q) row[q] = r == 0 || r == i ? c.v[r][q] : row[q];
        }
        f(own, i, 0, Float4{{row[0], row[1], row[2], row[3]}});
        f(own, i, 1, Float4{{row[4], row[5], row[6], row[7]}});
    }
}

using LargeTile = Tile<128, 64, 8>;     // where there are blocks enough for a device
using MiddleTile = Tile<64, 64, 8>;     // elsewhere
using NarrowTile = Tile<128, 32, 8>;    // for up to 32 hidden units
constexpr int64_t kBlocksEnough = 256;  // two for each multiprocessor of the largest devices

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
