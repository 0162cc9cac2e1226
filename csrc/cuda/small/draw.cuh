// Arrivals of the rare units for a block of the small regime: a list in shared memory, some hundreds of entries at a
// time.
//
// Layout     entry e of the list, in the order of the arrivals:
//              columns mode place = (column << 16) | feature, value; first[c] = first entry of column c, columns
//              counted from the list's
//                             first one: a column is a sample that is not empty
//              rows mode place = sample of the batch, first = feature, value; where units are groups: first = unit,
//              value = the bits
//                             of the arrival's number in its slice
// Owner      a block; each of draw_warps warps draws 128 arrivals of the slice
// Order      integers only
// Limits     any number of arrivals: the list is emptied and filled again. It has room for a sample of all features
//            beside a filling
#pragma once
#include "cuda/small/room.cuh"
#include "cuda/stream/frequent.cuh"
#include "cuda/stream/rare.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// Number of a lane's q-th arrival among those of its warp that are marked; marks[q] is the ballot of the q-th arrivals.
TOYKERN_DEVICE uint32_t marked_before(const uint32_t (&marks)[4], int lane, int q) {
    const int half = lane & 16;
    uint32_t before = 0;
    TOYKERN_UNROLL
    for (int p = 0; p < 4; ++p) {
        const uint32_t here = marks[p] >> half & 0xFFFFu;
        if (half) before += (uint32_t)count_bits(marks[p] & 0xFFFFu);
        if (p < q) before += (uint32_t)count_bits(here);
        if (p == q) before += (uint32_t)count_bits(here & ((1u << (lane & 15)) - 1u));
    }
    return before;
}

class SmallArrivals {
  public:
    TOYKERN_DEVICE SmallArrivals(const Block& b, const SmallRoom& room, const TablesView& tables, const Distribution& d,
                                 int64_t batch_size, bool columns)
        : b_(b), room_(room), tables_(tables), data_(d), batch_(batch_size), columns_mode_(columns) {}

    TOYKERN_DEVICE void begin(const StepKey& key) {
        key_ = key;
        slice_ = round_ = 0;
        time_ = 0;
        count_ = columns_ = 0;
        done_ = tables_.head().rare.n_units == 0;
    }
    TOYKERN_DEVICE bool done() const { return done_; }  // no arrivals are left to draw
    TOYKERN_DEVICE int count() const { return count_; }
    TOYKERN_DEVICE int columns() const { return columns_; }

    // Draws until the list is full or the batch ends; a barrier follows.
    TOYKERN_DEVICE void fill() {
        const int most = 128 * room_.s.draw_warps;
        while (!done_ && count_ + most <= room_.s.capacity) draw();
        if (columns_mode_) {
            b_.each([&](int t) {
                if (t == 0) room_.first()[columns_] = (uint16_t)count_;
            });
            b_.sync();  // the list's last end is there
        }
    }
    TOYKERN_DEVICE void clear() { count_ = columns_ = 0; }

    // Empties the list but for its last column, which may go on.
    TOYKERN_DEVICE void keep_last_column() {
        if (done_ || columns_ == 0) return clear();
        const int from = room_.first()[columns_ - 1], length = count_ - from, threads = room_.s.threads();
        for (int start = 0; from > 0 && start < length; start += threads) {
            PerThread<uint32_t> place;
            PerThread<float> value;
            b_.each([&](int t) {
                if (start + t >= length) return;
                place[t] = room_.place()[from + start + t] & 0xFFFFu;
                value[t] = room_.value()[from + start + t];
            });
            // All of these entries have been taken before their places are written. The two overlap only where a sample
            // has more than half of the features, which rare ones (p <= 1/8) hardly ever do: no test waits for that.
            b_.sync();
            b_.each([&](int t) {
                if (start + t >= length) return;
                room_.place()[start + t] = place[t];
                room_.value()[start + t] = value[t];
                if (start + t == 0) room_.first()[0] = 0;
            });
            // No barrier: the next ones to move lie behind all that was written, and the draw that follows has barriers
            // before anybody reads what is in place now.
        }
        count_ = length;
        columns_ = 1;
    }

  private:
    struct Times {
        uint64_t at[4];
    };
    // What is left of four arrivals once their warp knows them.
    struct Places {
        uint32_t where[4];  // number of the column within the warp's arrivals; rows mode: sample of the slice
        uint32_t unit[4];   // (number within the warp's arrivals << 24) | rare unit
        uint32_t flags;     // bit q: kept; bit 4 + q: opens its column
    };

