// The products of the Gram form, once a batch: from the weights to G, and from A to the gradients of the weights.
//
//   Gᵀ = Eᵀ Dᵀ, and from A = Σ x dᵀ: dW = W (A + Aᵀ); untied dD = Aᵀ Eᵀ, dE = Dᵀ Aᵀ
//
// Layout     Gᵀ and A [n][np], with room for rows up to a whole lane group, which are zeros in A; A of the first of
//            `parts` parts, the others' at `stride`
// Zeros      tied, G is symmetric: rows are computed from the diagonal on, and turned over
// Owner      the team, in blocks of rows or of lane groups; everybody meets between what depends on each other
// Order      an element is one sum over k (or i) in order, whatever the team's size
// Roof       tied n² m / 2 multiply-adds for G and n² m for dW, and two turns of 16 × 16 blocks (v4) for n² elements;
//            untied 3 n² m
#pragma once
#include "cpu/resident/connections.inl"
#include "cpu/resident/products.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

inline int64_t whole_groups(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Rows i … of a lane group, right of its block on the diagonal, to the columns below it.
inline void turn_over(int64_t n, int64_t np, int64_t i, float* gt) {
    for (int64_t j = i + kLanes; j < n; j += kLanes) {
        F block[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) block[r] = load(gt + (i + r) * np + j);
        transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) store(gt + (j + r) * np + i, block[r]);
    }
}

// et [n][mp], d [m][np] → gt.
inline void gram_of_weights(const float* et, const float* d, bool tied, int64_t n, int64_t m, int64_t np, int64_t mp,
                            float* gt, const Team& team) {
    for (int64_t i = team.rank * kLanes; i < n; i += team.size * kLanes) {
        const int64_t rows = n - i < kLanes ? n - i : kLanes, from = tied ? i : 0;
        multiply_all<float>({et + i * mp, mp, 1, {d + from, np, m, nullptr}, gt + i * np + from, np, false}, rows,
                            np - from, nullptr);
        if (tied) turn_over(n, np, i, gt);
    }
}

