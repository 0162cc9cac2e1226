// What single words of the data stream become (docs/data_stream.md §3, §5-§7), one word at a time: gaps, places,
// magnitudes, normals, members. The CPU kernels have the same with many words side by side (cpu/stream/words.inl,
// cpu/stream/rare.inl).
//
// Integer arithmetic, and single precision with separately rounded operations (compile with contraction off): the same
// bits everywhere.
#pragma once
#include "common/stream/philox.h"
#include "common/stream/tables.h"

// What reads a table runs on one side only: under nvcc the tables lie in device memory.
#if defined(__CUDACC__)
#define TOYKERN_TABLED __device__ static inline
#else
#define TOYKERN_TABLED static inline
#endif

namespace toykern {

TOYKERN_SHARED uint32_t high_product(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }

TOYKERN_SHARED uint32_t word_leading_zeros(uint32_t v) {
#if defined(__CUDA_ARCH__)
    return (uint32_t)__clz((int)v);
#else
    return (uint32_t)__builtin_clz(v);  // v is odd
#endif
}

// log2(1 + x / 2^32) in units of 2^-32.
TOYKERN_TABLED uint32_t log2_units(uint32_t x) {
    const uint32_t segment = x >> 28, tau = x << 4;
    uint32_t s = kLog2Table[5][segment];
    s = kLog2Table[4][segment] - high_product(s, tau);
    s = kLog2Table[3][segment] - high_product(s, tau);
    s = kLog2Table[2][segment] - high_product(s, tau);
    s = kLog2Table[1][segment] - high_product(s, tau);
    return kLog2Table[0][segment] + (high_product(s, tau) >> 3);
}

// The exponential gap of a word in units of 2^-32 cells.
TOYKERN_TABLED uint64_t gap(uint32_t word, uint32_t scale) {
    const uint32_t v = word | 1u, z = word_leading_zeros(v), g = log2_units((v << z) << 1);
    return (((uint64_t)z * scale) << 1) + (((uint64_t)(0xFFFFFFFFu - g) * scale) >> 31);
}

// Where an arrival falls: the sample within its slice and the place within the sample. rho >= -30, since there are no
// arrivals at total rates below 2^-31. Times past the end of a slice are no places: see cells_in_slice.
struct Place {
    uint32_t sample;
    uint64_t phi;  // of 32 + max(0, rho) bits
};
TOYKERN_SHARED Place place(uint64_t time, int32_t rho) {
    const uint32_t cell = (uint32_t)(time >> 32), fraction = (uint32_t)time;
    if (rho >= 0) return {cell >> rho, ((uint64_t)(cell & ((1u << rho) - 1u)) << 32) | fraction};
    return {(cell << -rho) + (fraction >> (32 + rho)), (uint64_t)(uint32_t)(fraction << -rho)};
}

// Arrivals in this cell of a slice, or a later one, are past its end.
TOYKERN_SHARED uint32_t cells_in_slice(const RareProcess& r) {
    const int32_t cells_log2 = r.slice_log2 + r.rho;
    return cells_log2 > 0 ? 1u << cells_log2 : 1u;
}

TOYKERN_TABLED float half_normal(uint32_t word) {
    const uint32_t v = word | 1u, z = word_leading_zeros(v), x = (v << z) << 1;
    const uint32_t row = (z << 2) + (x >> 30);
    const float t = (float)((x >> 6) & 0xFFFFFFu) * 0x1p-24f;
    float y = kHalfNormalTable[4][row];
    y = y * t + kHalfNormalTable[3][row];
    y = y * t + kHalfNormalTable[2][row];
    y = y * t + kHalfNormalTable[1][row];
    y = y * t + kHalfNormalTable[0][row];
    return y > 0x1p-32f ? y : 0x1p-32f;
}

TOYKERN_TABLED float signed_normal(uint32_t word) { return (word & 1u) ? -half_normal(word) : half_normal(word); }

// -ln of the uniform variate: z whole octaves, and a fraction that is never 0.
TOYKERN_TABLED float exponential(uint32_t word) {
    const uint32_t v = word | 1u, z = word_leading_zeros(v), g = log2_units((v << z) << 1);
    return ((float)z + (float)((0xFFFFFFFFu - g) | 1u) * 0x1p-32f) * kLn2Single;
}

// e^N of a normal N, as 2^k · 2^f with |f| <= 1/2.
TOYKERN_TABLED float lognormal(uint32_t word) {
    union {
        float f;
        uint32_t u;
    } shifted, value;
    const float t = signed_normal(word) * kLog2ESingle;
    shifted.f = t + kRoundingMagic;
    const float f = t - (shifted.f - kRoundingMagic);
    float y = exp2_coefficient(6);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int k = 5; k >= 0; --k) y = y * f + exp2_coefficient(k);
    value.f = y;
    value.u += shifted.u << 23;
    return value.f;
}

TOYKERN_TABLED float magnitude(int32_t kind, uint32_t word) {
    switch ((Magnitude)kind) {
        case Magnitude::kUniform: return (float)(word | 1u) * 0x1p-32f;
        case Magnitude::kSymmetric: return (float)(int32_t)(word | 1u) * 0x1p-31f;
        case Magnitude::kHalfNormal: return half_normal(word);
        case Magnitude::kExponential: return exponential(word);
        case Magnitude::kLognormal: return lognormal(word);
        default: return 1.0f;
    }
}

// Several words at once: the kind is asked for once.
template <int kWords>
TOYKERN_TABLED void magnitudes(int32_t kind, const uint32_t (&word)[kWords], float (&value)[kWords]) {
#if defined(__CUDA_ARCH__)
#define TOYKERN_EACH_WORD _Pragma("unroll") for (int q = 0; q < kWords; ++q)
#else
#define TOYKERN_EACH_WORD for (int q = 0; q < kWords; ++q)
#endif
    if ((Magnitude)kind == Magnitude::kUniform)
        TOYKERN_EACH_WORD value[q] = magnitude((int32_t)Magnitude::kUniform, word[q]);
    else if ((Magnitude)kind == Magnitude::kSymmetric)
        TOYKERN_EACH_WORD value[q] = magnitude((int32_t)Magnitude::kSymmetric, word[q]);
    else if ((Magnitude)kind == Magnitude::kHalfNormal)
        TOYKERN_EACH_WORD value[q] = half_normal(word[q]);
    else if ((Magnitude)kind == Magnitude::kExponential)
        TOYKERN_EACH_WORD value[q] = exponential(word[q]);
    else if ((Magnitude)kind == Magnitude::kLognormal)
        TOYKERN_EACH_WORD value[q] = lognormal(word[q]);
    else
        TOYKERN_EACH_WORD value[q] = 1.0f;
#undef TOYKERN_EACH_WORD
}

}  // namespace toykern