    TOYKERN_DEVICE void draw() {
        const RareProcess r = tables_.head().rare;
        SmallExchange& x = room_.exchange();
        const int warps = room_.s.draw_warps;
        const int64_t base = (int64_t)slice_ << r.slice_log2, left = batch_ - base;
        const uint32_t samples = (uint32_t)(left < ((int64_t)1 << r.slice_log2) ? left : (int64_t)1 << r.slice_log2);
        PerThread<Times> times;
        b_.each_warp([&](const Warp& w) {
            if (w.number >= warps) return;
            Lane<uint64_t> time[4];
            const uint64_t sum = round_times(w, key_, r.gap_scale, slice_, round_ + (uint32_t)w.number, time);
            w.each([&](int lane) {
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) times[32 * w.number + lane].at[q] = time[q][lane];
                if (lane == 0) x.time[w.number] = sum;
            });
        });
        b_.sync();  // the warps' times are there
        PerThread<Places> places;
        b_.each_warp([&](const Warp& w) {
            if (w.number >= warps) return;
            uint64_t start = time_;
            TOYKERN_NO_UNROLL
            for (int v = 0; v < w.number; ++v) start += x.time[v];
            const uint64_t before = round_ + (uint32_t)w.number ? tag_at(tables_, start) : kNoArrival;
            Lane<uint64_t> time[4];
            w.each([&](int lane) {
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) time[q][lane] = times[32 * w.number + lane].at[q];
            });
            Lane<Arrivals> a;
            uint64_t end;
            const bool ended = round_places(w, tables_, samples, start, before, time, a, &end);
            uint32_t kept[4], opens[4];
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                Lane<bool> mark;
                w.each([&](int lane) { mark[lane] = a[lane].kept[q]; });
                kept[q] = w.ballot(mark);
                w.each([&](int lane) { mark[lane] = a[lane].opens[q]; });
                opens[q] = w.ballot(mark);
            }
            w.each([&](int lane) {
                Places& p = places[32 * w.number + lane];
                p.flags = 0;
                TOYKERN_UNROLL
                for (int q = 0; q < 4; ++q) {
                    const bool opening = a[lane].opens[q];
                    p.unit[q] = (marked_before(kept, lane, q) << 24) | a[lane].unit[q];
                    p.where[q] =
                        columns_mode_ ? marked_before(opens, lane, q) + (opening ? 0u : ~0u) : a[lane].sample[q];
                    p.flags |= (a[lane].kept[q] ? 1u << q : 0u) | (opening ? 16u << q : 0u);
                }
                if (lane == 0) {
                    x.kept[w.number] = x.opens[w.number] = 0;
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q) {
                        x.kept[w.number] += (uint32_t)count_bits(kept[q]);
                        x.opens[w.number] += (uint32_t)count_bits(opens[q]);
                    }
                    x.ended[w.number] = ended;
                }
            });
        });
        b_.sync();  // the warps' counts are there
        b_.each_warp([&](const Warp& w) {
            if (w.number >= warps) return;
            uint32_t entry = (uint32_t)count_, column = (uint32_t)columns_;
            TOYKERN_NO_UNROLL
            for (int v = 0; v < w.number; ++v) {
                entry += x.kept[v];
                column += x.opens[v];
            }
            w.each(
                [&](int lane) { write(places[32 * w.number + lane], w.number, lane, entry, column, (uint32_t)base); });
        });
        bool ended = false;
        TOYKERN_NO_UNROLL
        for (int v = 0; v < warps; ++v) {
            count_ += (int)x.kept[v];
            columns_ += (int)x.opens[v];
            time_ += x.time[v];
            ended = ended || x.ended[v];
        }
        b_.sync();  // the list is there, and all have read the counts before the next ones come
        round_ += (uint32_t)warps;
        if (ended) {
            ++slice_;
            round_ = 0;
            time_ = 0;
            done_ = ((int64_t)slice_ << r.slice_log2) >= batch_;
        }
    }

    TOYKERN_DEVICE void write(const Places& p, int warp, int lane, uint32_t entry, uint32_t column, uint32_t base) {
        const uint32_t group = 2u * (round_ + (uint32_t)warp) + ((uint32_t)lane >> 4), i = (uint32_t)lane & 15u;
        PhiloxBlock words = {};
        if (tables_.layout->plain && data_.magnitude != (int32_t)Magnitude::kConstant)
            words = sequence_block(key_.key, Kind::kRareMagnitude, key_.purpose, 0, slice_, key_.step, group, i);
        TOYKERN_UNROLL
        for (int q = 0; q < 4; ++q) {
            if (!(p.flags >> q & 1u)) continue;
            const uint32_t e = entry + (p.unit[q] >> 24), unit = p.unit[q] & 0xFFFFFFu;
            if (columns_mode_) {
                const uint32_t c = column + p.where[q];  // one less than `column` for what goes on with the one before
                room_.place()[e] = (c << 16) | tables_.rare_feature()[unit];
                room_.value()[e] = magnitude(data_.magnitude, words.word[q]);
                if (p.flags >> q & 16u) room_.first()[c] = (uint16_t)e;
                continue;
            }
            room_.place()[e] = base + p.where[q];
            if (tables_.layout->plain) {
                room_.first()[e] = (uint16_t)tables_.rare_feature()[unit];
                room_.value()[e] = magnitude(data_.magnitude, words.word[q]);
            } else {
                room_.first()[e] = (uint16_t)tables_.rare_unit()[unit];
                reinterpret_cast<uint32_t*>(room_.value())[e] = 64u * group + 16u * (uint32_t)q + i;
            }
        }
    }

    Block b_;
    SmallRoom room_;
    TablesView tables_;
    const Distribution& data_;
    int64_t batch_;
    bool columns_mode_;
    StepKey key_;
    uint32_t slice_, round_;
    uint64_t time_;  // of the last arrival drawn, in its slice
    int count_, columns_;
    bool done_;
};

// The calls of a step: one copy of the code for all kernels.
TOYKERN_DEVICE_CALL void fill_arrivals(SmallArrivals& arrivals) { arrivals.fill(); }

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
