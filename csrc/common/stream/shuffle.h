// The order in which a finite dataset is gone through (docs/data_stream.md §11): a permutation of its rows for every
// epoch, a pure function of version, seed and epoch, of which any place can be asked for without the others.
//
//   row = π(place): twelve rounds of x ← (x · a_r + c_r) mod 2^b, x ← x xor (x >> s), repeated until x < rows
//
// Each round is a bijection of the b-bit numbers (a_r is odd), so the walk comes back among the rows, after less than two
// applications on average. Integer arithmetic: the same bits everywhere.
#pragma once
#include "common/stream/philox.h"

namespace toykern {

constexpr int kShuffleRounds = 12;

struct Shuffle {
    uint32_t factor[kShuffleRounds], summand[kShuffleRounds];
    uint32_t rows, mask, shift;

    TOYKERN_HD uint32_t row(uint32_t place) const {
        uint32_t x = place;
        do {
            for (int r = 0; r < kShuffleRounds; ++r) {
                x = (x * factor[r] + summand[r]) & mask;
                x ^= x >> shift;
            }
        } while (x >= rows);
        return x;
    }
};

// 1 <= rows <= 2^31.
TOYKERN_SHARED Shuffle shuffle_of(PhiloxKey key, uint64_t epoch, uint32_t rows) {
    Shuffle s = {};
    uint32_t bits = 1;
    while (((uint64_t)1 << bits) < rows) ++bits;
    s.rows = rows;
    s.mask = (uint32_t)(((uint64_t)1 << bits) - 1);
    s.shift = (bits + 1) / 2;
    uint32_t words[2 * kShuffleRounds];
    for (uint32_t block = 0; block < 2 * kShuffleRounds / 4; ++block) {
        const PhiloxBlock drawn =
            philox(key, block, (uint32_t)(epoch >> 32), (uint32_t)epoch, counter_tag(Kind::kShuffle, 0, 0));
        for (int q = 0; q < 4; ++q) words[4 * block + (uint32_t)q] = drawn.word[q];
    }
    for (int r = 0; r < kShuffleRounds; ++r) {
        s.factor[r] = words[2 * r] | 1u;
        s.summand[r] = words[2 * r + 1];
    }
    return s;
}

}  // namespace toykern
