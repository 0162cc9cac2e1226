// The step of several tiny models at once, a model to a lane: what train_columns.inl does for one.
//
//   h = f(W x), y = g(Wᵀ h + b), loss = Σ_j I_j (t_j − y_j)², gradients of W and b, over a batch
//
// Layout     everything of kLanes models is a vector: weights [n][m], bias [n], importance [n], gradients and moments
//            [n m + n], x [columns][n] (rare_side_by_side.inl)
// Order      the sums of the columns' loop: column c adds to lane c mod kLanes there, and the lanes are added by a fixed
//            tree. So here the columns c = q, q + kLanes, … of each q follow one another, and their sums meet in that
//            tree: a model has the bits that it has by itself
// Owner      one worker
// Limits     side_by_side_pass_for: tied weights, ReLU or none, n·m up to 14; the listed shapes keep their sums in
//            registers
// Roof       5 n m fused multiply-adds and about 7 n elementwise operations for a column of all models, which is what a
//            lane group of sixteen columns costs there
// Twin       columns_pass, for one model
#pragma once
#include "cpu/resident/columns_pass.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kSideBySideWeights = 14;  // from 16 on a model by itself is faster

// What a pass reads and writes; a vector for kLanes models.
struct SideBySidePass {
    int n, rows;                               // features; columns of the model that has most
    U columns;                                 // of each
    const float* x;                            // [rows][n]
    const float *weights, *bias, *importance;  // [n][m] [n] [n]
    int32_t hidden_activation, output_activation;
    AnyLoss loss_function;
    uint32_t target_bits;
    float* gradient;  // [n m + n]
    F* room;          // [7][n m + n + n] sums under way
    F loss;
};

// Puts the sum of one more q onto a pile on which sums of equally many q meet: the tree of kSumOrder.
TOYKERN_INLINE int pile_up(F* pile, int height, int t, const F* sums, int count) {
    F* top = pile + height * count;
    if (!(t & 1)) {
        for (int i = 0; i < count; ++i) top[i] = sums[i];
        return height + 1;
    }
    top -= count;
    for (int i = 0; i < count; ++i) top[i] = top[i] + sums[i];
    for (int s = t >> 1; s & 1; s >>= 1) {
        for (int i = 0; i < count; ++i) top[i - count] = top[i - count] + top[i];
        top -= count;
        --height;
    }
    return height;
}

// Σ over q of sums[q], by the tree of fsum.
inline F fsum_of(const F* sums) {
    F level[kLanes];
    for (int t = 0; t < kLanes; ++t) level[t] = sums[kFsumOrder[t]];
    for (int count = kLanes / 2; count; count /= 2)
        for (int t = 0; t < count; ++t) level[t] = level[2 * t] + level[2 * t + 1];
    return level[0];
}

// kN = 0: n at run time.
template <int kN, int kM>
void side_by_side_pass(SideBySidePass& a) {
    constexpr int kGroups = kColumnGroups<kN, kM, true>;
    constexpr int kS = kN ? kN * kM + kN : 1, kR = kN ? kN : 1;
    const int n = kN ? kN : a.n, count = n * kM + n;
    F local[kS], residual[kR];
    F* pile = a.room;  // [5][count]
    F* sums = kN ? local : a.room + 5 * count;
    F* bias_sum = sums + n * kM;
    F* d = kN ? residual : a.room + 6 * count;
    const FloorActivation<F> hidden = FloorActivation<F>::of(a.hidden_activation, 0.0),
                             output = FloorActivation<F>::of(a.output_activation, 0.0);
    F loss[kGroups][kLanes];
    int height = 0;
    for (int t = 0; t < kLanes; ++t) {
        const int q = kSumOrder[t];
#pragma GCC unroll 32
        for (int i = 0; i < count; ++i) sums[i] = fzero();
        for (int g = 0; g < kGroups; ++g) loss[g][q] = fzero();
        F lost[kGroups];
        for (int g = 0; g < kGroups; ++g) lost[g] = fzero();
        for (int c = q, g = 0; c < a.rows; c += kLanes, g = (g + 1) % kGroups) {
            const float *x = a.x + (int64_t)c * n * kLanes, *weights = a.weights, *bias = a.bias,
                        *importance = a.importance;
            // Not to be kept in registers, which the sums need: nobody is to see that these are the same each time.
            asm("" : "+r"(weights), "+r"(bias), "+r"(importance));
            const M there = lt(ubcast((uint32_t)c), a.columns);
            F h[kM], dh[kM];
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[k] = dh[k] = fzero();
#pragma GCC unroll 8
            for (int j = 0; j < n; ++j)
#pragma GCC unroll 8
                for (int k = 0; k < kM; ++k)
                    h[k] = fmadd(load(weights + (j * kM + k) * kLanes), load(x + j * kLanes), h[k]);
            F slope;
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) h[k] = hidden.value(h[k], slope);
#pragma GCC unroll 8
            for (int j = 0; j < n; ++j) {
                F y = load(bias + j * kLanes);
#pragma GCC unroll 8
                for (int k = 0; k < kM; ++k) y = fmadd(load(weights + (j * kM + k) * kLanes), h[k], y);
                const F r = keep(there, output.value(y, slope) - and_bits(load(x + j * kLanes), a.target_bits));
                y = output.back(y, slope, a.loss_function.add_to(lost[g], r, load(importance + j * kLanes)));
                d[j] = y;
                bias_sum[j] = bias_sum[j] + y;
#pragma GCC unroll 8
                for (int k = 0; k < kM; ++k) dh[k] = fmadd(load(weights + (j * kM + k) * kLanes), y, dh[k]);
            }
#pragma GCC unroll 8
            for (int k = 0; k < kM; ++k) dh[k] = hidden.back(h[k], slope, dh[k]);
#pragma GCC unroll 8
            for (int j = 0; j < n; ++j)
#pragma GCC unroll 8
                for (int k = 0; k < kM; ++k) {
                    F& e = sums[j * kM + k];
                    e = fmadd(d[j], h[k], e);
                    e = fmadd(load(x + j * kLanes), dh[k], e);
                }
        }
        for (int g = 0; g < kGroups; ++g) loss[g][q] = lost[g];
        height = pile_up(pile, height, t, sums, count);
    }
    for (int i = 0; i < count; ++i) store(a.gradient + i * kLanes, fzero() + pile[i]);
    for (int g = 1; g < kGroups; ++g)
        for (int q = 0; q < kLanes; ++q) loss[0][q] = loss[0][q] + loss[g][q];
    a.loss = fsum_of(loss[0]);
}

using SideBySidePassFunction = void (*)(SideBySidePass&);

// Null where the shape is not among them. The listed ones are those of columns_pass_of, so that sums have its order.
inline SideBySidePassFunction side_by_side_pass_for(const Network& net) {
    if (!net.tied || net.sparse || !has_floors_alone(net)) return nullptr;
    const int64_t n = net.n_features, m = net.n_hidden;
    if (n == 2 && m == 1) return side_by_side_pass<2, 1>;
    if (n == 3 && m == 1) return side_by_side_pass<3, 1>;
    if (n == 3 && m == 2) return side_by_side_pass<3, 2>;
    if (n == 4 && m == 2) return side_by_side_pass<4, 2>;
    if (n == 5 && m == 2) return side_by_side_pass<5, 2>;
    if (n == 6 && m == 2) return side_by_side_pass<6, 2>;
    if (n * m > kSideBySideWeights) return nullptr;
    return m == 1 ? side_by_side_pass<0, 1> : m == 2 ? side_by_side_pass<0, 2> : nullptr;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
