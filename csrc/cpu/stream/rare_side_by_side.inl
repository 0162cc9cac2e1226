// Arrivals of the rare units of several models at once, a model to a lane (docs/data_stream.md §3), as columns: the
// non-empty samples of each model, one after another.
//
// Layout     column c of all models is n vectors of one value for each model, x [columns][n][kLanes]
// Work       that of RareCursor (rare.inl), without its sums across lanes, its packing and its look for where a sample
//            ends: a gap is added to the model's own time, and a column opens where the sample is another than before
// Words      Philox with a key for each lane. A block of four words is made when its first is needed, so that little is
//            drawn past the last arrival of the model that has most
// Exact      the entries are RareCursor's, bit by bit, in the same order
// Owner      one worker; nothing survives a batch
// Limits     side_by_side_arrivals. Models with more arrivals than there are rows are named, and are not whole
// Roof       2 random words and some 60 vector instructions an arrival of all models, and a store of a float for each,
//            which are a third of the time (Zen 4)
// Twin       RareCursor, for one model
#pragma once
#include "cpu/stream/rare.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

// Philox's round keys of kLanes models, and what of a step's first two rounds no counter changes.
struct SideBySideKeys {
    L k0[10], k1[10];
    L first, second, third;  // x0 after round 1, and what is added in round 2 to the products of x2 and of x0
    L fourth;                // x3 after round 2

    void set(const int64_t* seed) {  // [kLanes]
        uint32_t low[kLanes], high[kLanes];
        for (int l = 0; l < kLanes; ++l) low[l] = philox_key(seed[l]).low, high[l] = philox_key(seed[l]).high;
        U a = load(low), b = load(high);
        for (int round = 0; round < 10; ++round) {
            k0[round] = widen(a), k1[round] = widen(b);
            a = a + ubcast(kPhiloxLowStep), b = b + ubcast(kPhiloxHighStep);
        }
    }
    void open(uint32_t step) {
        const uint64_t product = (uint64_t)step * 0xCD9E8D57u;
        first = lbcast((uint32_t)(product >> 32)) ^ k0[0];
        second = lbcast((uint32_t)product) ^ k0[1];
        fourth = mul_low(first, lbcast(0xD2511F53u));
        third = shr32(fourth) ^ k1[1];
    }
};

// The block of counter c0 (slice 0) of two kinds: words c0, c0 + 16, c0 + 32, c0 + 48 of every model go to rows 0, 16,
// 32 and 48 of out[kind].
TOYKERN_INLINE void philox_side_by_side(uint32_t c0, const uint32_t (&tag)[2], const SideBySideKeys& keys,
                                        uint32_t* const (&out)[2]) {
    const L m0 = lbcast(0xD2511F53u), m1 = lbcast(0xCD9E8D57u);
    const uint64_t product = (uint64_t)c0 * 0xD2511F53u;
    L x0[2], x1[2], x2[2], x3[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        x1[i] = mul_low(lbcast((uint32_t)(product >> 32) ^ tag[i]) ^ keys.k1[0], m1);
        x0[i] = shr32(x1[i]) ^ keys.second;
        x2[i] = lbcast((uint32_t)product) ^ keys.third;
        x3[i] = keys.fourth;
    }
#pragma GCC unroll 8
    for (int round = 2; round < 10; ++round) {
        const L a = keys.k0[round], b = keys.k1[round];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const L p0 = mul_low(x0[i], m0), p1 = mul_low(x2[i], m1);
            x0[i] = xor3(shr32(p1), x1[i], a);
            x2[i] = xor3(shr32(p0), x3[i], b);
            x1[i] = p1, x3[i] = p0;
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        store(out[i], low_words(x0[i]));
        store(out[i] + 16 * kLanes, low_words(x1[i]));
        store(out[i] + 32 * kLanes, low_words(x2[i]));
        store(out[i] + 48 * kLanes, low_words(x3[i]));
    }
}

// Whether a model's arrivals can be drawn beside others': single features of one rate, in order, less than one arrival a
// sample (and not so few that a time in samples would overflow), a batch of one slice.
inline bool side_by_side_arrivals(const StreamTables& t, int64_t batch_size) {
    return t.plain && !t.n_frequent && t.data->noise == 0.0f && t.rare.uniform && t.rare_in_order &&
           t.rare.n_units == (uint32_t)t.data->n_features && t.rare.rho <= 0 && t.rare.rho >= -16 &&
           batch_size <= ((int64_t)1 << t.rare.slice_log2);
}

constexpr int kSideBySideGroup = 4;  // arrivals of a model whose gaps are made side by side

