// The Gram form of the step for linear codes and rare features: what a sample costs does not depend on m.
//
//   G = D E once a batch, y = g(G x + b), A = Σ x dᵀ over the batch (d the gradient at y), and then
//   dD = Aᵀ Eᵀ, dE = Dᵀ Aᵀ; tied, with W = E = Dᵀ, dW = W (A + Aᵀ)
//
// Layout     G as Gᵀ [n][np]: row i is what one unit of feature i adds to y; A [n][np] likewise, a gradient of each part
// Owner      G and S = A (tied: A + Aᵀ), summed over parts, belong to the team, in blocks of rows; A to one worker a part
// Zeros      an entry costs a row of Gᵀ and a row of A; a lane group of outputs that are all inactive costs nothing
// Order      entries in the order of their samples; a function of shape, level and the model's own data
// Limits     f = none; rare features without noise (lists of entries); n ≤ kGramMaxFeatures, so that both matrices stay
//            in L2; forms.inl says where it is taken
// Roof       2 n fused multiply-adds an entry, some ten elementwise operations an output of a non-empty sample, and the
//            products of gram_products.inl once a batch
#pragma once
#include "common/loss.h"
#include "cpu/resident/forms.inl"
#include "cpu/resident/products.inl"
#include "cpu/simd/lanes.h"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// A sample's outputs go by panels of lane groups that stay in registers from the first entry to the gradient. Samples are
// sorted by their number of entries first, since a core mispredicts the end of every short loop.
constexpr int kGramPanel = kLanes == 16 ? 6 : 3;
constexpr int64_t kGramTileRows = 256;
constexpr int kGramKinds = 16;  // 1, 2, … entries; the last is for more

struct GramPass {
    const float *gt, *b, *importance;  // [n][np] [np] [np], each from the panel's first lane on
    float *a, *bias_g;                 // [n][np] [np], likewise
    int64_t np;
    const uint32_t* feature;  // [entries] by sample
    const float* value;       // [entries]
    const uint32_t* start;    // [rows + 1] a sample's first entry
    AnyLoss loss_function;
    uint32_t target_bits;
    int64_t first_lane;
    double loss;
};

