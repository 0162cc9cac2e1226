// The gradient of the values, at existing connections only: dvalue[i] = Σ_s dy[r][s] · x[column[i]][s]; dbias[r] = Σ_s
// dy[r][s].
//
// A sampled product (SDDMM): of the dense gradient dYᵀ X, the entries that the topology names.
//
// Layout     x [tiles][in][64], dy [tiles][out][64] panels, zero beyond the batch
// Owner      a row's 64 numbers of dy stay in registers over the row's connections; sixteen sums over lanes are made at
//            once
// Order      lanes within a vector as a tree, vectors of a tile in order, tiles in order: from the level and the batch
//            size
// Limits     none
// Roof       a connection costs, for each vector of samples, one load and one multiply-add, and for each tile a
//            sixteenth of 45 shuffles and additions and 12 bytes of L2 traffic
#pragma once
#include "cpu/sparse/pack.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kGroup = 16;  // connections whose lanes are summed at once

// One tile: kV vectors of samples.
template <class A, int kV>
inline void values_gradient_tile(const SparseValuesGradient& g, const A* x, const A* dy, int64_t row0, int64_t row1,
                                 bool add) {
    using V = typename Lane<A>::Vector;
    constexpr int kN = Lane<A>::kCount;
    A* dvalue = static_cast<A*>(g.dvalue);
    A* dbias = static_cast<A*>(g.dbias);
    for (int64_t r = row0; r < row1; ++r) {
        V d[kV];
#pragma GCC unroll 16
        for (int v = 0; v < kV; ++v) d[v] = load(dy + r * kPanelSamples + v * kN);
        alignas(64) A sums[kGroup];
        if (dbias) {
            V all = d[0];
#pragma GCC unroll 16
            for (int v = 1; v < kV; ++v) all = all + d[v];
            sum_lanes(&all, 1, sums);
            dbias[r] = add ? dbias[r] + sums[0] : sums[0];
        }
        if (!dvalue) continue;
        for (int64_t i = g.start[r]; i < g.start[r + 1]; i += kGroup) {
            const int64_t count = g.start[r + 1] - i < kGroup ? g.start[r + 1] - i : kGroup;
            V product[kGroup];
            const auto one = [&](int64_t k) __attribute__((always_inline)) {
                const A* at = x + (int64_t)g.column[i + k] * kPanelSamples;
                V sum = d[0] * load(at);
#pragma GCC unroll 16
                for (int v = 1; v < kV; ++v) sum = fmadd(d[v], load(at + v * kN), sum);
                return sum;
            };
            if (count == kGroup) {
#pragma GCC unroll 16
                for (int k = 0; k < kGroup; ++k) product[k] = one(k);
                sum_lanes(product, kGroup, sums);
            } else {
                for (int64_t k = 0; k < count; ++k) product[k] = one(k);
                sum_lanes(product, (int)count, sums);
            }
            for (int64_t k = 0; k < count; ++k) dvalue[i + k] = add ? dvalue[i + k] + sums[k] : sums[k];
        }
    }
}

template <class T>
void sparse_values_gradient(const SparseValuesGradient& g, int64_t row0, int64_t row1) {
    using A = typename Stored<T>::Computed;
    constexpr int kN = Lane<A>::kCount, kAll = kPanelSamples / kN;
    const A* x = static_cast<const A*>(g.x);
    const A* dy = static_cast<const A*>(g.dy);
    for (int64_t s = 0; s == 0 || s < g.samples; s += kPanelSamples) {
        const int64_t vectors = (g.samples - s + kN - 1) / kN;
        if (vectors <= 1)
            values_gradient_tile<A, 1>(g, x, dy, row0, row1, g.add || s > 0);
        else if (vectors <= 2)
            values_gradient_tile<A, 2>(g, x, dy, row0, row1, g.add || s > 0);
        else if (vectors <= kAll / 2)
            values_gradient_tile<A, kAll / 2>(g, x, dy, row0, row1, g.add || s > 0);
        else
            values_gradient_tile<A, kAll>(g, x, dy, row0, row1, g.add || s > 0);
        x += g.in_features * kPanelSamples;
        dy += g.out_features * kPanelSamples;
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
