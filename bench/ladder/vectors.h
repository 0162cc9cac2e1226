// Vectors of sixteen numbers, as GCC and Clang have them: one register with AVX-512, two with AVX2, four without.
#pragma once
#include <cstdint>

constexpr int kLanes = 16;
typedef float F __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));  // what a comparison yields: all bits set, or none

inline F all(float x) { return x - F{}; }
inline U all(uint32_t x) { return x - U{}; }
inline F keep(I where, F x) { return (F)((I)x & where); }
inline F relu(F x) { return keep(x > 0.0f, x); }
inline F to_float(U x) { return __builtin_convertvector((I)x, F); }  // of less than 2^31
inline F uniform(U word) { return to_float((word >> 8) + 1u) * 0x1p-24f; }
inline F sqrt(F x) {
    F y = F{};
    for (int i = 0; i < kLanes; ++i) y[i] = __builtin_sqrtf(x[i]);
    return y;
}
inline float sum(F x) {
    float total = 0.0f;
    for (int i = 0; i < kLanes; ++i) total += x[i];
    return total;
}
