// Weights, codes and gradients of the layer between the caller's layout and those that its products want.
//
//   feature_rows   64 features of weights [m][n] as rows [64][mp];  copy_rows: the same of weights [n][m]
//   pack_lanes     weights of a chunk packed with features across lanes
//   pack_codes     rows [rows][mp] packed with hidden units across lanes and rows as the depth
//   put_tile       a tile [64][mp] of gradients to weights [m][n] or [n][m]
//
// Owner      the members of a team share the panels; a tile or a row is one worker's
// Order      none: nothing is added up but what was there before
#pragma once
#include "cpu/layer/plan.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// to [64][mp] = the features j0 … j0 + 63 of weights [m][n]; what lies beyond the last feature or hidden unit is zero.
template <class T>
inline void feature_rows(const T* weights, const LayerSizes& s, int64_t j0, T* to) {
    using V = typename Lane<T>::Vector;
    constexpr int kStep = Lane<T>::kCount;
    for (int64_t j = 0; j < kWordBits; j += kStep) {
        const int64_t many = most(0, least(kStep, s.n - j0 - j));
        const auto in = Lane<T>::first(many);
        for (int64_t k = 0; k < s.mp; k += kStep) {
            V block[kStep];
            for (int r = 0; r < kStep; ++r) {
                const T* from = weights + (k + r) * s.n + j0 + j;
                block[r] = k + r >= s.m || many == 0 ? Lane<T>::zero()
                           : many == kStep           ? load(from)
                                                     : load_first(from, in);
            }
            transpose(block);
            for (int r = 0; r < kStep; ++r) store(to + (j + r) * s.mp + k, block[r]);
        }
    }
}
// The same of weights [n][m].
template <class T>
inline void copy_rows(const T* weights, const LayerSizes& s, int64_t j0, T* to) {
    constexpr int kStep = Lane<T>::kCount;
    for (int64_t j = 0; j < kWordBits; ++j)
        for (int64_t k = 0; k < s.mp; k += kStep) {
            const auto in = Lane<T>::first(j0 + j < s.n ? s.m - k : 0);
            store(to + j * s.mp + k, load_first(weights + (j0 + j) * s.m + k, in));
        }
}
// Weights [m][features of a chunk] packed for products with features across lanes.
template <class T>
inline void pack_lanes(const T* weights, bool by_feature, const LayerSizes& s, int64_t j0, int64_t j1, T* packed,
                       const Team& team) {
    using V = typename Lane<T>::Vector;
    constexpr int kStep = Lane<T>::kCount;
    const int64_t vectors = blocks_of(j1 - j0, kStep), panels = panel_count(vectors);
    for (int64_t q = team.rank; q < panels; q += team.size) {
        const int64_t v0 = panel_start(vectors, q), v1 = panel_start(vectors, q + 1);
        T* to = packed + v0 * kStep * s.m;
        for (int64_t v = v0; v < v1; ++v) {
            const int64_t j = j0 + v * kStep, many = least(kStep, j1 - j);
            const auto in = Lane<T>::first(many);
            T* column = to + (v - v0) * kStep;
            const int64_t step = (v1 - v0) * kStep;
            if (!by_feature) {
                for (int64_t k = 0; k < s.m; ++k)
                    store(column + k * step,
                          many == kStep ? load(weights + k * s.n + j) : load_first(weights + k * s.n + j, in));
                continue;
            }
            for (int64_t k = 0; k < s.m; k += kStep) {
                const int64_t hidden = least(kStep, s.m - k);
                V block[kStep];
                for (int r = 0; r < kStep; ++r)
                    block[r] =
                        r < many ? load_first(weights + (j + r) * s.m + k, Lane<T>::first(hidden)) : Lane<T>::zero();
                transpose(block);
                for (int64_t r = 0; r < hidden; ++r) store(column + (k + r) * step, block[r]);
            }
        }
    }
}
// rows [rows][mp] packed for products with hidden units across lanes and rows as their depth.
template <class T>
inline void pack_codes(const T* rows, const LayerSizes& s, int64_t n_rows, T* to, const Team& team) {
    constexpr int kStep = Lane<T>::kCount;
    const int64_t vectors = s.mp / kStep, panels = panel_count(vectors);
    for (int64_t b = team.rank; b < blocks_of(n_rows, kRowBlock); b += team.size)
        for (int64_t q = 0; q < panels; ++q) {
            const int64_t v0 = panel_start(vectors, q), v1 = panel_start(vectors, q + 1);
            for (int64_t r = b * kRowBlock; r < least(n_rows, (b + 1) * kRowBlock); ++r)
                for (int64_t v = v0; v < v1; ++v)
                    store(to + v0 * kStep * n_rows + r * (v1 - v0) * kStep + (v - v0) * kStep,
                          load(rows + r * s.mp + v * kStep));
        }
}

// Writes (or adds) the tile's rows to weights [m][n] (across = true) or [n][m].
template <class T>
inline void put_tile(const T* tile, const LayerSizes& s, T* to, bool across, int64_t j0, int64_t many, bool add) {
    using V = typename Lane<T>::Vector;
    constexpr int kStep = Lane<T>::kCount;
    if (!across) {
        for (int64_t j = 0; j < many; ++j)
            for (int64_t k = 0; k < s.m; k += kStep) {
                const auto in = Lane<T>::first(s.m - k);
                T* at = to + (j0 + j) * s.m + k;
                const V v = load(tile + j * s.mp + k);
                store_first(at, add ? load_first(at, in) + v : v, in);
            }
        return;
    }
    for (int64_t k = 0; k < s.m; k += kStep)
        for (int64_t j = 0; j < many; j += kStep) {
            V block[kStep];
            for (int r = 0; r < kStep; ++r) block[r] = load(tile + (j + r) * s.mp + k);
            transpose(block);
            const auto in = Lane<T>::first(many - j);
            for (int64_t r = 0; r < least(kStep, s.m - k); ++r) {
                T* at = to + (k + r) * s.n + j0 + j;
                if (many - j >= kStep)
                    store(at, add ? load(at) + block[r] : block[r]);
                else
                    store_first(at, add ? load_first(at, in) + block[r] : block[r], in);
            }
        }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
