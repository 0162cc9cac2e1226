// The data stream on the CPU (docs/data_stream.md): batches drawn sample by sample in order, bit for bit as defined.
//
//   RareCursor      arrivals of the rare units as a sorted list of entries (sample, feature, value), 64 or 128 arrivals a refill
//   FrequentCursor  gates and magnitudes of the frequent units, 16 samples at a time
//   RowCursor       everything, groups and noise included, as dense rows of 32 samples: the path that always works
//
// Owned by one worker. No state survives a batch. Roof: 2 random words an arrival (about half a cycle each at v4) and about 50
// instructions a lane group; 11/32 word and 3 instructions a gate.
#pragma once
#include "cpu/simd.h"
#include "cpu/stream_tables.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

struct StreamKey {
    RoundKeys keys;
    uint32_t step, purpose;
};

inline StreamKey stream_key(int64_t seed, uint32_t step, uint32_t purpose) {
    StreamKey key;
    uint32_t k0 = (uint32_t)(uint64_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        key.keys.k0[round] = k0, key.keys.k1[round] = k1;
    key.step = step;
    key.purpose = purpose;
    return key;
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

// Words turned into magnitudes, in place; count is a multiple of 64.
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
        const size_t room = keep + 128 * (size_t)t.max_members + kLanes;
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

class RareCursor {
  public:
    void carve(Workspace& w, const StreamTables& tables) {
        t_ = &tables;
        words_ = w.take<uint32_t>(192);
        magnitudes_ = w.take<float>(64 * (size_t)tables.max_members + 64);
    }

    // Samples first … last - 1 of the batch. Arrivals of the first slice that fall before `first` are drawn and dropped.
    void begin(const StreamKey& key, int64_t first, int64_t last) {
        key_ = &key;
        first_ = (uint32_t)first;
        batch_ = (uint32_t)last;
        const RareProcess& r = t_->rare;
        slice_ = r.n_units ? (uint32_t)(first >> r.slice_log2) : 0;
        open_slice();
        done_ = r.n_units == 0 || first >= last;
        choose_width(first_);
    }
    bool done() const { return done_; }

    // Appends the next arrivals (up to 64, or 128 where many are expected, or one slice's rest) to the list.
    void refill(EntryList& list) {
        const RareProcess& r = t_->rare;
        const uint32_t first = 16u * block_, purpose = key_->purpose;
        const uint32_t gap_tag = counter_tag(Kind::kGap, purpose, 0),
                       value_tag = counter_tag(Kind::kSparseMagnitude, purpose, 0);
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
                slice_words(*key_, Kind::kSparseMagnitude, m, slice_, block_, value_words + 64 * m);
            to_magnitudes(t_->data->magnitude, magnitudes_, 64 * (int)t_->max_members);
            if (t_->has_exclusive) slice_words(*key_, Kind::kSparseChoice, 0, slice_, block_, words_ + 128);
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

    // The arrivals of the words in words_; true if the slice ended among them. kSimple: all rare units are single features of one
    // rate, in order. kLongCells: a cell holds several samples (rho < 0).
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
        // The end is looked for every 64 arrivals: it is rarely where a core predicts it. What lies past it is not kept.
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

    // Exponential gaps in units of 2^-32 cells (§3) by a fixed-point logarithm, summed up within each lane group. Several lane groups
    // side by side: one alone would wait for its own multiplications.
    static constexpr int kGroup = kLanes == 16 ? 4 : 2;
    static TOYKERN_INLINE void gaps(const uint32_t* words, U scale, L* times) {
        U z[kGroup], tau[kGroup], segment[kGroup], s[kGroup];
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
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
            for (int g = 0; g < kGroup; ++g) s[g] = lookup16(kLog2Table[k], segment[g]) - mulhi(s[g], tau[g]);
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g) {
            const U log2 = lookup16(kLog2Table[0], segment[g]) + shr(mulhi(s[g], tau[g]), 3);
            times[g] = running_sum(shl1(mul_wide(z[g], scale)) + shr31(mul_wide(log2 ^ ubcast(0xFFFFFFFFu), scale)));
        }
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
    uint32_t* words_;    // up to 128 gap words, 64 choice words
    float* magnitudes_;  // 64 for every member number
    const StreamKey* key_;
    uint32_t first_, batch_, slice_, block_;
    L carry_;
    U last_sample_, last_unit_;
    bool done_, wide_;
};

// Frequent units: 16 samples at a time, in order.
class FrequentCursor {
  public:
    void carve(Workspace& w, const StreamTables& tables) {
        t_ = &tables;
        const size_t units = (size_t)tables.data->n_units;
        gates_ = w.take<uint32_t>(16 * units + 64);
        capacity_ = (uint32_t)(16 * units + 512);
        values_ = w.take<float>((size_t)tables.max_members * stride());
        choices_ = w.take<uint32_t>(tables.has_exclusive ? stride() : 0);
    }

    // From sample `first`, a multiple of 16. A start inside a dense slice counts the gates before it.
    void begin(const StreamKey& key, int64_t first) {
        key_ = &key;
        group_ = ~(uint64_t)0;
        const uint32_t d = t_->n_frequent;
        slice_log2_ = d ? dense_slice_log2(d) : 12;
        next_ = first >> slice_log2_ << slice_log2_;
        open_slice(0);
        uint32_t rank = 0;
        for (; next_ < first; next_ += 16) {
            load_gates();
            rank += count16();
        }
        open_slice(rank);
    }

    // Gates of the next 16 samples: bit (s & 15) + shift() of gates()[d]; their magnitudes from offset() on in values(r).
    void next16() {
        if ((next_ & (((int64_t)1 << slice_log2_) - 1)) == 0) open_slice(0);
        slice_ = (uint32_t)(next_ >> slice_log2_);
        load_gates();
        offset_ += active_;
        active_ = count16();
        if (have_ - offset_ < active_) draw_values();
        next_ += 16;
    }
    const uint32_t* gates() const { return now_; }
    int shift() const { return shift_; }
    uint32_t offset() const { return offset_; }
    const float* values(uint32_t member) const { return values_ + (size_t)member * stride(); }
    const uint32_t* choices() const { return choices_; }

  private:
    // Begin a slice, or resume one at a rank.
    void open_slice(uint32_t rank) {
        block_ = rank >> 6;
        offset_ = rank & 63u;
        have_ = active_ = 0;
        if (rank & 63u) {
            slice_ = (uint32_t)(next_ >> slice_log2_);
            draw_block();
        }
    }
    uint32_t count16() const {
        if (t_->all_always) return 16 * t_->n_frequent;
        uint32_t active = 0;
        for (uint32_t d = 0; d < t_->n_frequent; ++d)
            active += (uint32_t)__builtin_popcount(now_[d] >> shift_ & 0xFFFFu);
        return active;
    }

    // The gate words of the 32 samples that next_ lies in; drawn for 16 such blocks at once.
    void load_gates() {
        const uint64_t block = (uint64_t)next_ >> 5, group = block >> 4;
        const uint32_t d = t_->n_frequent;
        if (group != group_) {
            group_ = group;
            for (uint32_t i = 0; i < 16 * d; i += 16) draw_gates(group * d + i / 16, i);
        }
        now_ = gates_ + (block & 15) * d;
        shift_ = (int)(next_ & 16);
    }

    // Sixteen gate words (512 gates), bit-sliced from the highest bit of the threshold down.
    TOYKERN_INLINE void draw_gates(uint64_t word_group, uint32_t at) {
        constexpr int kVectors = 16 / kLanes;
        uint32_t random[128];
        U undecided[kVectors], active[kVectors];
        const U ones = ubcast(0xFFFFFFFFu), zero = ubcast(0u);
        for (int v = 0; v < kVectors; ++v) {
            active[v] = as_words(keep(eq(load(t_->gate_pattern + at + v * kLanes), zero), as_floats(ones)));
            undecided[v] = and_not(ones, active[v]);
        }
        const uint32_t tag = counter_tag(Kind::kGate, key_->purpose, 0);
        for (int level = 0; level < t_->n_levels; level += 8) {
            bool open = false;
            for (int v = 0; v < kVectors; ++v) open = open || any(undecided[v]);
            if (!open) break;
            const uint64_t counter = 16 * (8 * word_group + (uint64_t)(level >> 2));
            philox16<2>({(uint32_t)counter, (uint32_t)counter + 16u}, (uint32_t)(counter >> 32), key_->step, {tag, tag},
                        key_->keys, {random, random + 64});
            for (int l = 0; l < 8; ++l)
                for (int v = 0; v < kVectors; ++v) {
                    const U r = load(random + 16 * l + v * kLanes);
                    const U bit = spread_sign(shl(load(t_->gate_pattern + at + v * kLanes), level + l));
                    active[v] = active[v] | and_not(undecided[v] & bit, r);
                    undecided[v] = and_not(undecided[v], r ^ bit);
                }
        }
        for (int v = 0; v < kVectors; ++v) store(gates_ + at + v * kLanes, active[v]);
    }

    // Sequences are drawn 64 words at a time, when they are needed, and kept until they are used.
    void draw_values() {
        if (offset_ + active_ > capacity_) {
            for (uint32_t r = 0; r < t_->max_members; ++r) {
                float* v = values_ + (size_t)r * stride();
                for (uint32_t i = offset_; i < have_; i += kLanes) store(v + i - offset_, load(v + i));
            }
            for (uint32_t i = offset_; t_->has_exclusive && i < have_; i += kLanes)
                store(choices_ + i - offset_, load(choices_ + i));
            have_ -= offset_;
            offset_ = 0;
        }
        while (have_ < offset_ + active_) draw_block();
    }
    void draw_block() {
        const uint32_t tag = counter_tag(Kind::kDenseMagnitude, key_->purpose, 0);
        uint32_t* at = (uint32_t*)(values_ + have_);
        const bool lone = t_->max_members == 1 && !t_->has_exclusive;
        const int blocks = lone ? 3 : 1;
        if (lone) {
            philox16<3>({16u * block_, 16u * block_ + 16u, 16u * block_ + 32u}, slice_, key_->step, {tag, tag, tag},
                        key_->keys, {at, at + 64, at + 128});
        } else {
            for (uint32_t r = 0; r < t_->max_members; ++r)
                slice_words(*key_, Kind::kDenseMagnitude, r, slice_, block_,
                            (uint32_t*)(values_ + have_ + r * stride()));
            if (t_->has_exclusive) slice_words(*key_, Kind::kDenseChoice, 0, slice_, block_, choices_ + have_);
        }
        for (uint32_t r = 0; r < t_->max_members; ++r)
            to_magnitudes(t_->data->magnitude, values_ + have_ + r * stride(), 64 * blocks);
        have_ += 64 * (uint32_t)blocks;
        block_ += (uint32_t)blocks;
    }
    size_t stride() const { return capacity_ + 192; }

    const StreamTables* t_;
    uint32_t *gates_, *choices_;
    float* values_;
    const uint32_t* now_;
    const StreamKey* key_;
    uint64_t group_;
    int64_t next_;
    int slice_log2_, shift_;
    uint32_t capacity_;
    uint32_t slice_, block_;
    uint32_t offset_, active_, have_;
};

// Everything as dense rows, 32 samples at a time: frequent and rare units, groups, noise.
class RowCursor {
  public:
    void carve(Workspace& w, const StreamTables& tables) {
        t_ = &tables;
        rare_.carve(w, tables);
        frequent_.carve(w, tables);
        list_.carve(w, tables, 64 * (size_t)tables.max_members);
    }
    // Samples first (a multiple of 32) … last - 1.
    void begin(const StreamKey& key, int64_t first, int64_t last) {
        key_ = &key;
        next_ = first;
        last_ = last;
        list_.count = 0;
        rare_.begin(key, first, last);
        if (t_->n_frequent) frequent_.begin(key, first);
    }
    bool done() const { return next_ >= last_; }

    // The next 32 samples (fewer at the end) without noise into clean [32][stride]; returns their number.
    int next32(float* clean, size_t stride) {
        const int rows = (int)(last_ - next_ < 32 ? last_ - next_ : 32);
        for (size_t i = 0; i < (size_t)rows * stride; ++i) clean[i] = 0.0f;
        if (t_->n_frequent)
            for (int half = 0; half < rows; half += 16) {
                frequent_.next16();
                fill_frequent(clean + (size_t)half * stride, stride, rows - half);
            }
        fill_rare(clean, stride, rows);
        next_ += 32;
        return rows;
    }

    // noisy = clean + noise for the rows that next32 has just drawn.
    void add_noise(const float* clean, float* noisy, size_t stride, int rows) const {
        const uint64_t n = (uint64_t)t_->data->n_features;
        const F sigma = bcast(t_->data->noise);
        uint32_t words[64];
        for (int half = 0; half < rows; half += 16) {
            uint64_t drawn = ~(uint64_t)0;
            const uint64_t base = ((uint64_t)(next_ - 32 + half) >> 4) * n;
            for (uint64_t j = 0; j < n; ++j) {
                if ((base + j) >> 2 != drawn) {
                    drawn = (base + j) >> 2;
                    long_words(*key_, Kind::kNoise, drawn, words);
                }
                float noise[16];
                for (int v = 0; v < 16; v += kLanes)
                    store(noise + v, signed_normal(load(words + 16 * ((base + j) & 3u) + v)) * sigma);
                for (int s = 0; s < 16 && half + s < rows; ++s) {
                    const size_t at = (size_t)(half + s) * stride + j;
                    noisy[at] = clean[at] + noise[s];
                }
            }
        }
    }

  private:
    void fill_frequent(float* rows, size_t stride, int limit) {
        const Distribution& d = *t_->data;
        const uint32_t* gates = frequent_.gates();
        uint32_t at = frequent_.offset();
        for (uint32_t k = 0; k < t_->n_frequent; ++k) {
            const uint32_t u = t_->frequent_unit[k];
            const int64_t first = d.unit_start[u], members = d.unit_start[u + 1] - first;
            const bool exclusive = d.unit_kind[u] == (uint8_t)UnitKind::kExclusive;
            for (int v = 0; v < 16; v += kLanes) {
                const M m = mask_bits(gates[k] >> (frequent_.shift() + v));
                const M used = m & mask_first(limit - v > 0 ? limit - v : 0);
                const U row = mullo(ulane() + ubcast((uint32_t)v), ubcast((uint32_t)stride));
                if (exclusive) {
                    fill_exclusive(rows, stride, u, v, bits(m), limit, at);
                } else {
                    for (int64_t r = 0; r < members; ++r)
                        scatter(rows + d.unit_member[first + r], row, load_dealt(frequent_.values((uint32_t)r) + at, m),
                                used);
                }
                at += (uint32_t)__builtin_popcount(bits(m));
            }
        }
    }
    void fill_exclusive(float* rows, size_t stride, uint32_t u, int v, uint32_t active, int limit, uint32_t at) {
        for (; active; active &= active - 1, ++at) {
            const int s = v + __builtin_ctz(active);
            if (s >= limit) continue;
            rows[(size_t)s * stride + chosen_feature(*t_, u, frequent_.choices()[at])] = frequent_.values(0)[at];
        }
    }
    void fill_rare(float* rows, size_t stride, int limit) {
        const int64_t end = next_ + limit;
        for (;;) {
            int64_t used = 0;
            for (; used < list_.count && list_.sample[used] < end; ++used)
                rows[(size_t)(list_.sample[used] - next_) * stride + list_.feature[used]] = list_.value[used];
            const bool more = used == list_.count && !rare_.done();
            list_.drop(used);
            if (!more) return;
            rare_.refill(list_);
        }
    }

    const StreamTables* t_;
    RareCursor rare_;
    FrequentCursor frequent_;
    EntryList list_;
    const StreamKey* key_;
    int64_t next_, last_;
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
