// Entries by sample, read without a branch for each sample: most samples of a sparse batch have none.
//
//   nonempty_rows   which samples have entries
//   entries_hold    whether kernels may follow row_start and feature: in order, in range, rising within a sample
//
// Roof       one read of row_start and feature
#pragma once
#include "cpu/simd/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// to = the rows r < rows with start[r] != start[r + 1]; returns how many. `to` has room for rows + kLanes.
inline int64_t nonempty_rows(const int64_t* start, int64_t rows, uint32_t* to) {
    constexpr int kStep = kLanes / 2;
    const M low = mask_bits(0x55555555u);
    const uint32_t all = bits(mask_first(kLanes));
    const U half = shr(ulane(), 1);
    int64_t count = 0, r = 0;
    for (; r + kStep <= rows; r += kStep) {
        uint32_t a[kLanes], b[kLanes];  // the 64-bit numbers as pairs of words
        __builtin_memcpy(a, start + r, sizeof a);
        __builtin_memcpy(b, start + r + 1, sizeof b);
        const uint32_t differ = bits(eq(load(a), load(b))) ^ all;
        const M rows_of = mask_bits(differ | differ >> 1) & low;
        store_packed(to + count, half + ubcast((uint32_t)r), rows_of);
        count += __builtin_popcount(bits(rows_of));
    }
    for (; r < rows; ++r) {
        to[count] = (uint32_t)r;
        count += start[r + 1] != start[r];
    }
    return count;
}

// Rows first … last - 1 of entries whose features must lie in 0 … n - 1.
inline bool entries_hold(const int64_t* start, int64_t first, int64_t last, const int32_t* feature, int64_t entries,
                         int64_t n) {
    constexpr int64_t kRows = 1024;
    uint32_t rows[kRows + kLanes];
    for (int64_t r0 = first; r0 < last; r0 += kRows) {
        const int64_t count = nonempty_rows(start + r0, last - r0 < kRows ? last - r0 : kRows, rows);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t e0 = start[r0 + rows[i]], e1 = start[r0 + rows[i] + 1];
            if (e0 < 0 || e1 < e0 || e1 > entries) return false;
            int64_t before = -1;
            bool good = true;
            for (int64_t e = e0; e < e1; ++e) {
                good &= feature[e] > before;
                before = feature[e];
            }
            if (!good || before >= n) return false;
        }
    }
    return true;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
