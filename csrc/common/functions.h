// Functions that activations are made of, over a float lane type (common/lanes.h). Vectors of doubles bring their own
// of the same names, by libm (cpu/simd/lanes.h).
#pragma once
#include "common/lanes.h"

namespace toykern {

// e^−u for u >= 0 (and NaN), as 2^k · 2^f with |f| <= 1/2; the polynomial is Taylor's, its error about 2e-7 relative.
template <class V>
TOYKERN_MATHS V exp_minus(V u) {
    const V t = fmax(Lanes<V>::all(-126.0f), u * Lanes<V>::all(-1.44269504f));
    const V magic = Lanes<V>::all(12582912.0f);  // 1.5·2^23: the sum's last bits are the rounded integer
    const V shifted = t + magic;
    const V f = t - (shifted - magic);
    V p = Lanes<V>::all(1.5403530e-4f);
    p = fmadd(p, f, Lanes<V>::all(1.3333558e-3f));
    p = fmadd(p, f, Lanes<V>::all(9.6181291e-3f));
    p = fmadd(p, f, Lanes<V>::all(5.5504109e-2f));
    p = fmadd(p, f, Lanes<V>::all(2.4022651e-1f));
    p = fmadd(p, f, Lanes<V>::all(6.9314718e-1f));
    p = fmadd(p, f, Lanes<V>::all(1.0f));
    return times_power(p, shifted);
}

// log(1 + u) for 0 <= u <= 1 (and NaN), as 2 artanh(u / (2 + u)): with s <= 1/3 the first term left out is below 2e-9
// of the sum.
template <class V>
TOYKERN_MATHS V log_of_one_and(V u) {
    const V s = u / (Lanes<V>::all(2.0) + u), q = s * s;
    V p = Lanes<V>::all(1.0 / 15);
    p = fmadd(p, q, Lanes<V>::all(1.0 / 13));
    p = fmadd(p, q, Lanes<V>::all(1.0 / 11));
    p = fmadd(p, q, Lanes<V>::all(1.0 / 9));
    p = fmadd(p, q, Lanes<V>::all(1.0 / 7));
    p = fmadd(p, q, Lanes<V>::all(1.0 / 5));
    p = fmadd(p, q, Lanes<V>::all(1.0 / 3));
    p = fmadd(p, q, Lanes<V>::all(1.0));
    return (s + s) * p;
}

// Φ(z) and φ(z) of the standard normal distribution, by erf after Abramowitz & Stegun 7.1.26 (an error below 1.5e-7,
// says its source) and by exp_minus: not by libm or the device's own erfc and exp, whose last bits differ.
template <class V>
TOYKERN_MATHS void normal_of(V z, V& distribution, V& density) {
    const V one = Lanes<V>::all(1.0f), half = Lanes<V>::all(0.5f);
    const V a = magnitude(z) * Lanes<V>::all(0.70710678f);
    const V e = exp_minus(a * a);
    const V t = one / fmadd(Lanes<V>::all(0.3275911f), a, one);
    V p = Lanes<V>::all(1.061405429f);
    p = fmadd(p, t, Lanes<V>::all(-1.453152027f));
    p = fmadd(p, t, Lanes<V>::all(1.421413741f));
    p = fmadd(p, t, Lanes<V>::all(-0.284496736f));
    p = fmadd(p, t, Lanes<V>::all(0.254829592f));
    const V tail = half * (p * t * e);  // Φ(−|z|)
    const auto positive = gt_or_nan(z, Lanes<V>::all(0.0f));
    distribution = keep(positive, one - tail) + (tail - keep(positive, tail));
    density = e * Lanes<V>::all(0.39894228f);
}

}  // namespace toykern
