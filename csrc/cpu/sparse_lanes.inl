// What the sparse kernels need beside float lanes: lanes of doubles, and numbers stored as bfloat16.
//
//   Wide<A>   lanes of the type of computation A: float (F of simd.h) or double (Doubles, below)
//   BFloat16  stored type; computed in float. Rounded to nearest even; a NaN stays one.
//
// Doubles is an array, not an intrinsic type: float64 serves gradient checks, and compilers turn it into whatever vectors there are.
#pragma once
#include "cpu/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

struct BFloat16 {
    uint16_t bits;
};

constexpr int kDoublesCount = kLanes / 2;
struct Doubles {
    double v[kDoublesCount];
};
#define TOYKERN_EACH_OF_DOUBLES for (int i = 0; i < kDoublesCount; ++i)

TOYKERN_INLINE Doubles read(const double* p) {
    Doubles r;
    TOYKERN_EACH_OF_DOUBLES r.v[i] = p[i];
    return r;
}
TOYKERN_INLINE void write(double* p, Doubles a) { TOYKERN_EACH_OF_DOUBLES p[i] = a.v[i]; }
TOYKERN_INLINE Doubles operator+(Doubles a, Doubles b) {
    TOYKERN_EACH_OF_DOUBLES a.v[i] += b.v[i];
    return a;
}
TOYKERN_INLINE Doubles operator*(Doubles a, Doubles b) {
    TOYKERN_EACH_OF_DOUBLES a.v[i] *= b.v[i];
    return a;
}
// Rounded twice at every level: the baseline has no fused multiply-add, and compilers know how to vectorise this.
TOYKERN_INLINE Doubles fmadd(Doubles a, Doubles b, Doubles c) {
    TOYKERN_EACH_OF_DOUBLES c.v[i] = a.v[i] * b.v[i] + c.v[i];
    return c;
}
TOYKERN_INLINE Doubles fmax(Doubles a, Doubles b) {  // b where either is NaN
    TOYKERN_EACH_OF_DOUBLES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
TOYKERN_INLINE void sum_lanes(const Doubles* rows, int count, double* out) {
    for (int k = 0; k < count; ++k) {
        double sum = 0.0;
        TOYKERN_EACH_OF_DOUBLES sum += rows[k].v[i];
        out[k] = sum;
    }
}
#undef TOYKERN_EACH_OF_DOUBLES

template <class A>
struct Wide;
template <>
struct Wide<float> {
    using V = F;
    static constexpr int kN = kLanes;
    static TOYKERN_INLINE F splat(float x) { return bcast(x); }
};
template <>
struct Wide<double> {
    using V = Doubles;
    static constexpr int kN = kDoublesCount;
    static TOYKERN_INLINE Doubles splat(double x) {
        Doubles r;
        for (int i = 0; i < kDoublesCount; ++i) r.v[i] = x;
        return r;
    }
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

TOYKERN_INLINE F read(const float* p) { return load(p); }
TOYKERN_INLINE void write(float* p, F a) { store(p, a); }
TOYKERN_INLINE F load_stored(const float* p) { return load(p); }
TOYKERN_INLINE Doubles load_stored(const double* p) { return read(p); }
TOYKERN_INLINE F load_stored(const BFloat16* p) {
    float wide[kLanes];
    for (int i = 0; i < kLanes; ++i) wide[i] = Stored<BFloat16>::get(p[i]);
    return load(wide);
}
TOYKERN_INLINE void store_stored(float* p, F a) { store(p, a); }
TOYKERN_INLINE void store_stored(double* p, Doubles a) { write(p, a); }
TOYKERN_INLINE void store_stored(BFloat16* p, F a) {
    float wide[kLanes];
    store(wide, a);
    for (int i = 0; i < kLanes; ++i) p[i] = Stored<BFloat16>::put(wide[i]);
}

TOYKERN_INLINE void transpose(Doubles* r) {
    for (int i = 0; i < kDoublesCount; ++i)
        for (int j = 0; j < i; ++j) {
            const double x = r[i].v[j];
            r[i].v[j] = r[j].v[i];
            r[j].v[i] = x;
        }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
