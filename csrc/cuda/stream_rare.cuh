// Arrivals of the rare units on a device (docs/data_stream.md §3), a warp to a slice. The CPU's twin is cpu/stream_rare.inl.
//
//   gap words -> fixed-point logarithm -> running sum -> (sample, unit), 128 arrivals a round
//
// Layout     lane l draws Philox block l & 15 of word group l >> 4: it holds arrivals 64 (l >> 4) + 16 q + (l & 15), q = 0 … 3, of the round
// Owner      one warp; slices know nothing of each other
// Order      integers only: exact, whatever the order
// Limits     none; any number of arrivals by further rounds
// Roof       a Philox block and 4 x 35 operations for the gaps, 4 x 12 for a scan, 4 x 15 for the places of 128 arrivals
#pragma once
#include "common/stream_words.h"
#include "common/unit_tables.h"
#include "cuda/warp.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// The stream of one model at one step.
struct StepKey {
    PhiloxKey key;
    uint32_t step, purpose;
};

constexpr int kRoundArrivals = 128;

// What a lane knows of its four arrivals of a round.
struct Arrivals {
    uint32_t sample[4];  // within the slice
    uint32_t unit[4];    // number among the rare units
    bool kept[4];        // within the slice and the batch, and no repeat of the arrival just before it
};

class RareSlice {
  public:
    // Slice number `slice` of a batch; `samples` are those of the batch that lie in it (the last slice may be cut).
    TOYKERN_DEVICE RareSlice(const TablesView& tables, const StepKey& key, uint32_t slice, uint32_t samples)
        : tables_(tables), key_(key), slice_(slice), samples_(samples) {}

    TOYKERN_DEVICE bool done() const { return done_; }

    // The next 128 arrivals.
    TOYKERN_DEVICE Lane<Arrivals> next(const Warp& w) {
        const RareProcess r = tables_.head().rare;
        Lane<Arrivals> a;
        Lane<uint64_t> time[4];
        w.each([&](int lane) {
            const PhiloxBlock words = sequence_block(key_.key, Kind::kGap, key_.purpose, 0, slice_, key_.step,
                                                     2u * round_ + ((uint32_t)lane >> 4), (uint32_t)lane & 15u);
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                time[q][lane] = gap(words.word[q], r.gap_scale);
            }
        });
        // Times in the order of the arrivals: within runs of sixteen lanes, then run by run.
        Lane<uint64_t> before;
        w.each([&](int lane) { before[lane] = carry_; });
        Lane<uint64_t> last[4];
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            time[q] = running_sum(w, time[q], 16);
            last[q] = w.broadcast(time[q], 15, 16);
        }
        Lane<uint64_t> half;
        w.each([&](int lane) { half[lane] = last[0][lane] + last[1][lane] + last[2][lane] + last[3][lane]; });
        const Lane<uint64_t> lower = w.broadcast(half, 0), upper = w.broadcast(half, 16);
        w.each([&](int lane) {
            uint64_t sum = carry_ + (lane >= 16 ? lower[lane] : 0);
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                time[q][lane] += sum;
                sum += last[q][lane];
            }
        });
        // Uniform, as both broadcasts are; carry_ is the same in all lanes.
        const uint64_t round_sum = first_of(w, lower) + first_of(w, upper);
        const uint32_t cell_limit = cells_in_slice(r);
        Lane<uint64_t> tag[4];
        Lane<bool> ended;
        w.each([&](int lane) {
            ended[lane] = false;
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                const Place p = place(time[q][lane], r.rho);
                a[lane].sample[q] = p.sample;
                a[lane].kept[q] = (uint32_t)(time[q][lane] >> 32) < cell_limit && p.sample < samples_;
                a[lane].unit[q] = a[lane].kept[q] ? rare_unit_at(tables_, p.phi) : 0u;
                tag[q][lane] = ((uint64_t)p.sample << 32) | a[lane].unit[q];
                ended[lane] |= !a[lane].kept[q];
            }
        });
        // A repeat of the arrival just before it is dropped.
        Lane<uint64_t> left[4];
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) left[q] = w.shuffle_up(tag[q], 1, 16);
        Lane<uint64_t> run_end[4];
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) run_end[q] = w.broadcast(tag[q], 15, 16);
        const Lane<uint64_t> middle = w.broadcast(tag[3], 15), end = w.broadcast(tag[3], 31);
        w.each([&](int lane) {
            if ((lane & 15) == 0) {
                left[0][lane] = lane ? middle[lane] : last_tag_;
                TOYKERN_UNROLL
                for (int q = 1; q < 4; ++q) left[q][lane] = run_end[q - 1][lane];
            }
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) a[lane].kept[q] = a[lane].kept[q] && tag[q][lane] != left[q][lane];
        });
        last_tag_ = first_of(w, end);
        carry_ += round_sum;
        ++round_;
        done_ = w.any(ended);
        return a;
    }

    // The words that belong to the arrivals just given, four to a lane: kSparseMagnitude (of a member) or kSparseChoice.
    TOYKERN_DEVICE Lane<PhiloxBlock> words(const Warp& w, Kind kind, uint32_t member) const {
        Lane<PhiloxBlock> words;
        w.each([&](int lane) {
            words[lane] = sequence_block(key_.key, kind, key_.purpose, member, slice_, key_.step,
                                         2u * (round_ - 1u) + ((uint32_t)lane >> 4), (uint32_t)lane & 15u);
        });
        return words;
    }

  private:
    // The value of a Lane that is the same everywhere.
    static TOYKERN_DEVICE uint64_t first_of(const Warp& w, const Lane<uint64_t>& v) { return v[w.lane]; }

    TablesView tables_;
    StepKey key_;
    uint32_t slice_, samples_;
    uint32_t round_ = 0;
    uint64_t carry_ = 0, last_tag_ = ~(uint64_t)0;
    bool done_ = false;
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
