// Double-precision lanes, half as many as there are float lanes: the vocabulary of simd.h's F that layers of float64
// use.
//
// Written with the compiler's vector types, whose operators need no intrinsics; only the fused multiply-add does. The
// baseline has none and rounds twice, as its float lanes do.
#pragma once
#include "cpu/simd/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int kDoubleLanes = kLanes / 2;
typedef double DoubleVector __attribute__((vector_size(8 * kDoubleLanes)));
typedef int64_t DoubleMask __attribute__((vector_size(8 * kDoubleLanes)));

struct D {
    DoubleVector v;
};
struct MD {  // all ones in set lanes
    DoubleMask v;
};

TOYKERN_INLINE D bcast(double x) { return {x - DoubleVector{}}; }
TOYKERN_INLINE D load(const double* p) {
    D r;
    __builtin_memcpy(&r.v, p, sizeof(r.v));
    return r;
}
TOYKERN_INLINE void store(double* p, D a) { __builtin_memcpy(p, &a.v, sizeof(a.v)); }
TOYKERN_INLINE MD mask_first_double(int n) {
    MD r;
    for (int i = 0; i < kDoubleLanes; ++i) r.v[i] = i < n ? -1 : 0;
    return r;
}
TOYKERN_INLINE uint32_t bits(MD m) {
    uint32_t r = 0;
    for (int i = 0; i < kDoubleLanes; ++i) r |= (uint32_t)(m.v[i] & 1) << i;
    return r;
}
TOYKERN_INLINE D load_first(const double* p, MD m) {
    D r;
    for (int i = 0; i < kDoubleLanes; ++i) r.v[i] = m.v[i] ? p[i] : 0.0;
    return r;
}
TOYKERN_INLINE void store_first(double* p, D a, MD m) {
    for (int i = 0; i < kDoubleLanes; ++i)
        if (m.v[i]) p[i] = a.v[i];
}
TOYKERN_INLINE D operator+(D a, D b) { return {a.v + b.v}; }
TOYKERN_INLINE D operator-(D a, D b) { return {a.v - b.v}; }
TOYKERN_INLINE D operator*(D a, D b) { return {a.v * b.v}; }
TOYKERN_INLINE D operator/(D a, D b) { return {a.v / b.v}; }
TOYKERN_INLINE D fmadd(D a, D b, D c) {
#if defined(__AVX512F__)
    return {_mm512_fmadd_pd(a.v, b.v, c.v)};
#elif defined(__FMA__)
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
#elif defined(TOYKERN_NEON)
    D r;
    float64x2_t x, y, z;
    for (size_t half = 0; half < sizeof(D); half += sizeof(x)) {
        __builtin_memcpy(&x, (const char*)&a + half, sizeof(x));
        __builtin_memcpy(&y, (const char*)&b + half, sizeof(y));
        __builtin_memcpy(&z, (const char*)&c + half, sizeof(z));
        z = vfmaq_f64(z, x, y);
        __builtin_memcpy((char*)&r + half, &z, sizeof(z));
    }
    return r;
#else
    return {a.v * b.v + c.v};
#endif
}
TOYKERN_INLINE MD gt(D a, D b) { return {a.v > b.v}; }
TOYKERN_INLINE MD gt_or_nan(D a, D b) { return {~(a.v <= b.v)}; }
TOYKERN_INLINE MD nonzero(D a) { return {a.v != DoubleVector{}}; }
TOYKERN_INLINE D keep(MD m, D a) { return {(DoubleVector)((DoubleMask)a.v & m.v)}; }
// b where either is NaN, as with floats.
TOYKERN_INLINE D fmax(D a, D b) { return {a.v > b.v ? a.v : b.v}; }
TOYKERN_INLINE D magnitude(D a) { return {(DoubleVector)((DoubleMask)a.v & INT64_MAX)}; }
TOYKERN_INLINE D signed_like(D a, D x) {  // a·sign(x), 0 where x is 0
    return keep(nonzero(x), D{(DoubleVector)((DoubleMask)a.v ^ ((DoubleMask)x.v & INT64_MIN))});
}
TOYKERN_INLINE double fsum(D a) {
    double r[kDoubleLanes];
    store(r, a);
    for (int half = kDoubleLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) r[i] += r[i + half];
    return r[0];
}
TOYKERN_INLINE void transpose(D* r) {
    for (int i = 0; i < kDoubleLanes; ++i)
        for (int j = 0; j < i; ++j) {
            const double x = r[i].v[j];
            r[i].v[j] = r[j].v[i];
            r[j].v[i] = x;
        }
}

TOYKERN_INLINE F magnitude(F a) { return and_bits(a, 0x7FFFFFFFu); }
TOYKERN_INLINE F signed_like(F a, F x) {
    return keep(nonzero(x), as_floats(as_words(a) ^ (as_words(x) & ubcast(0x80000000u))));
}

// What code for either type is written with.
template <class T>
struct Lane;
template <>
struct Lane<float> {
    using Vector = F;
    using Mask = M;
    static constexpr int kCount = kLanes;
    TOYKERN_INLINE static F zero() { return fzero(); }
    TOYKERN_INLINE static M first(int64_t n) { return mask_first((int)(n < kLanes ? n : kLanes)); }
};
template <>
struct Lane<double> {
    using Vector = D;
    using Mask = MD;
    static constexpr int kCount = kDoubleLanes;
    TOYKERN_INLINE static D zero() { return {DoubleVector{}}; }
    TOYKERN_INLINE static MD first(int64_t n) { return mask_first_double((int)(n < kDoubleLanes ? n : kDoubleLanes)); }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
