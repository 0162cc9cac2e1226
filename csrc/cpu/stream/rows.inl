// Everything the stream can draw, groups and noise included, as dense rows of 32 samples: the path that always works.
//
// Owner      one worker; nothing survives a batch
// Cost       that of the dense rows; training takes it only for noise, for groups among frequent units, and for features
//            that depend on each other (joint.inl)
#pragma once
#include "cpu/stream/joint.inl"
#include "cpu/stream/rare.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Everything as dense rows, 32 samples at a time: frequent and rare units, groups, noise.
class RowCursor {
  public:
    void carve(Workspace& w, const StreamTables& tables) {
        t_ = &tables;
        rare_.carve(w, tables);
        frequent_.carve(w, tables);
        list_.carve(w, tables, 64 * (size_t)tables.max_members);
        joint_.carve(w, tables);
    }
    // Samples first (a multiple of 32) … last - 1.
    void begin(const StreamKey& key, int64_t first, int64_t last) {
        key_ = &key;
        next_ = first;
        last_ = last;
        list_.count = 0;
        in_order_ = 0;
        while (t_->plain && in_order_ < t_->n_frequent && t_->frequent_feature[in_order_] == in_order_) ++in_order_;
        rare_.begin(key, first, last);
        if (is_joint())
            frequent_.begin_gates(key);
        else if (t_->n_frequent)
            frequent_.begin(key, first);
    }
    bool done() const { return next_ >= last_; }

    // The next 32 samples (fewer at the end) without noise into clean [32][stride]; returns their number.
    int next32(float* clean, size_t stride) {
        const int rows = (int)(last_ - next_ < 32 ? last_ - next_ : 32);
        const uint32_t blocks = blocks_within(stride);
        for (size_t s = 0; s < (size_t)rows; ++s)
            for (size_t j = blocks; j < stride; ++j) clean[s * stride + j] = 0.0f;
        if (is_joint()) {
            joint_.draw(*key_, (uint32_t)(next_ >> 5), frequent_);
            joint_.fill(*key_, (uint32_t)(next_ >> 5), clean, stride, rows);
            next_ += 32;
            return rows;
        }
        if (t_->n_frequent)
            for (int half = 0; half < rows; half += 16) {
                frequent_.next16();
                fill_frequent(clean + (size_t)half * stride, stride, rows - half, blocks);
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
    bool is_joint() const { return t_->data->joint != (int32_t)Joint::kUnits; }
    // Frequent units that are the features 0, 1, … one by one go by blocks of a lane group, in which every place is
    // written. Returns where their last block ends, which may be past the last feature of all.
    uint32_t blocks_within(size_t stride) const {
        const uint32_t whole = in_order_ / kLanes * kLanes;
        return in_order_ == (uint32_t)t_->data->n_features && whole < in_order_ && whole + kLanes <= stride
                   ? whole + kLanes
                   : whole;
    }
    // Units k … k + kLanes - 1, turned from units by samples to samples by units. `at`: the place of their values.
    void fill_block(float* rows, size_t stride, int limit, uint32_t k, uint32_t& at) {
        const uint32_t* gates = frequent_.gates();
        constexpr int kParts = 16 / kLanes;
        F block[kParts][kLanes];
        for (int r = 0; r < kLanes; ++r)
            for (int v = 0; v < kParts; ++v) {
                const bool there = k + (uint32_t)r < in_order_;
                const M m = mask_bits(there ? gates[k + (uint32_t)r] >> (frequent_.shift() + v * kLanes) : 0u);
                block[v][r] = load_dealt(frequent_.values(0) + at, m);
                at += (uint32_t)__builtin_popcount(bits(m));
            }
        for (int v = 0; v < kParts; ++v) {
            transpose(block[v]);
            for (int s = 0; s < kLanes && v * kLanes + s < limit; ++s)
                store(rows + (size_t)(v * kLanes + s) * stride + k, block[v][s]);
        }
    }
    void fill_frequent(float* rows, size_t stride, int limit, uint32_t blocks) {
        const Distribution& d = *t_->data;
        const uint32_t* gates = frequent_.gates();
        uint32_t at = frequent_.offset();
        for (uint32_t k = 0; k < blocks; k += kLanes) fill_block(rows, stride, limit, k, at);
        for (uint32_t k = blocks; k < t_->n_frequent; ++k) {
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
    JointCursor joint_;
    const StreamKey* key_;
    int64_t next_, last_;
    uint32_t in_order_;  // the first frequent units that are the features of the same numbers
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
