// Arrivals of the rare units (docs/data_stream.md §3): a Poisson process in 64-bit fixed point, as a sorted list of
// entries.
//
// Layout     64 or 128 arrivals a refill: gap words -> fixed-point logarithm -> running sum -> (sample, unit) -> packed
//            entries
// Joint      features that depend on each other (joint.inl) come as such a list too where few are active
// Owner      one worker; nothing survives a batch
// Zeros      the cost follows the arrivals alone, whatever the probabilities
// Roof       2 random words (0.16 ns each with two blocks side by side, Zen 5) and about 8 instructions an arrival at
//            v4; measured 1.0 ns an arrival where there are hundreds, 1.6 ns where there are fifty
#pragma once
#include "cpu/stream/joint.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Exponential gaps in units of 2^-32 cells (§3) by a fixed-point logarithm, of `count` lane groups side by side: one
// alone would wait for its own multiplications.
template <int count>
TOYKERN_INLINE void gaps_of(const uint32_t* words, U scale, L* gap) {
    U z[count], tau[count], segment[count], s[count];
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) {
        const U v = load(words + g * kLanes) | ubcast(1u);
        z[g] = clz(v);
        const U x = shl(shl_lanes(v, z[g]), 1);
        segment[g] = shr(x, 28);
        tau[g] = shl(x, 4);
        s[g] = lookup16(kLog2Table[5], segment[g]);
    }
#pragma GCC unroll 4
    for (int k = 4; k >= 1; --k)
#pragma GCC unroll 4
        for (int g = 0; g < count; ++g) s[g] = lookup16(kLog2Table[k], segment[g]) - mulhi(s[g], tau[g]);
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) {
        const U log2 = lookup16(kLog2Table[0], segment[g]) + shr(mulhi(s[g], tau[g]), 3);
        gap[g] = mul_wide(z[g] + z[g], scale) + shr31(mul_wide(log2 ^ ubcast(0xFFFFFFFFu), scale));
    }
}

class RareCursor {
  public:
    void carve(Workspace& w, const StreamTables& tables) {
        t_ = &tables;
        words_ = w.take<uint32_t>(192);
        magnitudes_ = w.take<float>(64 * (size_t)tables.max_members + 64);
        if (tables.data->joint == (int32_t)Joint::kUnits) return;
        joint_.carve(w, tables);
        gates_.carve(w, tables);
    }

    // Samples first … last - 1 of the batch. Arrivals of the first slice that fall before `first` are drawn and
    // dropped.
    void begin(const StreamKey& key, int64_t first, int64_t last) {
        key_ = &key;
        first_ = (uint32_t)first;
        batch_ = (uint32_t)last;
        const RareProcess& r = t_->rare;
        slice_ = r.n_units ? (uint32_t)(first >> r.slice_log2) : 0;
        open_slice();
        if (t_->listed_joint) {
            block_ = first_ >> 5;
            done_ = first >= last;
            gates_.begin_gates(key);
            return;
        }
        done_ = r.n_units == 0 || first >= last;
        choose_width(first_);
    }
    bool done() const { return done_; }

