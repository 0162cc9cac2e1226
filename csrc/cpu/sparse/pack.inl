// A tile of samples, transposed into a panel and back: panel[f][s] = x[s][f], 64 samples side by side.
//
// A panel lets a product read the 64 samples of one feature as whole vectors, whichever feature a connection names.
// x [samples][features] as stored; panel [features][64] in the type of the computation, samples beyond the tile's 0.
// Squares of kN x kN through registers; what does not fill one goes number by number. Bound by memory: each number is
// read and written once.
#pragma once
#include "cpu/sparse/lanes.inl"
#include "toykern/sparse.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kAhead = 64;  // numbers: no prefetcher of the processor follows 64 samples at once

template <class T, bool kMasked>
inline void pack_tile(const SparsePack& p, int64_t feature0, int64_t feature1) {
    using A = typename Stored<T>::Computed;
    using V = typename Lane<A>::Vector;
    constexpr int kN = Lane<A>::kCount;
    const T* x = static_cast<const T*>(p.x);
    const T* mask = static_cast<const T*>(p.unless_0);
    A* panel = static_cast<A*>(p.panel);
    const int64_t stride = p.features, samples = p.samples;
    int64_t f = feature0;
    for (; f + kN <= feature1; f += kN)
        for (int64_t s = 0; s < kPanelSamples; s += kN) {
            V square[kN];
#pragma GCC unroll 16
            for (int i = 0; i < kN; ++i) {
                if (s + i >= samples) {
                    square[i] = bcast((A)0);
                    continue;
                }
                const int64_t at = (s + i) * stride + f;
                __builtin_prefetch(x + at + kAhead);
                square[i] = load_stored(x + at);
                if (kMasked) square[i] = where_nonzero(load_stored(mask + at), square[i]);
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kN; ++i) store(panel + (f + i) * kPanelSamples + s, square[i]);
        }
    for (; f < feature1; ++f)
        for (int64_t s = 0; s < kPanelSamples; ++s) {
            const bool live = s < samples && (!kMasked || Stored<T>::get(mask[s * stride + f]) != (A)0);
            panel[f * kPanelSamples + s] = live ? Stored<T>::get(x[s * stride + f]) : (A)0;
        }
}

template <class T>
void sparse_pack(const SparsePack& p, int64_t feature0, int64_t feature1) {
    if (p.unless_0)
        pack_tile<T, true>(p, feature0, feature1);
    else
        pack_tile<T, false>(p, feature0, feature1);
}

// The other way: rows [count][64] of results to out[s · stride + r], r < count <= kRowsOut.
//
// 64 rows at once, through a buffer: a sample's numbers leave as a run of neighbouring cache lines. Squares stored as
// they come out of the registers would go to one line of each sample after another, and where a sample is a multiple of
// 4 KiB all of these share one set of the cache, which is five times slower. The buffer's own rows are a line longer
// for the same reason.
constexpr int kRowsOut = 64;
template <class T>
TOYKERN_INLINE void unpack_rows(const typename Stored<T>::Computed* rows, int64_t count, int64_t samples, T* out,
                                int64_t stride, bool past_caches) {
    using A = typename Stored<T>::Computed;
    using V = typename Lane<A>::Vector;
    constexpr int kN = Lane<A>::kCount, kPitch = kRowsOut + 64 / (int)sizeof(A);
    alignas(64) A turned[kN * kPitch];
    const int64_t whole = count / kN * kN;
    for (int64_t s = 0; s < samples; s += kN) {
        for (int64_t r = 0; r < whole; r += kN) {
            V square[kN];
#pragma GCC unroll 16
            for (int k = 0; k < kN; ++k) square[k] = load(rows + (r + k) * kPanelSamples + s);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kN; ++i) store(turned + i * kPitch + r, square[i]);
        }
        const int64_t live = samples - s < kN ? samples - s : kN;
        for (int64_t i = 0; i < live; ++i) {
            T* to = out + (s + i) * stride;
            for (int64_t r = 0; r < whole; r += kN) {
                __asm__ volatile(
                    "");  // or GCC sees a copy, and makes it a `rep movs`: ten times slower for so few bytes
                const V numbers = load(turned + i * kPitch + r);
                if (past_caches)
                    stream_stored(to + r, numbers);
                else
                    store_stored(to + r, numbers);
            }
            for (int64_t r = whole; r < count; ++r) to[r] = Stored<T>::put(rows[r * kPanelSamples + s + i]);
        }
    }
}

template <class T>
void sparse_widen(const void* stored, void* computed, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        static_cast<typename Stored<T>::Computed*>(computed)[i] = Stored<T>::get(static_cast<const T*>(stored)[i]);
}

template <class T>
void sparse_narrow(const void* computed, void* stored, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        static_cast<T*>(stored)[i] = Stored<T>::put(static_cast<const typename Stored<T>::Computed*>(computed)[i]);
}

inline bool sparse_within(const int32_t* index, int64_t count, int64_t limit) {
    uint32_t most = 0;  // a negative one is large
    for (int64_t i = 0; i < count; ++i) most = most > (uint32_t)index[i] ? most : (uint32_t)index[i];
    return count == 0 || (int64_t)most < limit;
}

template <class T>
void sparse_gather(const void* stored, const int32_t* slot, void* computed, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        static_cast<typename Stored<T>::Computed*>(computed)[i] =
            Stored<T>::get(static_cast<const T*>(stored)[slot[i]]);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
