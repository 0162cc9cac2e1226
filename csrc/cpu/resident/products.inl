// Small matrix products in register blocks: rows times three lane groups, the operand that is read again and again in a
// panel.
//
//   for_blocks     any block kernel over a grid of rows x lane groups
//   multiply_all   C (+)= A B with A and C of any strides
//   transpose_into
//
// Types      float, and double where the names end in "Of": half as many lanes
// Order      every element is summed over k in order, in slabs of kPanelDepth that depend on the shape alone
// Roof       24 fused multiply-adds for 3 loads and 8 broadcasts: measured at 77-99% of the peak with its epilogue (80
//            -> 20 to 400 -> 30, v4)
#pragma once
#include "cpu/simd/double.h"
#include "cpu/simd/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// As many accumulators as registers: thirty-two of them with AVX-512, sixteen elsewhere.
constexpr int kBlockRows = kLanes == 16 ? 8 : 4, kBlockVectors = 3;

// n in whole lane groups; long rows get an odd number of them, since rows a power of two apart fall on the same cache
// sets.
TOYKERN_INLINE int64_t round_up(int64_t n) {
    const int64_t groups = (n + kLanes - 1) / kLanes;
    return (groups * kLanes >= 256 && groups % 2 == 0 ? groups + 1 : groups) * kLanes;
}

// c[r][v] += Σ_k a[r·a_row + k·a_k] · b[k·b_k + v·kLanes]
template <int kR, int kV, class T, class V>
TOYKERN_INLINE void multiply(const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_k, int64_t depth,
                             V (&c)[kBlockRows][kBlockVectors]) {
    constexpr int kStep = Lane<T>::kCount;
    for (int64_t k = 0; k < depth; ++k) {
        V bv[kV];
#pragma GCC unroll 3
        for (int v = 0; v < kV; ++v) bv[v] = load(b + k * b_k + v * kStep);
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r) {
            const V ar = bcast(a[r * a_row + k * a_k]);
#pragma GCC unroll 3
            for (int v = 0; v < kV; ++v) c[r][v] = fmadd(ar, bv[v], c[r][v]);
        }
    }
}

// The lane groups of a matrix that a row of blocks is about to read again and again: where its rows lie pages apart,
// copied together.
template <class T>
struct PanelOf {
    const T* b;  // element (k, lane) of the matrix: b[k · b_k + lane]
    int64_t b_k, depth;
    T* room;  // [depth][kBlockVectors · kLanes], or null: read in place
    const T* at = nullptr;
    int64_t at_k = 0;

    void select(int64_t lane, int64_t vectors) {
        at = b + lane;
        at_k = b_k;
        if (!room) return;
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t v = 0; v < vectors; ++v)
                store(room + (k * vectors + v) * kStep, load(b + k * b_k + lane + v * kStep));
        at = room;
        at_k = vectors * kStep;
    }
    static constexpr int kStep = Lane<T>::kCount;
};
using Panel = PanelOf<float>;
constexpr int64_t kPanelDepth = 256;
inline bool far_apart(int64_t b_k, int64_t depth) { return b_k * depth > 32768; }

// Calls block<kR, kV>(row, lane) over a grid of rows × lane groups, in blocks of nearly equal size.
template <template <int, int> class Block, int kStep = kLanes, class Argument>
inline void for_blocks(int64_t rows, int64_t lanes, Argument& argument) {
    const int64_t vectors = lanes / kStep, lane_blocks = (vectors + kBlockVectors - 1) / kBlockVectors;
    const int64_t row_blocks = (rows + kBlockRows - 1) / kBlockRows;
    for (int64_t lb = 0; lb < lane_blocks; ++lb) {
        const int64_t v0 = lb * vectors / lane_blocks, v1 = (lb + 1) * vectors / lane_blocks;
        argument.panel.select(v0 * kStep, v1 - v0);
        for (int64_t rb = 0; rb < row_blocks; ++rb) {
            const int64_t r0 = rb * rows / row_blocks, r1 = (rb + 1) * rows / row_blocks;
#define TOYKERN_ROWS(R)                                                            \
    case R: {                                                                      \
        constexpr int kRows = R < kBlockRows ? R : kBlockRows; /* larger: never */ \
        if (v1 - v0 == 3)                                                          \
            Block<kRows, 3>::run(argument, r0, v0 * kStep);                        \
        else if (v1 - v0 == 2)                                                     \
            Block<kRows, 2>::run(argument, r0, v0 * kStep);                        \
        else                                                                       \
            Block<kRows, 1>::run(argument, r0, v0 * kStep);                        \
        break;                                                                     \
    }
            switch (r1 - r0) {
                TOYKERN_ROWS(1)
                TOYKERN_ROWS(2)
                TOYKERN_ROWS(3)
                TOYKERN_ROWS(4)
                TOYKERN_ROWS(5)
                TOYKERN_ROWS(6)
                TOYKERN_ROWS(7)
                TOYKERN_ROWS(8)
            }
#undef TOYKERN_ROWS
        }
    }
}

