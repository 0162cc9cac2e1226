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
    TOYKERN_INLINE static TOYKERN_LEVEL::F all(TOYKERN_LEVEL::F x) { return x; }  // lanes that differ already
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
