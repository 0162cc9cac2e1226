// Arrivals of the rare units on a device (docs/data_stream.md §3), a warp to a slice. The CPU's twin is
// cpu/stream/rare.inl.
//
//   gap words -> fixed-point logarithm -> running sum -> (sample, unit), 128 arrivals a round
//
// Layout     lane l draws Philox block l & 15 of word group l >> 4: it holds arrivals 64 (l >> 4) + 16 q + (l & 15), q
//            = 0 … 3, of the round
// Owner      one warp; slices know nothing of each other
// Order      integers only: exact, whatever the order
// Limits     none; any number of arrivals by further rounds
// Roof       a Philox block and 4 x 35 operations for the gaps, 4 x 12 for a scan, 4 x 15 for the places of 128
//            arrivals
#pragma once
#include "common/stream/unit_tables.h"
#include "common/stream/words.h"
#include "cuda/warp.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// The stream of one model at one step; Key is what philox() takes.
template <class Key>
struct StepKeyOf {
    Key key;
    uint32_t step, purpose;
};
using StepKey = StepKeyOf<PhiloxKey>;

constexpr int kRoundArrivals = 128;

// What a lane knows of its four arrivals of a round.
struct Arrivals {
    uint32_t sample[4];  // within the slice
    uint32_t unit[4];    // number among the rare units
    bool kept[4];        // within the slice and the batch, and no repeat of the arrival just before it
    bool opens[4];       // kept, and the first of its sample
};

constexpr uint64_t kNoArrival = ~(uint64_t)0;  // the tag before a slice's first arrival

// Where an arrival fell, in one word; its unit is 0 where there is none.
TOYKERN_DEVICE uint64_t arrival_tag(const TablesView& tables, const Place& p, bool in_slice, uint32_t* unit) {
    *unit = in_slice ? rare_unit_at(tables, p.phi) : 0u;
    return ((uint64_t)p.sample << 32) | *unit;
}

// The tag of the arrival at a time: the one just before a round is where the round's times start from.
TOYKERN_DEVICE uint64_t tag_at(const TablesView& tables, uint64_t time) {
    const RareProcess r = tables.head().rare;
    uint32_t unit;
    return arrival_tag(tables, place(time, r.rho), (uint32_t)(time >> 32) < cells_in_slice(r), &unit);
}

// The times of a round's arrivals since the one just before the round; returns their sum of gaps, the same for all
// lanes.
TOYKERN_DEVICE uint64_t round_times(const Warp& w, const StepKey& key, uint32_t gap_scale, uint32_t slice,
                                    uint32_t round, Lane<uint64_t> (&time)[4]) {
    w.each([&](int lane) {
        const PhiloxBlock words = sequence_block(key.key, Kind::kGap, key.purpose, 0, slice, key.step,
                                                 2u * round + ((uint32_t)lane >> 4), (uint32_t)lane & 15u);
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) time[q][lane] = gap(words.word[q], gap_scale);
    });
    // In the order of the arrivals: within runs of sixteen lanes, then run by run.
    Lane<uint64_t> last[4], half;
    TOYKERN_UNROLL
    for (int q = 0; q < 4; ++q) {
        time[q] = running_sum(w, time[q], 16);
        last[q] = w.broadcast(time[q], 15, 16);
    }
    w.each([&](int lane) { half[lane] = last[0][lane] + last[1][lane] + last[2][lane] + last[3][lane]; });
    const Lane<uint64_t> lower = w.broadcast(half, 0), upper = w.broadcast(half, 16);
    w.each([&](int lane) {
        uint64_t sum = lane >= 16 ? lower[lane] : 0;
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            time[q][lane] += sum;
            sum += last[q][lane];
        }
    });
    return lower[w.lane] + upper[w.lane];
}

// What the arrivals of a round are: `start` and `before` are the time and the tag of the one just before it, `samples`
// those of the batch in the slice. Puts the last one's tag into *end; returns whether the slice (or the batch) ends in
// this round.
TOYKERN_DEVICE bool round_places(const Warp& w, const TablesView& tables, uint32_t samples, uint64_t start,
                                 uint64_t before, const Lane<uint64_t> (&time)[4], Lane<Arrivals>& a, uint64_t* end) {
    const RareProcess r = tables.head().rare;
    const uint32_t cell_limit = cells_in_slice(r);
    Lane<uint64_t> tag[4];
    Lane<bool> ended;
    w.each([&](int lane) {
        ended[lane] = false;
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            const uint64_t t = start + time[q][lane];
            const Place p = place(t, r.rho);
            a[lane].sample[q] = p.sample;
            a[lane].kept[q] = (uint32_t)(t >> 32) < cell_limit && p.sample < samples;
            tag[q][lane] = arrival_tag(tables, p, a[lane].kept[q], &a[lane].unit[q]);
            ended[lane] |= !a[lane].kept[q];
        }
    });
    Lane<uint64_t> left[4], run_end[4];
    TOYKERN_UNROLL
    for (int q = 0; q < 4; ++q) {
        left[q] = w.shuffle_up(tag[q], 1, 16);
        run_end[q] = w.broadcast(tag[q], 15, 16);
    }
    const Lane<uint64_t> middle = w.broadcast(tag[3], 15), last = w.broadcast(tag[3], 31);
    w.each([&](int lane) {
        if ((lane & 15) == 0) {
            left[0][lane] = lane ? middle[lane] : before;
            TOYKERN_UNROLL
            for (int q = 1; q < 4; ++q) left[q][lane] = run_end[q - 1][lane];
        }
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            a[lane].kept[q] = a[lane].kept[q] && tag[q][lane] != left[q][lane];
            a[lane].opens[q] = a[lane].kept[q] && (uint32_t)(left[q][lane] >> 32) != a[lane].sample[q];
        }
    });
    *end = last[w.lane];
    return w.any(ended);
}

// One slice, round after round.
class RareSlice {
  public:
    // Slice number `slice` of a batch; `samples` are those of the batch that lie in it (the last slice may be cut).
    TOYKERN_DEVICE RareSlice(const TablesView& tables, const StepKey& key, uint32_t slice, uint32_t samples)
        : tables_(tables), key_(key), slice_(slice), samples_(samples) {}

    TOYKERN_DEVICE bool done() const { return done_; }

    // The next 128 arrivals.
    TOYKERN_DEVICE Lane<Arrivals> next(const Warp& w) {
        Lane<uint64_t> time[4];
        Lane<Arrivals> a;
        const uint64_t sum = round_times(w, key_, tables_.head().rare.gap_scale, slice_, round_, time);
        done_ = round_places(w, tables_, samples_, carry_, last_tag_, time, a, &last_tag_);
        carry_ += sum;
        ++round_;
        return a;
    }

    // The words that belong to the arrivals just given, four to a lane: kRareMagnitude (of a member) or kRareChoice.
    TOYKERN_DEVICE Lane<PhiloxBlock> words(const Warp& w, Kind kind, uint32_t member) const {
        Lane<PhiloxBlock> words;
        w.each([&](int lane) {
            words[lane] = sequence_block(key_.key, kind, key_.purpose, member, slice_, key_.step,
                                         2u * (round_ - 1u) + ((uint32_t)lane >> 4), (uint32_t)lane & 15u);
        });
        return words;
    }

  private:
    TablesView tables_;
    StepKey key_;
    uint32_t slice_, samples_;
    uint32_t round_ = 0;
    uint64_t carry_ = 0, last_tag_ = kNoArrival;
    bool done_ = false;
};

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
