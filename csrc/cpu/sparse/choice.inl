// What choosing connections asks of vector lanes: random words, and the scores that reach a threshold, many at a time.
//
// Exact at every level: integers only.
#pragma once
#include "cpu/simd/simd.h"
#include "toykern/sparse_topology.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// Words of 64 bits number 32·chunk … 32·(chunk + chunks) - 1 of a sequence (toykern/sparse/draws.py).
inline void draw_places(int64_t seed, uint32_t group, uint32_t step, uint32_t tag, uint32_t chunk, int64_t chunks,
                        uint64_t* words) {
    const RoundKeys keys = RoundKeys::of(seed);
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

// Scores as unsigned numbers in the order of cpu/sparse/scores.h; with `absolute`, those of their magnitudes.
TOYKERN_INLINE U ordered_lanes(U word, bool absolute) {
    const U magnitude = word & ubcast(0x7FFFFFFFu);
    U x = absolute ? magnitude : word;
    x = select(eq(magnitude, ubcast(0u)), ubcast(0u), x);
    x = x ^ (spread_sign(x) | ubcast(0x80000000u));
    return select(lt(ubcast(0x7F800000u), magnitude), ubcast(0xFFFFFFFFu), x);
}

// See ChoiceKernels.
inline int64_t scan_scores(const float* score, int64_t count, bool absolute, const int64_t* taken, int64_t n_taken,
                           int64_t first, uint32_t least, uint32_t* found_key, uint32_t* found_at) {
    constexpr int64_t kBlock = 1024;
    uint32_t key[kBlock + kLanes];
    const U below = ubcast(least - 1u);
    int64_t found = 0, next = 0;
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t n = count - begin < kBlock ? count - begin : kBlock;
        const uint32_t* word = (const uint32_t*)(score + begin);
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store(key + i, ordered_lanes(load(word + i), absolute));
        if (i < n) {
            uint32_t last[kLanes];
            for (int lane = 0; lane < kLanes; ++lane) last[lane] = i + lane < n ? word[i + lane] : 0u;
            store(key + i, ordered_lanes(load(last), absolute));
            for (int64_t past = n; past < i + kLanes; ++past) key[past] = 0;
        }
        for (; next < n_taken && taken[next] - first < begin + n; ++next) key[taken[next] - first - begin] = 0;
        for (i = 0; i < n; i += kLanes) {  // no branch to guess wrong: what is not counted is written over
            const U k = load(key + i);
            const M reaches = lt(below, k);
            store_packed(found_key + found, k, reaches);
            store_packed(found_at + found, ulane() + ubcast((uint32_t)(begin + i)), reaches);
            found += __builtin_popcount(bits(reaches));
        }
    }
    return found;
}

inline const ChoiceKernels* choice_kernels() {
    static constexpr ChoiceKernels table = {draw_places, scan_scores};
    return &table;
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
