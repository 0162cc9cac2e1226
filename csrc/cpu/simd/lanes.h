// The CPU's vectors as lane types of the common mathematics (common/lanes.h): what simd.h and cpu/simd/double.h do not
// have already.
#pragma once
#include "common/activation.h"
#include "cpu/simd/double.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// p · 2^k, where `shifted` is 1.5·2^23 + k: its last bits are the integer.
TOYKERN_INLINE F times_power(F p, F shifted) {
    return as_floats(as_words(p) + shl(as_words(shifted) - as_words(bcast(12582912.0f)), 23));
}
// Φ(z) and φ(z) of the standard normal distribution; erf in single precision after Abramowitz & Stegun 7.1.26 (an error
// below 1.5e-7, says its source), in double precision by libm.
TOYKERN_INLINE void normal_of(F z, F& distribution, F& density) {
    const F a = magnitude(z) * bcast(0.70710678f);
    const F e = toykern::exp_minus(a * a);
    const F t = bcast(1.0f) / fmadd(bcast(0.3275911f), a, bcast(1.0f));
    F p = bcast(1.061405429f);
    p = fmadd(p, t, bcast(-1.453152027f));
    p = fmadd(p, t, bcast(1.421413741f));
    p = fmadd(p, t, bcast(-0.284496736f));
    p = fmadd(p, t, bcast(0.254829592f));
    const F tail = bcast(0.5f) * (p * t * e);  // Φ(−|z|)
    const M positive = gt_or_nan(z, fzero());
    distribution = keep(positive, bcast(1.0f) - tail) + (tail - keep(positive, tail));
    density = e * bcast(0.39894228f);
}
TOYKERN_INLINE D exp_minus(D u) {
    D r;
    for (int i = 0; i < kDoubleLanes; ++i) r.v[i] = __builtin_exp(-u.v[i]);
    return r;
}
TOYKERN_INLINE D log_of_one_and(D u) {
    D r;
    for (int i = 0; i < kDoubleLanes; ++i) r.v[i] = __builtin_log1p(u.v[i]);
    return r;
}
TOYKERN_INLINE void normal_of(D z, D& distribution, D& density) {
    for (int i = 0; i < kDoubleLanes; ++i) {
        distribution.v[i] = 0.5 * __builtin_erfc(-z.v[i] * 0.70710678118654752440);
        density.v[i] = 0.39894228040143267794 * __builtin_exp(-0.5 * z.v[i] * z.v[i]);
    }
}

}  // namespace TOYKERN_LEVEL

template <>
struct Lanes<TOYKERN_LEVEL::F> {
    TOYKERN_INLINE static TOYKERN_LEVEL::F all(double x) { return TOYKERN_LEVEL::bcast((float)x); }
};
template <>
struct Lanes<TOYKERN_LEVEL::D> {
    TOYKERN_INLINE static TOYKERN_LEVEL::D all(double x) { return TOYKERN_LEVEL::bcast(x); }
};

namespace TOYKERN_LEVEL {

__attribute__((noinline)) static Activated<F> activated(const AnyActivation<F>& activation, F z) {
    return activation.at(z);
}

// AnyActivation by a call, for passes that are unrolled: their code would hold every activation many times over.
struct CalledActivation : AnyActivation<F> {
    TOYKERN_INLINE static CalledActivation of(int32_t kind, double option) {
        return {AnyActivation<F>::of(kind, option)};
    }
    TOYKERN_INLINE F value(F z, F& slope) const {
        const Activated<F> a = activated(*this, z);
        slope = a.slope;
        return a.y;
    }
};

}  // namespace TOYKERN_LEVEL

}  // namespace toykern
