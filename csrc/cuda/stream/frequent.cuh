// Gates of the frequent units on a device (docs/data_stream.md §4). The CPU's twin is cpu/stream/frequent.inl.
//
// Owner      any thread draws any gate word: 32 samples of one unit
// Order      integers only
// Roof       about two Philox blocks a gate word (each level decides half of the 32 gates that are left)
#pragma once
#include "common/stream/unit_tables.h"
#include "common/stream/words.h"
#include "cuda/stream/rare.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr uint32_t kNoFeature = 0xFFFFFFFFu;

// The feature of member number `member` that an active unit switches on; kNoFeature where it has none of that number.
TOYKERN_DEVICE uint32_t active_member(const Distribution& d, const TablesView& tables, uint32_t unit, uint32_t choice,
                                      uint32_t member) {
    if (d.unit_kind[unit] == (uint8_t)UnitKind::kExclusive)
        return member ? kNoFeature : chosen_member(tables, d, unit, choice);
    const int64_t at = d.unit_start[unit] + member;
    return at < d.unit_start[unit + 1] ? d.unit_member[at] : kNoFeature;
}

// Bit (s & 31): whether frequent unit d of n_frequent is active in sample s of the block s >> 5. A threshold of 0 is
// "always".
template <class Key>
TOYKERN_DEVICE uint32_t gate_word(const StepKeyOf<Key>& key, uint64_t block, uint32_t d, uint32_t n_frequent,
                                  uint32_t threshold) {
    if (threshold == 0) return 0xFFFFFFFFu;
    const uint64_t w = block * n_frequent + d;
    const uint32_t tag = counter_tag(Kind::kGate, key.purpose, 0);
    // The blocks of a word's eight groups of levels lie sixteen apart, and do not carry into the counter's upper word.
    const uint32_t counter = ((uint32_t)(w >> 4) << 7) | ((uint32_t)w & 15u), upper = (uint32_t)(w >> 29);
    uint32_t undecided = 0xFFFFFFFFu, active = 0;
    for (uint32_t level = 0; level < 32 && undecided && threshold << level; level += 4) {
        const PhiloxBlock random = philox(key.key, counter + 4 * level, upper, key.step, tag);
        // Of these four levels alone, from the last to the first: which words are below the threshold, which equal it.
        uint32_t below = 0, equal = 0xFFFFFFFFu;
        TOYKERN_UNROLL
        for (int l = 3; l >= 0; --l) {
            const uint32_t r = random.word[l], bit = (uint32_t)((int32_t)(threshold << (level + l)) >> 31);
            below = (bit & ~r) | (~(bit ^ r) & below);
            equal &= ~(bit ^ r);
        }
        active |= undecided & below;
        undecided &= equal;
    }
    return active;
}

// One dense slice of the frequent units, a warp to it: calls emit(lane, sample, d, rank) for every active gate of a
// sample below `samples` (of the slice), in no order.
template <class Emit>
TOYKERN_DEVICE void frequent_slice(const Warp& w, const TablesView& tables, const StepKey& key, uint32_t slice,
                                   uint32_t samples, const Emit& emit) {
    const uint32_t units = tables.head().n_frequent;
    const uint64_t first_block = ((uint64_t)slice << dense_slice_log2(units)) >> 5;
    uint32_t rank = 0;
    for (uint32_t block = 0; 32 * block < samples; ++block) {
        const auto gates = [&](uint32_t d) {
            return d < units ? gate_word(key, first_block + block, d, units, tables.threshold()[d]) : 0u;
        };
        // All units' first sixteen samples come before the second sixteen.
        Lane<uint32_t> low;
        w.each([&](int lane) { low[lane] = 0; });
        for (uint32_t d = 0; d < units; d += 32)
            w.each([&](int lane) { low[lane] += (uint32_t)count_bits(gates(d + (uint32_t)lane) & 0xFFFFu); });
        low = sum_of_lanes(w, low);
        uint32_t at_low = rank, at_high = rank + low[w.lane];
        for (uint32_t d = 0; d < units; d += 32) {
            Lane<uint32_t> gate, counts;  // both halves' counts in one word
            w.each([&](int lane) {
                gate[lane] = gates(d + (uint32_t)lane);
                counts[lane] = (uint32_t)count_bits(gate[lane] & 0xFFFFu) | (uint32_t)count_bits(gate[lane] >> 16)
                                                                                << 16;
            });
            const Lane<uint32_t> sums = running_sum(w, counts), all = w.broadcast(sums, 31);
            w.each([&](int lane) {
                uint32_t below = at_low + ((sums[lane] - counts[lane]) & 0xFFFFu);
                uint32_t above = at_high + ((sums[lane] - counts[lane]) >> 16);
                for (uint32_t s = 0; s < 32; ++s) {
                    if (!(gate[lane] >> s & 1u)) continue;
                    const uint32_t r = s < 16 ? below++ : above++;
                    if (32 * block + s < samples) emit(lane, 32 * block + s, d + (uint32_t)lane, r);
                }
            });
            at_low += all[w.lane] & 0xFFFFu;
            at_high += all[w.lane] >> 16;
        }
        rank = at_high;
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
