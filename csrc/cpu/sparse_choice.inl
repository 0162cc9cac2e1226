// What choosing connections asks of vector lanes: random words, many at a time.
//
// Exact at every level: integers only.
#pragma once
#include "cpu/simd.h"
#include "toykern/sparse_topology.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// Words of 64 bits number 32·chunk … 32·(chunk + chunks) - 1 of a sequence (toykern/sparse/draws.py).
inline void draw_places(int64_t seed, uint32_t group, uint32_t step, uint32_t tag, uint32_t chunk, int64_t chunks,
                        uint64_t* words) {
    RoundKeys keys;
    uint32_t k0 = (uint32_t)(uint64_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        keys.k0[round] = k0, keys.k1[round] = k1;
    uint32_t out[2][64];
    for (int64_t i = 0; i < chunks; i += 2) {
        const uint32_t first = 16u * (chunk + (uint32_t)i);
        philox16<2>({first, first + 16u}, group, step, {tag, tag}, keys, {out[0], out[1]});
        for (int half = 0; half < 2 && i + half < chunks; ++half)
            for (int lane = 0; lane < 16; ++lane) {
                words[32 * (i + half) + lane] = (uint64_t)out[half][lane] << 32 | out[half][16 + lane];
                words[32 * (i + half) + 16 + lane] = (uint64_t)out[half][32 + lane] << 32 | out[half][48 + lane];
            }
    }
}

inline const ChoiceKernels* choice_kernels() {
    static constexpr ChoiceKernels table = {draw_places};
    return &table;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
