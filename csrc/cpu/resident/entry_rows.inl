// Products with entries by row: what a sparse matrix [rows][features] adds to rows of another one.
//
//   add_rows    to[index[e]] += value[e] · from[other[e]]
//   sum_rows    to[row] = Σ value[e] · from[feature[e]] over the entries of a row; sum_rows_onto the same onto a row that
//               all begin with
//
// Layout     rows of `width` floats, whole lane groups
// Order      entries in their order
// Roof       a multiply-add, two loads and a store (sum_rows: one load) for a lane group of an entry
#pragma once
#include "cpu/simd/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

template <int kV>
inline void add_row_lanes(int64_t count, const uint32_t* index, const uint32_t* other, const float* value,
                          const float* from, float* to) {
    for (int64_t i = 0; i < count; ++i) {
        const F x = bcast(value[i]);
        const float* f = from + (int64_t)other[i] * kV * kLanes;
        float* t = to + (int64_t)index[i] * kV * kLanes;
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) store(t + v * kLanes, fmadd(x, load(f + v * kLanes), load(t + v * kLanes)));
    }
}

// Flat over the entries, which is best where rows have few of them: a core would mispredict the end of every row.
inline void add_rows(int64_t count, const uint32_t* index, const uint32_t* other, const float* value, const float* from,
                     float* to, int64_t width) {
    const int64_t vectors = width / kLanes;
    if (vectors == 1)
        add_row_lanes<1>(count, index, other, value, from, to);
    else if (vectors == 2)
        add_row_lanes<2>(count, index, other, value, from, to);
    else
        for (int64_t i = 0; i < count; ++i) {
            const F x = bcast(value[i]);
            const float* f = from + other[i] * width;
            float* t = to + index[i] * width;
            for (int64_t k = 0; k < width; k += kLanes) store(t + k, fmadd(x, load(f + k), load(t + k)));
        }
}

// For rows of many entries: a row's sum stays in registers.
inline void sum_rows(int64_t rows, int64_t count, const uint32_t* row, const uint32_t* feature, const float* value,
                     const float* from, float* to, int64_t width) {
    for (int64_t i = 0; i < rows * width; i += kLanes) store(to + i, fzero());  // a row may have no entry at all
    for (int64_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && row[end] == row[i]; ++end) {
        }
        for (int64_t k = 0; k < width; k += 2 * kLanes) {
            const bool two = k + kLanes < width;
            F a = fzero(), b = fzero();
            for (int64_t e = i; e < end; ++e) {
                const float* f = from + (int64_t)feature[e] * width + k;
                const F x = bcast(value[e]);
                a = fmadd(x, load(f), a);
                if (two) b = fmadd(x, load(f + kLanes), b);
            }
            store(to + row[i] * width + k, a);
            if (two) store(to + row[i] * width + k + kLanes, b);
        }
    }
}

// The same in panels of four lane groups, for long rows: each is written once.
inline void sum_rows_onto(const float* first, int64_t rows, int64_t count, const uint32_t* row, const uint32_t* feature,
                          const float* value, const float* from, float* to, int64_t width) {
    constexpr int kPanel = 4;
    for (int64_t r = 0, i = 0, end; r < rows; ++r, i = end) {
        for (end = i; end < count && row[end] == (uint32_t)r; ++end) {
        }
        int64_t k = 0;
        for (; k + kPanel * kLanes <= width; k += kPanel * kLanes) {
            F sum[kPanel];
#pragma GCC unroll 4
            for (int v = 0; v < kPanel; ++v) sum[v] = load(first + k + v * kLanes);
            for (int64_t e = i; e < end; ++e) {
                const float* f = from + (int64_t)feature[e] * width + k;
                const F x = bcast(value[e]);
#pragma GCC unroll 4
                for (int v = 0; v < kPanel; ++v) sum[v] = fmadd(x, load(f + v * kLanes), sum[v]);
            }
#pragma GCC unroll 4
            for (int v = 0; v < kPanel; ++v) store(to + r * width + k + v * kLanes, sum[v]);
        }
        for (; k < width; k += kLanes) {
            F sum = load(first + k);
            for (int64_t e = i; e < end; ++e)
                sum = fmadd(bcast(value[e]), load(from + (int64_t)feature[e] * width + k), sum);
            store(to + r * width + k, sum);
        }
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
