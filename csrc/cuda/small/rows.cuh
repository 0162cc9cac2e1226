// A tile of dense samples for a block of the small regime: frequent units, groups and noise, with rare units among
// them.
//
//   rows [n][stride]    x of the tile's samples, noise included
//   tile [n][stride]    the same without noise (what the target is made from)
//
// Owner      a block. Gates: a thread to a unit; magnitudes: a thread to a block of four random words, by the gates'
//            ranks
// Order      integers; noise is one addition to an entry
// Limits     samples one after another from the batch's first, 32 · column_warps at a time (so that ranks go on)
#pragma once
#include "cuda/small/draw.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

class SmallRows {
  public:
    TOYKERN_DEVICE SmallRows(const Block& b, const SmallRoom& room, const TablesView& tables, const Distribution& d)
        : b_(b), room_(room), tables_(tables), data_(d) {}

    TOYKERN_DEVICE void begin(const StepKey& key) {
        key_ = key;
        rank_ = 0;
        used_ = 0;
    }

    // Samples first … first + count - 1 of the batch, count <= columns. Barriers before and after are its own.
    TOYKERN_DEVICE void draw(SmallArrivals& arrivals, int64_t first, int count) {
        const SmallShape& s = room_.s;
        float* rows = room_.rows();
        b_.each([&](int t) {
            for (int i = 4 * t; i < s.n * s.stride; i += 4 * s.threads()) store_quad(rows + i, Quad{});
        });
        b_.sync();  // the rows are cleared before anything comes into them
        const uint32_t frequent = tables_.head().n_frequent;
        for (int c = 0; frequent && c < count; c += 32) draw_frequent(frequent, first + c, c, count);
        draw_rare(arrivals, first, count);
        float* tile = room_.tile();
        b_.each([&](int t) {
            for (int i = 4 * t; i < s.n * s.stride; i += 4 * s.threads()) store_quad(tile + i, load_quad(rows + i));
        });
        b_.sync();  // the tile has been copied before noise is added to the rows, and is there for all
        if (data_.noise > 0.0f) {
            for (int c = 0; c < count; c += 16) add_noise(first + c, c, count);
            b_.sync();  // the noisy rows are there for all
        }
    }

  private:
    TOYKERN_DEVICE void put(uint32_t feature, int column, uint32_t word) {
        room_.rows()[(int)feature * room_.s.stride + column] = magnitude(data_.magnitude, word);
    }

    // Every active member of an active unit, its words by `word(kind, member)`.
    template <class Words>
    TOYKERN_DEVICE void put_unit(uint32_t unit, int column, uint32_t choice, const Words& word) {
        for (uint32_t member = 0; member < tables_.layout->max_members; ++member) {
            const uint32_t feature = active_member(data_, tables_, unit, choice, member);
            if (feature == kNoFeature) return;
            put(feature, column, word(member));
        }
    }

