// The outputs of a tile and the way back through them, for few hidden units and many features: one pass over the
// outputs, which are never stored.
//
//   y = g(D h + b), d = dL/dz, and then Σ_rows d hᵀ, Σ_rows d, and dh = Dᵀ d
//
// Layout     decoder and its gradient [m][np], codes [rows][mp], target [rows][np]; dh is summed in lanes [rows][m][lanes]
//            and added up at the end
// Owner      one worker; weights and gradients of two lane groups stay in registers over all rows of the tile
// Zeros      the way back is left out where no output of the two lane groups is active
// Order      a gradient sums its rows in order; dh sums lane groups in order, then lanes by the fixed tree
// Limits     m <= kNarrowHidden, g none or ReLU; a tile of finite data (train_tiles.inl: the stream keeps its bits)
// Roof       3 m + 4 operations on a lane group of outputs of a row, of which 2 m + 1 are left out where all are inactive;
//            2 m loads and stores of dh beside them, in L1
#pragma once
#include "common/loss.h"
#include "cpu/resident/products.inl"
#include "cpu/simd/lanes.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kNarrowHidden = 4;

struct NarrowPass {
    const float *d, *b, *importance;  // [m][np] [np] [np]
    const float *h, *target;          // [rows][mp] [rows][np]
    float *d_gradient, *b_gradient;   // [m][np] [np], added to
    float* back;                      // [rows][m][kLanes], added to: dh by lanes
    int64_t rows, mp, np;
    FloorActivation<F> activation;
    AnyLoss loss_function;
    uint32_t target_bits;
    F loss;
};

// kV neighbouring lane groups from `lane` on.
template <int kM, int kV>
inline void narrow_groups(NarrowPass& p, int64_t lane) {
    F w[kM][kV], g[kM][kV], bias[kV], weight[kV], bias_g[kV], loss[kV];
    for (int v = 0; v < kV; ++v) {
        const int64_t at = lane + v * kLanes;
        bias[v] = load(p.b + at), weight[v] = load(p.importance + at), bias_g[v] = load(p.b_gradient + at);
        loss[v] = fzero();
        for (int k = 0; k < kM; ++k) w[k][v] = load(p.d + k * p.np + at), g[k][v] = load(p.d_gradient + k * p.np + at);
    }
    for (int64_t r = 0; r < p.rows; ++r) {
        F h[kM], y[kV], back[kV];
#pragma GCC unroll 4
        for (int k = 0; k < kM; ++k) h[k] = bcast(p.h[r * p.mp + k]);
        uint32_t any = 0;
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) {
            y[v] = bias[v];
#pragma GCC unroll 4
            for (int k = 0; k < kM; ++k) y[v] = fmadd(h[k], w[k][v], y[v]);
            const F target = and_bits(load(p.target + r * p.np + lane + v * kLanes), p.target_bits);
            F slope;
            const F error = p.activation.value(y[v], slope) - target;
            const F weighted = p.loss_function.add_to(loss[v], error, weight[v]);
            const M on = p.activation.on(y[v], slope);
            any |= bits(on);
            back[v] = keep(on, weighted);
        }
        if (!any) continue;
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) bias_g[v] = bias_g[v] + back[v];
#pragma GCC unroll 4
        for (int k = 0; k < kM; ++k) {
            float* at = p.back + (r * kM + k) * kLanes;
            F sum = load(at);
#pragma GCC unroll 2
            for (int v = 0; v < kV; ++v) {
                g[k][v] = fmadd(h[k], back[v], g[k][v]);
                sum = fmadd(w[k][v], back[v], sum);
            }
            store(at, sum);
        }
    }
    for (int v = 0; v < kV; ++v) {
        const int64_t at = lane + v * kLanes;
        store(p.b_gradient + at, bias_g[v]);
        for (int k = 0; k < kM; ++k) store(p.d_gradient + k * p.np + at, g[k][v]);
        p.loss = p.loss + loss[v];
    }
}

// All outputs; then dh [rows][mp] (pads 0) from its lanes.
template <int kM>
inline void narrow_outputs(NarrowPass& p, float* dh) {
    for (int64_t i = 0; i < p.rows * kM * kLanes; i += kLanes) store(p.back + i, fzero());
    int64_t lane = 0;
    for (; lane + 2 * kLanes <= p.np; lane += 2 * kLanes) narrow_groups<kM, 2>(p, lane);
    if (lane < p.np) narrow_groups<kM, 1>(p, lane);
    for (int64_t r = 0; r < p.rows; ++r) {
        for (int64_t k = 0; k < p.mp; k += kLanes) store(dh + r * p.mp + k, fzero());
        for (int k = 0; k < kM; ++k) dh[r * p.mp + k] = fsum(load(p.back + (r * kM + k) * kLanes));
    }
}

inline void narrow_outputs(NarrowPass& p, int64_t n_hidden, float* dh) {
    switch (n_hidden) {
        case 1: return narrow_outputs<1>(p, dh);
        case 2: return narrow_outputs<2>(p, dh);
        case 3: return narrow_outputs<3>(p, dh);
        default: return narrow_outputs<4>(p, dh);
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