// kC: entries of every sample in hand; 0: `many` of them, or as many as each has if that is 0 too.
template <int kV, int kC, class A>
inline void gram_samples(GramPass& p, const uint32_t* sample, int64_t count, int64_t many, const A& output) {
    constexpr bool kHeld = 3 * kV <= kGramPanel + 3;  // biases, importances and pointers stay in registers, too
    const GramPass copy = p;
    const GramPass& q = kHeld ? copy : p;
    const int64_t np = q.np;
    F sum[kV], loss[kV], bias[kV], weight[kV];
    U lane[kV];
#pragma GCC unroll 6
    for (int v = 0; v < kV; ++v) {
        sum[v] = load(p.bias_g + v * kLanes);
        lane[v] = ulane() + ubcast((uint32_t)(p.first_lane + v * kLanes));
        loss[v] = fzero();
        if (kHeld) bias[v] = load(p.b + v * kLanes), weight[v] = load(p.importance + v * kLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
        const int64_t first = q.start[sample[i]];
        const int64_t end = first + (kC ? kC : many ? many : (int64_t)q.start[sample[i] + 1] - first);
        F y[kV], error[kV], slope[kV];
#pragma GCC unroll 6
        for (int v = 0; v < kV; ++v) y[v] = kHeld ? bias[v] : load(q.b + v * kLanes);
#pragma GCC unroll 4
        for (int64_t e = first; e < end; ++e) {
            const F x = bcast(q.value[e]);
            const float* g = q.gt + (int64_t)q.feature[e] * np;
#pragma GCC unroll 6
            for (int v = 0; v < kV; ++v) y[v] = fmadd(x, load(g + v * kLanes), y[v]);
        }
#pragma GCC unroll 6
        for (int v = 0; v < kV; ++v) error[v] = output.value(y[v], slope[v]);
#pragma GCC unroll 4
        for (int64_t e = first; e < end; ++e) {
            const F t = and_bits(bcast(q.value[e]), q.target_bits);
            const U f = ubcast(q.feature[e]);
#pragma GCC unroll 6
            for (int v = 0; v < kV; ++v) error[v] = sub_where(eq(f, lane[v]), error[v], t);
        }
#pragma GCC unroll 6
        for (int v = 0; v < kV; ++v) {
            y[v] = output.back(
                y[v], slope[v],
                q.loss_function.add_to(loss[v], error[v], kHeld ? weight[v] : load(q.importance + v * kLanes)));
            sum[v] = sum[v] + y[v];
        }
#pragma GCC unroll 4
        for (int64_t e = first; e < end; ++e) {
            const F x = bcast(q.value[e]);
            float* a = q.a + (int64_t)q.feature[e] * np;
#pragma GCC unroll 6
            for (int v = 0; v < kV; ++v) store(a + v * kLanes, fmadd(x, y[v], load(a + v * kLanes)));
        }
    }
#pragma GCC unroll 6
    for (int v = 0; v < kV; ++v) store(p.bias_g + v * kLanes, sum[v]);
    F whole = loss[0];
#pragma GCC unroll 6
    for (int v = 1; v < kV; ++v) whole = whole + loss[v];
    p.loss += (double)fsum(whole);
}

// The samples of a tile, sorted.
struct GramTile {
    static constexpr int64_t kRoom = kGramTileRows + kLanes;  // whole vectors are written
    uint32_t *start, *sample;                                 // [kGramTileRows + 1], [kGramKinds][kRoom]
    int64_t count[kGramKinds];

    void carve(Workspace& w, bool there) {
        start = w.take<uint32_t>(there ? (size_t)kGramTileRows + 1 + kLanes : 0);
        sample = w.take<uint32_t>(there ? (size_t)(kGramKinds * kRoom) : 0);
    }
    // `row` counts the samples of the entries.
    void sort(int64_t rows, int64_t entries, const uint32_t* row) {
        U before = ubcast(0xFFFFFFFFu);
        int64_t opened = 0;
        for (int64_t i = 0; i < entries; i += kLanes) {
            const U at = load(row + i);
            const M opens =
                and_not(mask_first((int)(entries - i < kLanes ? entries - i : kLanes)), eq(at, shift_in(at, before)));
            store_packed(start + opened, ulane() + ubcast((uint32_t)i), opens);
            opened += __builtin_popcount(bits(opens));
            before = at;
        }
        start[rows] = (uint32_t)entries;
        for (int64_t& c : count) c = 0;
        int64_t ones = 0, twos = 0;
        for (int64_t r = 0; r < rows; r += kLanes) {
            const U many = load(start + r + 1) - load(start + r), id = ulane() + ubcast((uint32_t)r);
            const M valid = mask_first((int)(rows - r < kLanes ? rows - r : kLanes));
            const M one = valid & eq(many, ubcast(1u)), two = valid & eq(many, ubcast(2u));
            store_packed(sample + ones, id, one);
            store_packed(sample + kRoom + twos, id, two);
            ones += __builtin_popcount(bits(one)), twos += __builtin_popcount(bits(two));
            for (uint32_t left = bits(and_not(and_not(valid, one), two)); left; left &= left - 1) {
                const int64_t at = r + __builtin_ctz(left), entries_of = (int64_t)start[at + 1] - start[at];
                const int64_t kind = (entries_of < kGramKinds ? entries_of : kGramKinds) - 1;
                sample[kind * kRoom + count[kind]++] = (uint32_t)at;
            }
        }
        count[0] = ones, count[1] = twos;
    }
    template <int kV, class A>
    void panel(GramPass& p, const A& output) const {
        gram_samples<kV, 1>(p, sample, count[0], 1, output);
        gram_samples<kV, 2>(p, sample + kRoom, count[1], 2, output);
        for (int kind = 2; kind < kGramKinds; ++kind)
            if (count[kind])
                gram_samples<kV, 0>(p, sample + kind * kRoom, count[kind], kind + 1 < kGramKinds ? kind + 1 : 0,
                                    output);
    }
    // Adds the tile's gradients to p.a and p.bias_g, and its loss to p.loss; p starts at lane 0.
    template <class A>
    void pass(GramPass& p, const A& output) const {
        const int64_t vectors = p.np / kLanes, panels = (vectors + kGramPanel - 1) / kGramPanel;
        const GramPass whole = p;
        for (int64_t i = 0; i < panels; ++i) {
            const int64_t v0 = i * vectors / panels, v1 = (i + 1) * vectors / panels, lane = v0 * kLanes;
            p.gt = whole.gt + lane, p.a = whole.a + lane, p.b = whole.b + lane;
            p.importance = whole.importance + lane, p.bias_g = whole.bias_g + lane, p.first_lane = lane;
            switch (v1 - v0) {
                case 1: panel<1>(p, output); break;
                case 2: panel<2>(p, output); break;
                case 3: panel<3>(p, output); break;
                case 4: panel < kGramPanel<4 ? 1 : 4>(p, output); break;
                case 5: panel < kGramPanel<5 ? 1 : 5>(p, output); break;
                case 6: panel < kGramPanel<6 ? 1 : 6>(p, output); break;
            }
        }
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