// Σ over connections e from `first` on of weight[other[e] · stride] · from[other[e] · row + lane] → to[lane], the lanes of
// kV lane groups.
template <int kV>
TOYKERN_INLINE void sum_connected(const uint32_t* other, const uint32_t* end, const float* weight, int64_t stride,
                                  const float* from, int64_t row, float* to) {
    F sum[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[v] = fzero();
    for (; other != end; ++other) {
        const F w = bcast(weight[*other * stride]);
        const float* const at = from + *other * row;
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) sum[v] = fmadd(w, load(at + v * kLanes), sum[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(to + v * kLanes, sum[v]);
}

// The same over the connections of a sparse tied network: an element is the same sum without its zeros. A panel of lane
// groups goes with all rows above its diagonal, so that it stays in L1.
inline void gram_of_connections(const Connections& c, const float* d, int64_t n, int64_t np, float* gt,
                                const Team& team) {
    constexpr int64_t kPanel = 4 * kLanes;
    for (int64_t lane = 0; lane < np; lane += kPanel)
        for (int64_t i = team.rank * kLanes; i < n && i < lane + kPanel; i += team.size * kLanes)
            for (int64_t r = i; r < n && r < i + kLanes; ++r) {
                const int64_t from = lane < i ? i : lane, to = lane + kPanel < np ? lane + kPanel : np;
                const uint32_t *const first = c.hidden + c.start[r], *const last = c.hidden + c.start[r + 1];
                switch ((to - from) / kLanes) {
                    case 1: sum_connected<1>(first, last, d + r, np, d + from, np, gt + r * np + from); break;
                    case 2: sum_connected<2>(first, last, d + r, np, d + from, np, gt + r * np + from); break;
                    case 3: sum_connected<3>(first, last, d + r, np, d + from, np, gt + r * np + from); break;
                    case 4: sum_connected<4>(first, last, d + r, np, d + from, np, gt + r * np + from); break;
                }
            }
    for (int64_t i = team.rank * kLanes; i < n; i += team.size * kLanes) turn_over(n, np, i, gt);
}

// What dW needs of A for `vectors` lane groups from `lane` on, as a panel [n][vectors · kLanes]: A + Aᵀ.
inline void gram_panel(const float* a, int64_t stride, int parts, int64_t n, int64_t np, int64_t lane, int64_t vectors,
                       float* panel) {
    const int64_t width = vectors * kLanes;
    for (int64_t v = 0; v < vectors; ++v) {
        const int64_t j = lane + v * kLanes;
        for (int64_t i = 0; i < n; i += kLanes) {
            F block[kLanes];
#pragma GCC unroll 16
            for (int r = 0; r < kLanes; ++r) block[r] = j < n ? load(a + (j + r) * np + i) : fzero();
            for (int part = 1; part < parts && j < n; ++part)
#pragma GCC unroll 16
                for (int r = 0; r < kLanes; ++r) block[r] = block[r] + load(a + part * stride + (j + r) * np + i);
            transpose(block);
            for (int part = 0; part < parts; ++part)
#pragma GCC unroll 16
                for (int r = 0; r < kLanes; ++r) block[r] = block[r] + load(a + part * stride + (i + r) * np + j);
#pragma GCC unroll 16
            for (int r = 0; r < kLanes; ++r) store(panel + (i + r) * width + v * kLanes, block[r]);
        }
    }
}

constexpr int64_t kNarrowPanel = 192;  // features: three lane groups of more of them do not stay in L1

// dW [m][np] from w [m][np]; room [whole_groups(n)][np] is the team's. Nobody waits for it at the end. `connections`: those
// of a sparse network, or null; dW is whole all the same.
inline void gram_tied_gradient(const float* a, int64_t stride, int parts, const float* w,
                               const Connections* connections, int64_t n, int64_t m, int64_t np, float* room, float* dw,
                               const Team& team) {
    const int64_t vectors = np / kLanes, panels = panel_count(vectors);
    for (int64_t i = team.rank; i < panels; i += team.size) {
        const int64_t v0 = panel_start(vectors, i), v1 = panel_start(vectors, i + 1), lane = v0 * kLanes;
        float* const panel = room + lane * whole_groups(n);
        gram_panel(a, stride, parts, n, np, lane, v1 - v0, panel);
        const int64_t width = (v1 - v0) * kLanes;
        if (connections) {
            for (int64_t v = 0; v < v1 - v0;) {
                const bool three = n <= kNarrowPanel && v1 - v0 == 3;
                for (int64_t k = 0; k < m; ++k) {
                    const uint32_t *const first = connections->feature + connections->unit_start[k],
                                          *const last = connections->feature + connections->unit_start[k + 1];
                    const float* const from = panel + v * kLanes;
                    float* const to = dw + k * np + lane + v * kLanes;
                    if (three)
                        sum_connected<3>(first, last, w + k * np, 1, from, width, to);
                    else
                        sum_connected<1>(first, last, w + k * np, 1, from, width, to);
                }
                v += three ? 3 : 1;
            }
            continue;
        }
        Product p = {w, np, 1, {panel, width, n, nullptr}, dw + lane, np, false};
        for_blocks<ProductBlock>(m, width, p);
    }
}

// dD [m][np] and dE [n][mp]; A of all parts is added up in the first one's.
inline void gram_untied_gradients(float* a, int64_t stride, int parts, const float* et, const float* dt, int64_t n,
                                  int64_t m, int64_t np, int64_t mp, float* dd, float* de, const Team& team) {
    const int64_t i0 = team.rank * n / team.size, i1 = (team.rank + 1) * n / team.size;
    for (int part = 1; part < parts; ++part)
        for (int64_t at = i0 * np; at < i1 * np; at += kLanes)
            store(a + at, load(a + at) + load(a + part * stride + at));
    team.meet();
    for (int64_t k = team.rank * kLanes; k < m; k += team.size * kLanes)
        multiply_all<float>({et + k, 1, mp, {a, np, n, nullptr}, dd + k * np, np, false},
                            m - k < kLanes ? m - k : kLanes, np, nullptr);
    if (i1 > i0)
        multiply_all<float>({a + i0 * np, np, 1, {dt, mp, n, nullptr}, de + i0 * mp, mp, false}, i1 - i0, mp, nullptr);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
