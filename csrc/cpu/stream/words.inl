// Random words of the data stream on the CPU, and what single words become (docs/data_stream.md §1, §5-§7): magnitudes,
// normals, choices; the list of entries that arrivals are written to.
//
// Stateless: a word is a function of key, kind, member, slice and index. Exact at every level.
#pragma once
#include "cpu/simd/simd.h"
#include "cpu/stream/tables.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

struct StreamKey {
    RoundKeys keys;
    uint32_t step, purpose;
};

inline StreamKey stream_key(int64_t seed, uint32_t step, uint32_t purpose) {
    return {RoundKeys::of(seed), step, purpose};
}

// Words 64·block … 64·block + 63 of a slice's sequence.
TOYKERN_INLINE void slice_words(const StreamKey& key, Kind kind, uint32_t member, uint32_t slice, uint32_t block,
                                uint32_t* out) {
    philox16<1>({16u * block}, slice, key.step, {counter_tag(kind, key.purpose, member)}, key.keys, {out});
}

// The same for a sequence with 64-bit indices (noise).
TOYKERN_INLINE void long_words(const StreamKey& key, Kind kind, uint64_t block, uint32_t* out) {
    philox16<1>({(uint32_t)(16u * block)}, (uint32_t)((16u * block) >> 32), key.step,
                {counter_tag(kind, key.purpose, 0)}, key.keys, {out});
}

TOYKERN_INLINE F half_normal(U w) {
    const U v = w | ubcast(1u), z = clz(v), x = shl(shl_lanes(v, z), 1);
    const U row = shl(z, 2) + shr(x, 30);
    const F t = to_float_signed(shr(x, 6) & ubcast(0xFFFFFFu)) * bcast(0x1p-24f);
    F y = gather(kHalfNormalTable[4], row);
    y = y * t + gather(kHalfNormalTable[3], row);
    y = y * t + gather(kHalfNormalTable[2], row);
    y = y * t + gather(kHalfNormalTable[1], row);
    y = y * t + gather(kHalfNormalTable[0], row);
    return fmax(y, bcast(0x1p-32f));
}

TOYKERN_INLINE F signed_normal(U w) { return as_floats(as_words(half_normal(w)) ^ shl(w, 31)); }

// As exponential and lognormal of common/stream/words.h.
TOYKERN_INLINE F exponential(U w) {
    const U v = w | ubcast(1u), z = clz(v), x = shl(shl_lanes(v, z), 1);
    const U segment = shr(x, 28), tau = shl(x, 4);
    U s = lookup16(kLog2Table[5], segment);
    for (int k = 4; k >= 1; --k) s = lookup16(kLog2Table[k], segment) - mulhi(s, tau);
    const U g = lookup16(kLog2Table[0], segment) + shr(mulhi(s, tau), 3);
    const F fraction = to_float((g ^ ubcast(0xFFFFFFFFu)) | ubcast(1u)) * bcast(0x1p-32f);
    return (to_float_signed(z) + fraction) * bcast(kLn2Single);
}

TOYKERN_INLINE F lognormal(U w) {
    const F t = signed_normal(w) * bcast(kLog2ESingle), magic = bcast(kRoundingMagic), shifted = t + magic;
    const F f = t - (shifted - magic);
    F y = bcast(exp2_coefficient(6));
    for (int k = 5; k >= 0; --k) y = y * f + bcast(exp2_coefficient(k));
    return as_floats(as_words(y) + shl(as_words(shifted), 23));
}

// Words turned into magnitudes, in place; count is a multiple of kLanes.
TOYKERN_INLINE void to_magnitudes(int32_t magnitude, float* words, int count) {
    const uint32_t* w = (const uint32_t*)words;
    switch ((Magnitude)magnitude) {
        case Magnitude::kUniform:
            for (int i = 0; i < count; i += kLanes)
                store(words + i, to_float(load(w + i) | ubcast(1u)) * bcast(0x1p-32f));
            break;
        case Magnitude::kSymmetric:
            for (int i = 0; i < count; i += kLanes)
                store(words + i, to_float_signed(load(w + i) | ubcast(1u)) * bcast(0x1p-31f));
            break;
        case Magnitude::kHalfNormal:
            for (int i = 0; i < count; i += kLanes) store(words + i, half_normal(load(w + i)));
            break;
        case Magnitude::kExponential:
            for (int i = 0; i < count; i += kLanes) store(words + i, exponential(load(w + i)));
            break;
        case Magnitude::kLognormal:
            for (int i = 0; i < count; i += kLanes) store(words + i, lognormal(load(w + i)));
            break;
        default:
            for (int i = 0; i < count; i += kLanes) store(words + i, bcast(1.0f));
    }
}

// Consecutive magnitudes dealt to the lanes of m, zero elsewhere.
TOYKERN_INLINE F load_dealt(const float* p, M m) { return as_floats(load_dealt((const uint32_t*)p, m)); }

// Which member of the exclusive unit u a choice word picks.
TOYKERN_INLINE uint32_t chosen_feature(const StreamTables& t, uint32_t u, uint32_t word) {
    const Distribution& d = *t.data;
    const int64_t first = d.unit_start[u], members = d.unit_start[u + 1] - first;
    if (t.choice_equal[u]) return d.unit_member[first + (int64_t)(((uint64_t)word * (uint64_t)members) >> 32)];
    int64_t r = 0;
    while (r + 1 < members && t.choice_start[first + r + 1] <= word) ++r;
    return d.unit_member[first + r];
}

// Entries of the batch in the order of their samples.
struct EntryList {
    uint32_t* sample;
    uint32_t* feature;
    float* value;
    int64_t count;

    // Room for `keep` entries beside one refill.
    void carve(Workspace& w, const StreamTables& t, size_t keep) {
        const size_t room = keep + t.refill_room + kLanes;
        sample = w.take<uint32_t>(room);
        feature = w.take<uint32_t>(room);
        value = w.take<float>(room);
    }
    // Forget the first `used` entries.
    void drop(int64_t used) {
        for (int64_t i = used; i < count; ++i) {
            sample[i - used] = sample[i];
            feature[i - used] = feature[i];
            value[i - used] = value[i];
        }
        count -= used;
    }
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