    // Appends the next arrivals (up to 64, or 128 where many are expected, or one slice's rest) to the list; of
    // features that depend on each other what is active in the next 32 samples.
    void refill(EntryList& list) {
        if (t_->listed_joint) {
            joint_.append(*key_, block_++, first_, batch_, gates_, list);
            done_ = 32 * (uint64_t)block_ >= batch_;
            return;
        }
        const RareProcess& r = t_->rare;
        const uint32_t first = 16u * block_, purpose = key_->purpose;
        const uint32_t gap_tag = counter_tag(Kind::kGap, purpose, 0),
                       value_tag = counter_tag(Kind::kRareMagnitude, purpose, 0);
        uint32_t* value_words = (uint32_t*)magnitudes_;
        if (wide_) {
            philox16<2>({first, first + 16u}, slice_, key_->step, {gap_tag, gap_tag}, key_->keys,
                        {words_, words_ + 64});
            philox16<2>({first, first + 16u}, slice_, key_->step, {value_tag, value_tag}, key_->keys,
                        {value_words, value_words + 64});
            to_magnitudes(t_->data->magnitude, magnitudes_, 128);
        } else {
            philox16<2>({first, first}, slice_, key_->step, {gap_tag, value_tag}, key_->keys, {words_, value_words});
            for (uint32_t m = 1; m < t_->max_members; ++m)
                slice_words(*key_, Kind::kRareMagnitude, m, slice_, block_, value_words + 64 * m);
            to_magnitudes(t_->data->magnitude, magnitudes_, 64 * (int)t_->max_members);
            if (t_->has_exclusive) slice_words(*key_, Kind::kRareChoice, 0, slice_, block_, words_ + 128);
        }
        const bool index_fits = r.rho <= 0 || ((uint64_t)r.n_units << r.rho) < ((uint64_t)1 << 32);
        const bool simple = r.uniform && t_->plain && t_->rare_in_order && index_fits;
        const bool ended = simple ? (r.rho < 0 ? arrivals<true, true>(list) : arrivals<true, false>(list))
                                  : (r.rho < 0 ? arrivals<false, true>(list) : arrivals<false, false>(list));
        if (ended) {
            ++slice_;
            open_slice();
            if (((uint64_t)slice_ << r.slice_log2) >= batch_) done_ = true;
        } else {
            block_ += wide_ ? 2 : 1;
        }
        if (list.count) choose_width(list.sample[list.count - 1]);
    }

  private:
    void choose_width(uint32_t sample) { wide_ = t_->plain && t_->rare_rate * (double)(batch_ - sample) > 96.0; }

    // The arrivals of the words in words_; true if the slice ended among them. kSimple: all rare units are single
    // features of one rate, in order. kLongCells: a cell holds several samples (rho < 0).
    template <bool kSimple, bool kLongCells>
    bool arrivals(EntryList& list) {
        const RareProcess r = t_->rare;
        const uint32_t base = slice_ << r.slice_log2;
        const uint32_t in_slice = 1u << r.slice_log2;
        const U limit = ubcast(batch_ - base < in_slice ? batch_ - base : in_slice);
        const int32_t cells_log2 = r.slice_log2 + r.rho;  // a slice's length in cells
        const U cell_limit = ubcast(cells_log2 > 0 ? 1u << cells_log2 : 1u);
        const U first = ubcast(first_ > base ? first_ - base : 0u), offset = ubcast(base), units = ubcast(r.n_units);
        const U scale = ubcast(r.gap_scale), inner = ubcast((1u << (r.rho > 0 ? r.rho : 0)) - 1u);
        U last_sample = last_sample_, last_unit = last_unit_;
        L carry = carry_;
        int64_t count = list.count;
        bool ended = false;
        L times[128 / kLanes];
        const int words = wide_ ? 128 : 64;
        for (int v = 0; v < words; v += kGroup * kLanes) gaps(words_ + v, scale, times + v / kLanes);
        // The end is looked for every 64 arrivals: it is rarely where a core predicts it. What lies past it is not
        // kept.
        for (int v = 0; v < words && !(ended && v % 64 == 0); v += kLanes) {
            const L time = carry_over(times[v / kLanes], carry);
            const U cell = high_words(time), fraction = low_words(time);
            U sample, unit;
            if (kLongCells) {
                sample = shl(cell, -r.rho) + shr(fraction, 32 + r.rho);
                const U phi = shl(fraction, -r.rho);
                unit = kSimple || r.uniform ? mulhi(phi, units) : find_units(ubcast(0), phi);
            } else {
                sample = shr(cell, r.rho);
                const U rest = cell & inner;
                if (kSimple)
                    unit = shr(mullo(rest, units) + mulhi(fraction, units), r.rho);
                else
                    unit = r.uniform ? wide_units(rest, fraction) : find_units(rest, fraction);
            }
            const M valid = lt(cell, cell_limit) & lt(sample, limit);
            const M repeat = eq(sample, shift_in(sample, last_sample)) & eq(unit, shift_in(unit, last_unit));
            last_sample = sample;
            last_unit = unit;
            const M kept = and_not(and_not(valid, repeat), lt(sample, first));
            if (kSimple || t_->plain) {
                store_packed(list.sample + count, sample + offset, kept);
                store_packed(list.feature + count, kSimple || t_->rare_in_order ? unit : gather(t_->rare_feature, unit),
                             kept);
                store_packed((uint32_t*)(list.value + count), load(words_of(magnitudes_) + v), kept);
                count += __builtin_popcount(bits(kept));
            } else {
                list.count = count;
                emit_groups(list, kept, sample + offset, unit, v);
                count = list.count;
            }
            ended |= bits(valid) != bits(mask_first(kLanes));
        }
        last_sample_ = last_sample;
        last_unit_ = last_unit;
        carry_ = carry;
        list.count = count;
        return ended;
    }
    static const uint32_t* words_of(const float* p) { return (const uint32_t*)p; }

