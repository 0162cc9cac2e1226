// What the sparse kernels need beside lanes of floats and doubles (cpu/simd/simd.h, cpu/simd/double.h): numbers stored
// as bfloat16.
//
//   Stored<T>   what a stored type is computed in, and single numbers to and from it
//   BFloat16    computed in float. Rounded to nearest even; a NaN stays one.
#pragma once
#include "cpu/simd/double.h"

namespace toykern {
namespace TOYKERN_LEVEL {

struct BFloat16 {
    uint16_t bits;
};

template <class T>
struct Stored {  // float32 and float64 are computed as they are
    using Computed = T;
    static TOYKERN_INLINE T get(T x) { return x; }
    static TOYKERN_INLINE T put(T x) { return x; }
};
template <>
struct Stored<BFloat16> {
    using Computed = float;
    static TOYKERN_INLINE float get(BFloat16 x) {
        union {
            uint32_t u;
            float f;
        } word;
        word.u = (uint32_t)x.bits << 16;
        return word.f;
    }
    static TOYKERN_INLINE BFloat16 put(float x) {
        union {
            float f;
            uint32_t u;
        } word;
        word.f = x;
        const uint32_t rounded = (word.u + 0x7FFFu + ((word.u >> 16) & 1u)) >> 16;
        const bool nan = (word.u & 0x7FFFFFFFu) > 0x7F800000u;
        return {(uint16_t)(nan ? (word.u >> 16) | 0x40u : rounded)};
    }
};

TOYKERN_INLINE F load_stored(const float* p) { return load(p); }
TOYKERN_INLINE D load_stored(const double* p) { return load(p); }
TOYKERN_INLINE F load_stored(const BFloat16* p) {
    float wide[kLanes];
    for (int i = 0; i < kLanes; ++i) wide[i] = Stored<BFloat16>::get(p[i]);
    return load(wide);
}
TOYKERN_INLINE void store_stored(float* p, F a) { store(p, a); }
TOYKERN_INLINE void store_stored(double* p, D a) { store(p, a); }
TOYKERN_INLINE void store_stored(BFloat16* p, F a) {
    float wide[kLanes];
    store(wide, a);
    for (int i = 0; i < kLanes; ++i) p[i] = Stored<BFloat16>::put(wide[i]);
}

// Past the caches, where there are instructions for it.
TOYKERN_INLINE void stream_stored(float* p, F a) { stream(p, a); }
TOYKERN_INLINE void stream_stored(double* p, D a) { store(p, a); }
TOYKERN_INLINE void stream_stored(BFloat16* p, F a) { store_stored(p, a); }

TOYKERN_INLINE F where_nonzero(F a, F b) { return keep(nonzero(a), b); }
TOYKERN_INLINE D where_nonzero(D a, D b) { return keep(nonzero(a), b); }

// out[k] = sum over lanes of rows[k]; the floats' is in simd.h.
TOYKERN_INLINE void sum_lanes(const D* rows, int count, double* out) {
    for (int k = 0; k < count; ++k) out[k] = fsum(rows[k]);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
