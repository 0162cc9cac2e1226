// Gates and magnitudes of the frequent units (docs/data_stream.md §4): 512 gates at a time, bit-sliced; 16 samples
// handed out at a time.
//
// Owner      one worker; nothing survives a batch
// Roof       11/32 random word a gate, one a magnitude; no gate words where all units are always active
#pragma once
#include "cpu/stream/words.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

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

    // The gates alone, without their magnitudes: a word of 32 samples from `first` (a multiple of 32) for each unit.
    void begin_gates(const StreamKey& key) {
        key_ = &key;
        group_ = ~(uint64_t)0;
    }
    const uint32_t* gates_of(int64_t first) {
        next_ = first;
        load_gates();
        return now_;
    }

    // Gates of the next 16 samples: bit (s & 15) + shift() of gates()[d]; their magnitudes from offset() on in
    // values(r).
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
        const uint32_t d = t_->n_gates;
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
        const uint32_t tag = counter_tag(Kind::kFrequentMagnitude, key_->purpose, 0);
        uint32_t* at = (uint32_t*)(values_ + have_);
        const bool lone = t_->max_members == 1 && !t_->has_exclusive;
        const int blocks = lone ? 3 : 1;
        if (lone) {
            philox16<3>({16u * block_, 16u * block_ + 16u, 16u * block_ + 32u}, slice_, key_->step, {tag, tag, tag},
                        key_->keys, {at, at + 64, at + 128});
        } else {
            for (uint32_t r = 0; r < t_->max_members; ++r)
                slice_words(*key_, Kind::kFrequentMagnitude, r, slice_, block_,
                            (uint32_t*)(values_ + have_ + r * stride()));
            if (t_->has_exclusive) slice_words(*key_, Kind::kFrequentChoice, 0, slice_, block_, choices_ + have_);
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

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
