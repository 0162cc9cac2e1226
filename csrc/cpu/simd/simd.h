// The lane type of the CPU kernels: kLanes floats or 32-bit words side by side.
//
// Each instruction-set level compiles every kernel in a namespace of its own (TOYKERN_LEVEL: v4, v3, neon or base)
// against one of four implementations of the same small vocabulary:
//
//   F   float lanes       load/store/stream/bcast, + - *, fmadd, fmax, sqrt, div, gt -> M, keep, fsum, sum_lanes
//   U   uint32 lanes      load/store, + - & | ^ ~, shl/shr, mulhi, clz, lookup16, eq/lt -> M, to_float
//   L   uint64 lanes      split into even and odd 32-bit lanes: mul_wide, +, shifts, running sum over all lanes
//   M   one bit per lane
//
// Everything that touches U, L or M is exact, so the data stream has the same bits at every level. Float sums run in
// an order that depends on kLanes, and the baseline has no fused multiply-add: results of training are reproducible per
// level, not across levels. (Those of v3 and neon are the same but where denormals are flushed.)
// Intrinsics stand only in the files included here. They say much in the same words, on purpose: each is read by
// itself beside the instructions of its level. No inline function of std:: may be used in a per-level file:
// the linker would keep one copy of it, perhaps the one compiled for a CPU that this machine is not.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/stream/philox.h"

#ifndef TOYKERN_LEVEL
#error "define TOYKERN_LEVEL (v4, v3, neon or base) before including simd.h"
#endif

#define TOYKERN_INLINE inline __attribute__((always_inline))

namespace toykern {
// Philox's key schedule, each key in the lower half of 64 bits so that a vector instruction can broadcast it from
// memory.
struct RoundKeys {
    uint64_t k0[kPhiloxRounds], k1[kPhiloxRounds];

    static TOYKERN_INLINE RoundKeys of(int64_t seed) {
        RoundKeys keys;
        for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
            const PhiloxKey key = philox_key(seed).of(round);
            keys.k0[round] = key.low, keys.k1[round] = key.high;
        }
        return keys;
    }
};
}  // namespace toykern

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#include "cpu/simd/avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "cpu/simd/avx2.h"
#elif defined(TOYKERN_NEON)  // and not __ARM_NEON, which is there in the baseline of 64-bit ARM, too
#include "cpu/simd/neon.h"
#else
#include "cpu/simd/generic.h"
#endif
