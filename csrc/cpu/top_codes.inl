// Top-k of a row of codes, for every loop that has it.
//
// Order      of equal codes the first stays; a NaN is the largest
// Cost       m comparisons, and log k a code that is kept for a while
#pragma once
#include "cpu/simd/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// The k largest stay (NaN is largest; of equal ones the first), the others become 0; gate = 1 where one stays. By a
// heap of those kept, the least on top.
template <class T>
inline void keep_largest(T* h, int64_t m, int64_t mp, int64_t k, int32_t* heap, T* gate) {
    const auto before = [&](int32_t a, int32_t b) {  // a is to go before b
        const bool a_nan = h[a] != h[a], b_nan = h[b] != h[b];
        if (a_nan || b_nan) return a_nan == b_nan ? a > b : b_nan;
        return h[a] != h[b] ? h[a] < h[b] : a > b;
    };
    const auto sink = [&](int64_t i) {
        for (int64_t child; (child = 2 * i + 1) < k; i = child) {
            if (child + 1 < k && before(heap[child + 1], heap[child])) ++child;
            if (!before(heap[child], heap[i])) return;
            const int32_t swapped = heap[i];
            heap[i] = heap[child];
            heap[child] = swapped;
        }
    };
    for (int64_t i = 0; i < k; ++i) heap[i] = (int32_t)i;
    for (int64_t i = k / 2; i-- > 0;) sink(i);
    for (int64_t i = k; i < m; ++i)
        if (before(heap[0], (int32_t)i)) {
            heap[0] = (int32_t)i;
            sink(0);
        }
    for (int64_t i = 0; i < mp; ++i) gate[i] = (T)0;
    for (int64_t i = 0; i < k; ++i) gate[heap[i]] = (T)1;
    for (int64_t i = 0; i < mp; ++i)
        if (gate[i] == (T)0) h[i] = (T)0;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
