// Features that depend on each other (docs/data_stream.md §10): exactly k of them, a hierarchy, a Gaussian copula.
//
//   draw   which features are active, as gate words of 32 samples [n]
//   fill   their magnitudes into dense rows
//   append the same as entries
//
// Owner      one worker; a block of 32 samples knows nothing of the others
// Order      integers, but for the copula's sums: single precision, factor by factor, separately rounded
// Cost       a pass over n gate words a block, and for a subset k words a sample; for a hierarchy the gates of n frequent
//            units; for a copula r + 1 normals and products a feature (r(r + 1)/2 products for a full matrix)
#pragma once
#include "cpu/stream/frequent.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

class JointCursor {
  public:
    void carve(Workspace& w, const StreamTables& tables) {
        t_ = &tables;
        const Distribution& d = *tables.data;
        const bool joint = d.joint != (int32_t)Joint::kUnits, copula = d.joint == (int32_t)Joint::kCopula;
        gates_ = w.take<uint32_t>(joint ? (size_t)d.n_features : 0);
        normals_ = w.take<float>(copula ? 32 * (size_t)d.n_factors : 0);
        values_ = w.take<float>(joint ? 128 : 0);
        words_ = w.take<uint32_t>(joint ? 128 : 0);
    }

    // Which features are active in samples 32·block … 32·block + 31, beyond the end of the batch too.
    void draw(const StreamKey& key, uint32_t block, FrequentCursor& frequent) {
        switch ((Joint)t_->data->joint) {
            case Joint::kSubset: draw_subset(key, block); break;
            case Joint::kHierarchy: draw_hierarchy(frequent.gates_of(32 * (int64_t)block)); break;
            default: draw_copula(key, block);
        }
    }

    // Magnitudes of the first `limit` samples into rows that are zero.
    void fill(const StreamKey& key, uint32_t block, float* rows, size_t stride, int limit) {
        each_active(key, block, [&](int s, int64_t j, float value) {
            if (s < limit) rows[(size_t)s * stride + (size_t)j] = value;
        });
    }

    // The block's entries in samples first … last - 1, by sample and feature.
    void append(const StreamKey& key, uint32_t block, int64_t first, int64_t last, FrequentCursor& frequent,
                EntryList& list) {
        draw(key, block, frequent);
        const int64_t base = 32 * (int64_t)block, n = t_->data->n_features;
        const uint32_t from = first > base ? ~0u << (first - base) : ~0u;
        const uint32_t wanted = last - base < 32 ? from & ((1u << (last - base)) - 1u) : from;
        int64_t at[32] = {};  // a sample's entries; then where its next one goes
        for (int64_t j = 0; j < n; ++j)
            for (uint32_t left = gates_[j] & wanted; left; left &= left - 1) ++at[__builtin_ctz(left)];
        for (int s = 0; s < 32; ++s) {
            const int64_t entries = at[s];
            at[s] = list.count;
            list.count += entries;
        }
        each_active(key, block, [&](int s, int64_t j, float value) {
            if (!(wanted >> s & 1u)) return;
            list.sample[at[s]] = (uint32_t)(base + s);
            list.feature[at[s]] = (uint32_t)j;
            list.value[at[s]++] = value;
        });
    }

  private:
    // Calls put(sample, feature, value) for all that is active in the block, by feature and sample.
    template <class Put>
    TOYKERN_INLINE void each_active(const StreamKey& key, uint32_t block, const Put& put) {
        const Distribution& d = *t_->data;
        const bool constant = d.magnitude == (int32_t)Magnitude::kConstant;
        int at = 0, have = 0;
        uint32_t drawn = 0;
        for (int64_t j = 0; j < d.n_features; ++j) {
            uint32_t left = gates_[j];
            if (!left) continue;
            if (!constant && have - at < __builtin_popcount(left)) {
                for (int i = at; i < have; ++i) values_[i - at] = values_[i];
                have -= at;
                at = 0;
                slice_words(key, Kind::kJointMagnitude, 0, block, drawn++, (uint32_t*)(values_ + have));
                to_magnitudes(d.magnitude, values_ + have, 64);
                have += 64;
            }
            for (; left; left &= left - 1, ++at) put(__builtin_ctz(left), j, constant ? 1.0f : values_[at]);
        }
    }

    // Words 16 i … 16 i + 15 of the joint sequence: those of 16 samples. They are drawn four such at a time, into a
    // buffer that holds those of `drawn`.
    TOYKERN_INLINE const uint32_t* joint_words(const StreamKey& key, uint64_t i, uint64_t& drawn, uint32_t* buffer) {
        if (i >> 2 != drawn) {
            drawn = i >> 2;
            long_words(key, Kind::kJoint, drawn, buffer);
        }
        return buffer + 16 * (i & 3u);
    }

