// The codes of a tile and the way back through them, for every hidden activation, elementwise or of all codes of a sample.
//
//   h = f(a)                  and what of f′ the way back needs
//   dL/da from dL/dh          u ⊙ f′(a); SoLU, h = a ⊙ s with s = softmax(a): s ⊙ (u (1 + a) − Σ u h)
//
// Layout     h, kept and dh [rows][mp]; pads are 0 afterwards, whatever f(0) is
// Kept       elementwise: f′; SoLU: s; top-k: 1 where a code stays
// Order      sums over a row: lane groups in order, lanes by the fixed tree
// Roof       that of f, an elementwise pass in L2
#pragma once
#include "cpu/simd/lanes.h"
#include "cpu/top_codes.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// The lanes of a row of `length` that stand at `at`.
TOYKERN_INLINE M lanes_within(int64_t length, int64_t at) {
    const int64_t left = length - at;
    return mask_first((int)(left < kLanes ? left : kLanes));
}

// The largest of a row's first `length` elements. One that is NaN may be passed over: it shows in what is summed.
inline float row_maximum(const float* row, int64_t length, uint32_t bits = 0xFFFFFFFFu) {
    float lanes[kLanes];
    F largest = bcast(-__builtin_inff());
    for (int64_t k = 0; k < length; k += kLanes) {
        const M m = lanes_within(length, k);
        const F x = keep(m, and_bits(load(row + k), bits)) + keep(and_not(mask_first(kLanes), m), largest);
        largest = fmax(largest, x);
    }
    store(lanes, largest);
    float found = lanes[0];
    for (int i = 1; i < kLanes; ++i) found = lanes[i] > found ? lanes[i] : found;
    return found;
}

// to = e^(row − largest) of the first `length` elements, and 0 behind; returns the sum. Both see the row's elements with
// these bits alone.
inline float exponentials(const float* row, int64_t length, int64_t padded, float largest, float* to,
                          uint32_t bits = 0xFFFFFFFFu) {
    F sum = fzero();
    for (int64_t k = 0; k < padded; k += kLanes) {
        const F x = and_bits(load(row + k), bits);
        const F e = k < length ? keep(lanes_within(length, k), toykern::exp_minus(bcast(largest) - x)) : fzero();
        store(to + k, e);
        sum = sum + e;
    }
    return fsum(sum);
}

struct GeneralCodes {
    int64_t m, mp;
    int32_t kind;
    double option;
    int32_t* chosen;  // [m] room for top-k

    // h = f(h), in place; `kept` as above.
    void forward(int64_t rows, float* h, float* kept) const {
        for (int64_t r = 0; r < rows; ++r, h += mp, kept += mp) {
            if (kind == (int32_t)Activation::kTopK) {
                keep_largest(h, m, mp, (int64_t)option, chosen, kept);
            } else if (kind == (int32_t)Activation::kSolu) {
                const F inverse = bcast(1.0f / exponentials(h, m, mp, row_maximum(h, m), kept));
                for (int64_t k = 0; k < mp; k += kLanes) {
                    const F s = load(kept + k) * inverse;
                    store(kept + k, s);
                    store(h + k, k < m ? keep(lanes_within(m, k), load(h + k) * s) : fzero());
                }
            } else {
                const auto f = AnyActivation<F>::of(kind, option);
                for (int64_t k = 0; k < mp; k += kLanes) {
                    const Activated<F> a = f.at(load(h + k));
                    const M there = k < m ? lanes_within(m, k) : mask_first(0);
                    store(h + k, keep(there, a.y));
                    store(kept + k, keep(there, a.slope));
                }
            }
        }
    }
    // dh = dL/da from dL/dh, in place.
    void backward(int64_t rows, const float* h, const float* kept, float* dh) const {
        const bool selects = kind == (int32_t)Activation::kTopK || slope_selects(kind);
        for (int64_t r = 0; r < rows; ++r, h += mp, kept += mp, dh += mp) {
            if (kind == (int32_t)Activation::kSolu) {
                F sum = fzero();
                for (int64_t k = 0; k < mp; k += kLanes) sum = fmadd(load(dh + k), load(h + k), sum);
                const F all = bcast(fsum(sum));
                for (int64_t k = 0; k < mp; k += kLanes) {
                    const F u = load(dh + k), s = load(kept + k);
                    store(dh + k, fmadd(u, s + load(h + k), fzero() - s * all));
                }
            } else {
                for (int64_t k = 0; k < mp; k += kLanes) {
                    const F u = load(dh + k), slope = load(kept + k);
                    store(dh + k, selects ? keep(nonzero(slope), u) : u * slope);
                }
            }
        }
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