    // The 32 samples from `sample` on into the columns from `column` on.
    TOYKERN_DEVICE void draw_frequent(uint32_t units, int64_t sample, int column, int count) {
        const SmallShape& s = room_.s;
        const int slice_log2 = dense_slice_log2(units);
        if ((sample & (((int64_t)1 << slice_log2) - 1)) == 0) rank_ = 0;
        uint32_t* gates = room_.bits();
        uint32_t* list = reinterpret_cast<uint32_t*>(room_.tile());  // [32 units] (unit << 5) | sample by rank
        uint32_t* start = list + 32 * units;                         // [units] ranks of its first gates: in the lower
        const SmallExchange& x = room_.exchange();                   // sixteen samples, and in the upper << 16
        b_.each([&](int t) {
            for (uint32_t d = (uint32_t)t; d < units; d += (uint32_t)s.threads())
                gates[d] = gate_word(key_, (uint64_t)sample >> 5, d, units, tables_.threshold()[d]);
        });
        b_.sync();  // the gates are there for the warp that ranks them
        b_.each_warp([&](const Warp& w) {
            if (w.number == 0) rank_gates(w, units, gates, start);
        });
        b_.sync();  // the ranks are there for all
        b_.each([&](int t) {
            for (uint32_t d = (uint32_t)t; d < units; d += (uint32_t)s.threads()) {
                uint32_t low = start[d] & 0xFFFFu, high = start[d] >> 16;
                for (uint32_t left = gates[d]; left; left &= left - 1u) {
                    const uint32_t at = (uint32_t)count_bits((left & (0u - left)) - 1u);
                    list[at < 16 ? low++ : high++] = (d << 5) | at;
                }
            }
        });
        const uint32_t active = x.active;
        b_.sync();  // so is the list; and all have read `active` before it changes
        const uint32_t slice = (uint32_t)(sample >> slice_log2), first_group = rank_ >> 6;
        const int blocks = active ? 16 * (int)(((rank_ + active - 1u) >> 6) - first_group + 1u) : 0;
        b_.each([&](int t) {
            for (int i = t; i < blocks; i += s.threads()) {
                const uint32_t group = first_group + (uint32_t)(i >> 4), lane = (uint32_t)i & 15u;
                const auto words = [&](Kind kind, uint32_t member) {
                    return sequence_block(key_.key, kind, key_.purpose, member, slice, key_.step, group, lane);
                };
                PhiloxBlock values = {}, choices = {};
                if (data_.magnitude != (int32_t)Magnitude::kConstant) values = words(Kind::kFrequentMagnitude, 0);
                if (tables_.layout->has_exclusive) choices = words(Kind::kFrequentChoice, 0);
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    const uint32_t at = 64u * group + 16u * (uint32_t)q + lane - rank_;  // wraps below rank_
                    if (at >= active) continue;
                    const int c = column + (int)(list[at] & 31u);
                    if (c >= count) continue;
                    const uint32_t d = list[at] >> 5;
                    if (tables_.layout->plain)
                        put(tables_.frequent_feature()[d], c, values.word[q]);
                    else
                        put_unit(tables_.frequent_unit()[d], c, choices.word[q], [&](uint32_t member) {
                            return member ? words(Kind::kFrequentMagnitude, member).word[q] : values.word[q];
                        });
                }
            }
        });
        b_.sync();  // the values are in; gates, list and ranks are free
        rank_ += active;
    }

    // All units' gates of the first sixteen samples come before those of the second sixteen.
    TOYKERN_DEVICE void rank_gates(const Warp& w, uint32_t units, const uint32_t* gates, uint32_t* start) {
        uint32_t low = 0;
        Lane<uint32_t> sum;
        w.each([&](int lane) { sum[lane] = 0; });
        for (uint32_t d = 0; d < units; d += 32)
            w.each([&](int lane) {
                if (d + (uint32_t)lane < units) sum[lane] += (uint32_t)count_bits(gates[d + (uint32_t)lane] & 0xFFFFu);
            });
        uint32_t high = sum_of_lanes(w, sum)[w.lane];
        for (uint32_t d = 0; d < units; d += 32) {
            Lane<uint32_t> counts;  // both halves' in one word
            w.each([&](int lane) {
                const uint32_t gate = d + (uint32_t)lane < units ? gates[d + (uint32_t)lane] : 0u;
                counts[lane] = (uint32_t)count_bits(gate & 0xFFFFu) | (uint32_t)count_bits(gate >> 16) << 16;
            });
            const Lane<uint32_t> sums = running_sum(w, counts), all = w.broadcast(sums, 31);
            w.each([&](int lane) {
                const uint32_t before = sums[lane] - counts[lane];
                if (d + (uint32_t)lane < units)
                    start[d + (uint32_t)lane] = (low + (before & 0xFFFFu)) | (high + (before >> 16)) << 16;
            });
            low += all[w.lane] & 0xFFFFu;
            high += all[w.lane] >> 16;
        }
        w.each([&](int lane) {
            if (lane == 0) room_.exchange().active = high;
        });
    }

    TOYKERN_DEVICE void draw_rare(SmallArrivals& arrivals, int64_t first, int count) {
        const SmallShape& s = room_.s;
        for (;;) {
            if (used_ == arrivals.count()) {
                if (arrivals.done()) return;
                arrivals.clear();
                fill_arrivals(arrivals);
                used_ = 0;
            }
            const int64_t last = first + count;
            int low = used_, high = arrivals.count();  // entries of samples before `last`
            while (low < high) {
                const int middle = (low + high) / 2;
                if ((int64_t)room_.place()[middle] < last)
                    low = middle + 1;
                else
                    high = middle;
            }
            b_.each([&](int t) {
                for (int e = used_ + t; e < low; e += s.threads()) put_entry(e, first);
            });
            b_.sync();  // the entries' values are in, and the list is free to be filled again
            used_ = low;
            if (used_ < arrivals.count()) return;
        }
    }
    TOYKERN_DEVICE void put_entry(int e, int64_t first) {
        const uint32_t sample = room_.place()[e], what = room_.first()[e];
        const int column = (int)((int64_t)sample - first);
        if (tables_.layout->plain) {
            room_.rows()[(int)what * room_.s.stride + column] = room_.value()[e];
            return;
        }
        const uint32_t number = reinterpret_cast<const uint32_t*>(room_.value())[e];
        const uint32_t slice = sample >> tables_.head().rare.slice_log2;
        const auto word = [&](Kind kind, uint32_t member) {
            return sequence_word(key_.key, kind, key_.purpose, member, slice, key_.step, number);
        };
        const uint32_t choice = tables_.layout->has_exclusive ? word(Kind::kRareChoice, 0) : 0u;
        put_unit(what, column, choice, [&](uint32_t member) { return word(Kind::kRareMagnitude, member); });
    }

    // To sixteen samples from `sample` on, four features to a random block.
    TOYKERN_DEVICE void add_noise(int64_t sample, int column, int count) {
        const SmallShape& s = room_.s;
        float* rows = room_.rows();
        const uint64_t entry = (uint64_t)(sample >> 4) * (uint64_t)s.n, first_group = entry >> 2;
        const int blocks = 16 * (int)(((entry + (uint64_t)s.n - 1) >> 2) - first_group + 1);
        b_.each([&](int t) {
            for (int i = t; i < blocks; i += s.threads()) {
                const uint64_t group = first_group + (uint64_t)(i >> 4), counter = 16 * group + ((uint64_t)i & 15u);
                const int c = column + (i & 15);
                if (c >= count) continue;
                const PhiloxBlock words = philox(key_.key, (uint32_t)counter, (uint32_t)(counter >> 32), key_.step,
                                                 counter_tag(Kind::kNoise, key_.purpose, 0));
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    const int64_t j = (int64_t)(4 * group + (uint64_t)q) - (int64_t)entry;
                    if (j < 0 || j >= s.n) continue;
                    float& x = rows[(int)j * s.stride + c];
                    x = x + data_.noise * signed_normal(words.word[q]);
                }
            }
        });
    }

    Block b_;
    SmallRoom room_;
    TablesView tables_;
    const Distribution& data_;
    StepKey key_;
    uint32_t rank_;  // of the next frequent gate in its dense slice
    int used_;       // entries of the list that are put already
};

TOYKERN_DEVICE_CALL void draw_rows(SmallRows& rows, SmallArrivals& arrivals, int64_t first, int count) {
    rows.draw(arrivals, first, count);
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