    // Floyd's algorithm (Bentley and Floyd 1987): each of the last k features lets in one of those up to itself, and
    // itself where that one is in already.
    void draw_subset(const StreamKey& key, uint32_t block) {
        const Distribution& d = *t_->data;
        const uint32_t n = (uint32_t)d.n_features, k = (uint32_t)d.n_active;
        for (uint32_t j = 0; j < n; ++j) gates_[j] = 0;
        uint64_t drawn = ~(uint64_t)0;
        for (uint32_t half = 0; half < 2; ++half)
            for (uint32_t r = 0; r < k; ++r) {
                const uint32_t* w = joint_words(key, (2 * (uint64_t)block + half) * k + r, drawn, words_);
                const uint32_t last = n - k + r;
                for (uint32_t s = 0; s < 16; ++s) {
                    const uint32_t bit = 1u << (16 * half + s);
                    uint32_t j = (uint32_t)(((uint64_t)w[s] * (last + 1)) >> 32);
                    if (gates_[j] & bit) j = last;
                    gates_[j] |= bit;
                }
            }
    }

    // A feature's own gate, and its parent's.
    void draw_hierarchy(const uint32_t* own) {
        const Distribution& d = *t_->data;
        const uint32_t n = (uint32_t)d.n_features;
        for (uint32_t i = 0; i < n; ++i) {
            const uint32_t j = d.order[i], parent = d.parent[j];
            const uint32_t gate = t_->never[j] ? 0u : own[j];
            gates_[j] = parent < n ? gate & gates_[parent] : gate;
        }
    }

    // Four features at a time: a sum of one alone would wait for its own additions.
    void draw_copula(const StreamKey& key, uint32_t block) {
        constexpr int kTogether = 4, kVectors = 32 / kLanes;
        const Distribution& d = *t_->data;
        const uint64_t n = (uint64_t)d.n_features, r = (uint64_t)d.n_factors, normals = r + (d.unique ? n : 0);
        uint64_t drawn[2] = {~(uint64_t)0, ~(uint64_t)0};
        const auto words = [&](int half, uint64_t i) {
            return joint_words(key, (2 * (uint64_t)block + (uint64_t)half) * normals + i, drawn[half],
                               words_ + 64 * half);
        };
        for (int half = 0; half < 2; ++half)
            for (uint64_t i = 0; i < r; ++i) {
                const uint32_t* w = words(half, i);
                for (int v = 0; v < 16; v += kLanes)
                    store(normals_ + 32 * i + 16 * half + v, signed_normal(load(w + v)));
            }
        for (uint64_t first = 0; first < n; first += kTogether) {
            const int count = n - first < kTogether ? (int)(n - first) : kTogether;
            const float* loading[kTogether];
            uint32_t end = 0;
            for (int q = 0; q < kTogether; ++q) {
                const uint64_t j = first + (uint64_t)(q < count ? q : count - 1);
                loading[q] = d.loading + j * r;
                if (d.loading_end[j] > end) end = d.loading_end[j];
            }
            F z[kTogether][kVectors];
            for (int q = 0; q < kTogether; ++q)
                for (int v = 0; v < kVectors; ++v) z[q][v] = fzero();
            for (uint32_t i = 0; i < end; ++i)
                for (int q = 0; q < kTogether; ++q) {
                    const F a = bcast(loading[q][i]);
                    for (int v = 0; v < kVectors; ++v) z[q][v] = z[q][v] + a * load(normals_ + 32 * i + v * kLanes);
                }
            for (int q = 0; q < count; ++q) {
                const uint64_t j = first + (uint64_t)q;
                const F threshold = bcast(t_->joint_threshold[j]);
                uint32_t gate = 0;
                for (int half = 0; half < 2; ++half) {
                    const uint32_t* w = d.unique ? words(half, r + j) : nullptr;
                    for (int v = 0; v < 16; v += kLanes) {
                        F sum = z[q][(16 * half + v) / kLanes];
                        if (w) sum = sum + bcast(d.unique[j]) * signed_normal(load(w + v));
                        gate |= bits(gt(sum, threshold)) << (16 * half + v);
                    }
                }
                gates_[j] = gate;
            }
        }
    }

    const StreamTables* t_;
    uint32_t* gates_;  // [n]
    float* normals_;   // [r][32] the factors of a copula
    float* values_;    // magnitudes that are drawn and not used yet
    uint32_t* words_;  // [2][64]
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
