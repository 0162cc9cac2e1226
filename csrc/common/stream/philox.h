// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): one block of four words.
#pragma once
#include <cstdint>

#include "common/stream/stream.h"

namespace toykern {

constexpr uint32_t kPhiloxRounds = 10;
constexpr uint32_t kPhiloxLowStep = 0x9E3779B9u, kPhiloxHighStep = 0xBB67AE85u;  // from a round's key to the next one's

struct PhiloxKey {
    uint32_t low, high;
    // The key of a round.
    TOYKERN_HD __attribute__((always_inline)) PhiloxKey of(uint32_t round) const {
        return {low + round * kPhiloxLowStep, high + round * kPhiloxHighStep};
    }
};

// The keys of all rounds, for who draws many blocks by one key and can read them faster than add them up.
struct alignas(16) PhiloxRounds {
    PhiloxKey round[kPhiloxRounds];
    TOYKERN_HD __attribute__((always_inline)) PhiloxKey of(uint32_t r) const { return round[r]; }
};

struct PhiloxBlock {
    uint32_t word[4];
};

TOYKERN_SHARED PhiloxKey philox_key(int64_t seed) {
    return {(uint32_t)(uint64_t)seed, (uint32_t)((uint64_t)seed >> 32)};
}

// Key is PhiloxKey, or has its `of`.
template <class Key>
TOYKERN_SHARED PhiloxBlock philox(const Key& key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
        const PhiloxKey k = key.of(round);
        const uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k.low;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k.high;
        c3 = (uint32_t)a;
    }
    return {{c0, c1, c2, c3}};
}

// The block with words i, i + 16, i + 32 and i + 48 of a sequence, for i = 64·group + lane, lane < 16
// (docs/data_stream.md §1).
template <class Key>
TOYKERN_SHARED PhiloxBlock sequence_block(const Key& key, Kind kind, uint32_t purpose, uint32_t member, uint32_t slice,
                                          uint32_t step, uint32_t group, uint32_t lane) {
    return philox(key, 16u * group + lane, slice, step, counter_tag(kind, purpose, member));
}

// One word of a sequence by its number.
TOYKERN_SHARED uint32_t sequence_word(PhiloxKey key, Kind kind, uint32_t purpose, uint32_t member, uint32_t slice,
                                      uint32_t step, uint32_t i) {
    return sequence_block(key, kind, purpose, member, slice, step, i >> 6, i & 15u).word[(i >> 4) & 3u];
}

}  // namespace toykern
