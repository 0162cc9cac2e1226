// The lane type that the mathematics of this folder is written over, and its smallest members: one float, one double.
//
// A lane type V is a vector of floats or doubles (cpu/simd/simd.h, cpu/simd/double.h), or a float or a double (here, for
// a thread of a device and for scalar code of the CPU; doubles for sums alone: losses). What it must bring, found by argument:
//
//   + - * /   fmadd(a, b, c) = a b + c, rounded once   fsqrt   magnitude = |a|
//   fmax(bound, x): x where x is NaN, so that a NaN shows
//   gt_or_nan(a, b) -> M: a > b, or either is NaN   nonzero(a) -> M   keep(M, a): a, else 0
//   times_power(p, s) = p · 2^k, the k in the last bits of s (lanes of floats, for common/functions.h)
//   Lanes<V>::all(x): x in all lanes
//
// Multiply-adds are fused where fmadd says so and nowhere else (the build turns contraction off), and no function of a
// side's own library is called, so a float of a device, of the host and of a vector have the same bits.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define TOYKERN_HD __host__ __device__
#define TOYKERN_MATHS static __host__ __device__ __forceinline__
#else
#define TOYKERN_HD
#define TOYKERN_MATHS static inline __attribute__((always_inline))
#endif
// Internal linkage: a per-level file must not share code with one compiled for another CPU (cpu/simd/simd.h).
#define TOYKERN_SHARED TOYKERN_HD static inline

namespace toykern {

template <class V>
struct Lanes;
template <>
struct Lanes<float> {
    TOYKERN_MATHS float all(double x) { return (float)x; }
};

template <>
struct Lanes<double> {
    TOYKERN_MATHS double all(double x) { return x; }
};

union FloatBits {
    float f;
    uint32_t u;
};

// a b + c rounded once, on the host. Code for the baseline of x86-64 has no such instruction and would call libm for
// each; the device's source, run on the host, is made of them. So it asks the CPU once, and the branch is foreseen.
#if defined(__x86_64__) && !defined(__FMA__) && !defined(__CUDA_ARCH__)
static const bool kCpuHasFma = __builtin_cpu_supports("fma");
static inline __attribute__((always_inline)) float fused_on_host(float a, float b, float c) {
    if (!kCpuHasFma) return __builtin_fmaf(a, b, c);
    asm("vfmadd231ss %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
}
static inline __attribute__((always_inline)) double fused_on_host(double a, double b, double c) {
    if (!kCpuHasFma) return __builtin_fma(a, b, c);
    asm("vfmadd231sd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
}
#else
static inline float fused_on_host(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double fused_on_host(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

TOYKERN_MATHS float fmadd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return fmaf(a, b, c);
#else
    return fused_on_host(a, b, c);
#endif
}
TOYKERN_MATHS double fmadd(double a, double b, double c) {  // for sums of a device in double
#if defined(__CUDA_ARCH__)
    return fma(a, b, c);
#else
    return fused_on_host(a, b, c);
#endif
}
TOYKERN_MATHS float fsqrt(float a) {
#if defined(__CUDA_ARCH__)
    return sqrtf(a);
#else
    return __builtin_sqrtf(a);
#endif
}
TOYKERN_MATHS float fmax(float bound, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float r;  // fmaxf would give the bound for a NaN, and hide that a model diverged; before sm_80 as on the host
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(bound), "f"(x));
    return r;
#else
    return x <= bound ? bound : x;
#endif
}
TOYKERN_MATHS bool gt_or_nan(float a, float b) { return !(a <= b); }
TOYKERN_MATHS bool nonzero(float a) { return !(a == 0.0f); }
TOYKERN_MATHS float keep(bool m, float a) { return m ? a : 0.0f; }
TOYKERN_MATHS float magnitude(float a) {
    FloatBits x = {a};
    x.u &= 0x7FFFFFFFu;
    return x.f;
}
// Of doubles, each by itself: as floats they would be rounded without a word.
TOYKERN_MATHS double fmax(double bound, double x) { return x <= bound ? bound : x; }
TOYKERN_MATHS bool gt_or_nan(double a, double b) { return !(a <= b); }
TOYKERN_MATHS bool nonzero(double a) { return !(a == 0.0); }
TOYKERN_MATHS double keep(bool m, double a) { return m ? a : 0.0; }
TOYKERN_MATHS double magnitude(double a) { return __builtin_fabs(a); }
// p · 2^k, where `shifted` is 1.5·2^23 + k: its last bits are the integer.
TOYKERN_MATHS float times_power(float p, float shifted) {
    FloatBits x = {p}, s = {shifted}, magic = {12582912.0f};
    x.u += (s.u - magic.u) << 23;
    return x.f;
}

}  // namespace toykern