class SideBySideArrivals {
  public:
    // `rows`, a multiple of kSideBySideGroup: the most arrivals of a model. Each is a column at most.
    void carve(Workspace& w, int64_t n_features, int rows) {
        n_ = (int)n_features;
        rows_ = rows;
        keys_ = w.take<SideBySideKeys>(1);
        words_ = w.take<uint32_t>(64 * kLanes);
        magnitudes_ = w.take<float>(64 * kLanes);
        x_ = w.take<float>((size_t)rows * n_features * kLanes + kLanes);
        lane_ = w.take<OfLane>(1);
    }
    // Lanes without a model have a process without units and an empty batch.
    void set_lane(int lane, int64_t seed, const RareProcess& r, int64_t batch_size) {
        OfLane& of = *lane_;
        of.seed[lane] = seed;
        of.scale[lane] = r.gap_scale;
        of.samples_log2[lane] = (uint32_t)-r.rho;
        of.batch[lane] = (uint32_t)batch_size;
    }
    // After all lanes are set.
    void begin(int32_t magnitude, uint32_t purpose) {
        keys_->set(lane_->seed);
        magnitude_ = magnitude;
        purpose_ = purpose;
    }

    // One batch; sets columns(). Returns which models have more arrivals than there are rows, a bit for each.
    uint32_t draw(uint32_t step) {
        const OfLane& of = *lane_;
        keys_->open(step);
        const uint32_t tag[2] = {counter_tag(Kind::kGap, purpose_, 0), counter_tag(Kind::kRareMagnitude, purpose_, 0)};
        const U scale = load(of.scale), batch = load(of.batch), row = ubcast((uint32_t)(n_ * kLanes));
        const U nowhere = ubcast((uint32_t)(rows_ * n_ * kLanes)), vectors = ubcast(~(uint32_t)(kLanes - 1));
        const L up = widen(load(of.samples_log2)), units = lbcast((uint32_t)(n_ * kLanes));
        U sample = ubcast(0xFFFFFFFFu), at = ulane() - row, place = sample;  // at: the column in hand, in x
        L time = lzero();
        uint32_t open = 0;
        float* clear = x_;
        for (int i = 0; i < rows_; i += kSideBySideGroup) {
            const int in_block = i & 63;
            if (in_block < 16) {
                const uint32_t c0 = (uint32_t)(i >> 6) * 16u + (uint32_t)in_block;
                for (int g = 0; g < kSideBySideGroup; ++g)
                    philox_side_by_side(
                        c0 + g, tag, *keys_,
                        {words_ + (in_block + g) * kLanes, (uint32_t*)magnitudes_ + (in_block + g) * kLanes});
            }
            L gap[kSideBySideGroup];
            float* values = magnitudes_ + in_block * kLanes;
            gaps_of<kSideBySideGroup>(words_ + in_block * kLanes, scale, gap);
            to_magnitudes(magnitude_, values, kSideBySideGroup * kLanes);
            for (int j = 0; j < kSideBySideGroup * n_; ++j, clear += kLanes) store(clear, fzero());
#pragma GCC unroll 4
            for (int g = 0; g < kSideBySideGroup; ++g) {
                time = time + gap[g];
                const L samples = shl_lanes(time, up);  // in samples, with 32 bits of a sample's inside
                const U before = sample, place_before = place;
                sample = high_words(samples);
                const M valid = lt(sample, batch), opens = and_not(valid, eq(sample, before));
                at = select(opens, at + row, at);
                place = at + (high_words(mul_low(samples, units)) & vectors);  // a unit is a vector further
                const M kept = and_not(valid, eq(place, place_before));
                open = bits(valid);
                scatter_all(x_, select(kept, place, nowhere), values + g * kLanes);
            }
            if (!open) break;
        }
        store(columns_, at + row);
        for (int l = 0; l < kLanes; ++l) columns_[l] = (columns_[l] - (uint32_t)l) / (uint32_t)(n_ * kLanes);
        return open;
    }
    const float* x() const { return x_; }
    const uint32_t* columns() const { return columns_; }  // of each model

  private:
    struct OfLane {
        int64_t seed[kLanes];
        uint32_t scale[kLanes], samples_log2[kLanes], batch[kLanes];
    };
    int n_, rows_;
    int32_t magnitude_;
    uint32_t purpose_;
    SideBySideKeys* keys_;
    OfLane* lane_;
    uint32_t* words_;    // [64][kLanes]
    float* magnitudes_;  // [64][kLanes]
    float* x_;           // [rows][n][kLanes], and a place for what is not kept
    uint32_t columns_[kLanes];
};

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