    void open_slice() {
        block_ = 0;
        carry_ = lzero();
        last_sample_ = last_unit_ = ubcast(0xFFFFFFFFu);
    }

    // The gaps of some lane groups, summed up within each.
    static constexpr int kGroup = kLanes == 16 ? 4 : 2;
    static TOYKERN_INLINE void gaps(const uint32_t* words, U scale, L* times) {
        gaps_of<kGroup>(words, scale, times);
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) times[g] = running_sum(times[g]);
    }

    // Unit by place when the rates differ: guide, then a short walk, lane by lane.
    U find_units(U rest, U fraction) const {
        const int b = 32 + (t_->rare.rho > 0 ? t_->rare.rho : 0);
        uint32_t high[kLanes], low[kLanes], unit[kLanes];
        store(high, rest);
        store(low, fraction);
        for (int i = 0; i < kLanes; ++i) {
            const uint64_t phi = ((uint64_t)high[i] << 32) | low[i];
            uint32_t u = t_->guide[(phi >> (b - t_->guide_log2)) & ((1u << t_->guide_log2) - 1u)];
            while (t_->start[u + 1] <= phi) ++u;
            unit[i] = u;
        }
        return load(unit);
    }

    U wide_units(U rest, U fraction) const {
        uint32_t high[kLanes], low[kLanes], unit[kLanes];
        store(high, rest);
        store(low, fraction);
        const uint64_t n = t_->rare.n_units;
        for (int i = 0; i < kLanes; ++i) unit[i] = (uint32_t)((high[i] * n + ((low[i] * n) >> 32)) >> t_->rare.rho);
        return load(unit);
    }

    void emit_groups(EntryList& list, M kept, U sample, U unit, int v) {
        const Distribution& d = *t_->data;
        if (!bits(kept)) return;
        uint32_t at[kLanes], which[kLanes];
        store(at, sample);
        store(which, unit);
        for (uint32_t left = bits(kept); left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const uint32_t u = t_->rare_unit[which[i]];
            const float* values = magnitudes_ + v + i;
            if (d.unit_kind[u] == (uint8_t)UnitKind::kExclusive) {
                append(list, at[i], chosen_feature(*t_, u, words_[128 + v + i]), values[0]);
            } else {
                const int64_t first = d.unit_start[u], members = d.unit_start[u + 1] - first;
                for (int64_t r = 0; r < members; ++r) append(list, at[i], d.unit_member[first + r], values[64 * r]);
            }
        }
    }
    static void append(EntryList& list, uint32_t sample, uint32_t feature, float value) {
        list.sample[list.count] = sample;
        list.feature[list.count] = feature;
        list.value[list.count] = value;
        ++list.count;
    }

    const StreamTables* t_;
    JointCursor joint_;
    FrequentCursor gates_;
    uint32_t* words_;    // up to 128 gap words, 64 choice words
    float* magnitudes_;  // 64 for every member number
    const StreamKey* key_;
    uint32_t first_, batch_, slice_, block_;
    L carry_;
    U last_sample_, last_unit_;
    bool done_, wide_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