// C [rows][lanes] (+)= A B in register blocks. A's element (r, k) is a[r·a_row + k·a_k].
template <class T>
struct ProductOf {
    using Type = T;
    const T* a;
    int64_t a_row, a_k;
    PanelOf<T> panel;
    T* c;
    int64_t c_row;
    bool add;
};
using Product = ProductOf<float>;

template <int kR, int kV>
struct ProductBlock {
    template <class P>
    static void run(const P& p, int64_t row, int64_t lane) {
        using T = typename P::Type;
        using V = typename Lane<T>::Vector;
        constexpr int kStep = Lane<T>::kCount;
        V c[kBlockRows][kBlockVectors];
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < kV; ++v)
                c[r][v] = p.add ? load(p.c + (row + r) * p.c_row + lane + v * kStep) : Lane<T>::zero();
        multiply<kR, kV>(p.a + row * p.a_row, p.a_row, p.a_k, p.panel.at, p.panel.at_k, p.panel.depth, c);
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r)
#pragma GCC unroll 3
            for (int v = 0; v < kV; ++v) store(p.c + (row + r) * p.c_row + lane + v * kStep, c[r][v]);
    }
};

// Deep products of far-apart rows go in slabs of kPanelDepth, so that a panel stays in L1.
template <class T>
inline void multiply_all(ProductOf<T> p, int64_t rows, int64_t lanes, T* room) {
    const int64_t depth = p.panel.depth;
    const bool slabs = far_apart(p.panel.b_k, depth) && rows > kBlockRows;
    const int64_t slab = slabs ? kPanelDepth : (depth > 0 ? depth : 1);
    p.panel.room = slabs ? room : nullptr;
    for (int64_t k = 0; k == 0 || k < depth; k += slab) {
        p.panel.depth = depth - k < slab ? depth - k : slab;
        for_blocks<ProductBlock, Lane<T>::kCount>(rows, lanes, p);
        p.a += slab * p.a_k;
        p.panel.b += slab * p.panel.b_k;
        p.add = true;
    }
}

// A matrix whose panels were put together beforehand, in the blocks that for_blocks makes: of use where many row blocks
// read it.
template <class T>
struct Packed {
    static constexpr int kStep = Lane<T>::kCount;
    const T* base;  // panel after panel: [total][vectors of the panel]
    int64_t total, first, depth;
    const T* at = nullptr;
    int64_t at_k = 0;
    void select(int64_t lane, int64_t vectors) {
        at_k = vectors * kStep;
        at = base + lane * total + first * at_k;
    }
};
template <class T>
struct PackedProduct {
    using Type = T;
    const T* a;
    int64_t a_row, a_k;
    Packed<T> panel;
    T* c;
    int64_t c_row;
    bool add;
};

// Lanes v0 … v1 - 1 (in lane groups) of panel number `index` among those of `vectors` lane groups.
TOYKERN_INLINE int64_t panel_count(int64_t vectors) { return (vectors + kBlockVectors - 1) / kBlockVectors; }
TOYKERN_INLINE int64_t panel_start(int64_t vectors, int64_t index) { return index * vectors / panel_count(vectors); }

// C [rows][lanes] (+)= A B with B [depth][lanes] packed; in slabs of kPanelDepth.
template <class T>
inline void multiply_packed(const T* a, int64_t a_row, int64_t a_k, const T* packed, int64_t depth, T* c, int64_t c_row,
                            bool add, int64_t rows, int64_t lanes) {
    for (int64_t k = 0; k == 0 || k < depth; k += kPanelDepth) {
        const int64_t slab = depth - k < kPanelDepth ? depth - k : kPanelDepth;
        PackedProduct<T> p = {a + k * a_k, a_row, a_k, {packed, depth, k, slab}, c, c_row, add || k > 0};
        for_blocks<ProductBlock, Lane<T>::kCount>(rows, lanes, p);
    }
}

// to [cols][to_row] = (or +=) transpose of from [rows][from_row]; both padded to whole lane groups.
inline void transpose_into(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t row0, int64_t row1,
                           int64_t cols, bool add) {
    for (int64_t i = row0; i < row1; i += kLanes)
        for (int64_t j = 0; j < cols; j += kLanes) {
            F block[kLanes];
            for (int r = 0; r < kLanes; ++r) block[r] = i + r < row1 ? load(from + (i + r) * from_row + j) : fzero();
            transpose(block);
            const int64_t many = cols - j < kLanes ? cols - j : kLanes;
            for (int r = 0; r < many; ++r) {
                float* at = to + (j + r) * to_row + i;
                store(at, add ? load(at) + block[r] : block[r]);
            }
        }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
