// Functions that activations are made of, over a float lane type (common/lanes.h). Vectors of doubles bring their own, by libm.
//
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

}  // namespace toykern
