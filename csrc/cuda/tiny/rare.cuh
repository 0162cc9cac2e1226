// Batches of rare units for the tiny regime: arrivals become columns, one for each sample that is not empty.
//
// Layout     half a warp to a model. 64 arrivals a round: lane l draws Philox block l, that is arrivals 16 q + l;
//            through shared memory it gets arrivals 4 l … 4 l + 3, so that the running sum and the comparison with the
//            arrival before are mostly its own. Columns x [N][kTinyColumns] in shared memory.
// Owner      the half warp; a column under way at the end of a round becomes column 0 of the next
// Order      columns in the order of their samples, sixteen at a time: a function of the model's own data
// Limits     single features only, up to eight
// Roof       for 64 arrivals of each of two models: docs/gpu_trainer.md counts them
#pragma once
#include "common/stream/unit_tables.h"
#include "common/stream/words.h"
#include "cuda/stream/rare.cuh"
#include "cuda/warp.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr int kHalf = 16;

// A model's round keys in shared memory: five reads of four words for a block, or two, where adding takes eighteen.
struct SharedRounds {
    const PhiloxRounds* rounds;
    TOYKERN_DEVICE PhiloxKey of(uint32_t round) const { return rounds->of(round); }
};
using TinyKey = StepKeyOf<SharedRounds>;

constexpr int kTinyArrivals = 64;  // of a round
constexpr int kTinyColumns = 80;   // one under way, 64 new ones, up to a multiple of sixteen

// Features of up to eight units, four bits each.
using PackedFeatures = uint32_t;
TOYKERN_DEVICE PackedFeatures pack_features(const uint32_t* feature, uint32_t units) {
    PackedFeatures packed = 0;
    for (uint32_t u = 0; u < units; ++u) packed |= feature[u] << (4 * u);
    return packed;
}

struct alignas(16) FourFloats {
    float value[4];
};
struct alignas(16) TwoTimes {
    uint64_t value[2];
};

// Shared memory of one model.
template <int N>
struct alignas(16) TinyRareRoom {
    // The second model's columns fall on the other sixteen banks.
    static constexpr int kFloats = N * kTinyColumns + (N % 2 ? 0 : 16);
    float x[kFloats];
    uint64_t gap[kTinyArrivals];
    float value[kTinyArrivals];

    // By the sixteen lanes of a half.
    TOYKERN_DEVICE void clear(int lane) {
        FourFloats* rows = reinterpret_cast<FourFloats*>(x);
        TOYKERN_UNROLL
        for (int i = 0; i < (kFloats / 4 + kHalf - 1) / kHalf; ++i) {
            const int at = i * kHalf + lane % kHalf;
            if (at < kFloats / 4) rows[at] = {};
        }
    }
};

// What a lane keeps of its model's rare process.
struct TinyProcess {
    uint32_t n_units, gap_scale;
    uint32_t shift;       // a time's sample is time >> shift: 32 + rho
    uint32_t slice_log2;  // of samples
    bool uniform;
    PackedFeatures features;

    TOYKERN_DEVICE static TinyProcess of(const TablesView& tables) {
        const RareProcess r = tables.head().rare;
        return {r.n_units,
                r.gap_scale,
                (uint32_t)(32 + r.rho),
                (uint32_t)r.slice_log2,
                r.uniform,
                pack_features(tables.rare_feature(), r.n_units)};
    }
};

// The rare unit of an arrival. `rest` is its time within the sample, in 2^-32 cells: for all rho, the place of
// docs/data_stream.md §3 is rest in units of 2^-shift samples.
TOYKERN_DEVICE uint32_t tiny_unit(const TinyProcess& p, const TablesView& tables, uint64_t rest) {
    if (p.uniform) return (uint32_t)((rest * p.n_units) >> p.shift);
    const uint64_t phi = p.shift < 32 ? rest << (32 - p.shift) : rest;
    uint32_t unit = 0;
    for (uint32_t u = 1; u < p.n_units; ++u) unit += tables.start()[u] <= phi;
    return unit;
}

// Four arrivals of a lane, in order.
struct TinyArrivals {
    uint32_t sample[4], unit[4];
    bool valid[4];
};

// Calls pass(lane, valid, x) for the batches of the halves whose model takes part, sixteen columns at a time; `seen`
// counts their columns.
template <int N, class Pass>
TOYKERN_DEVICE void tiny_rare_batch(const Warp& w, TinyRareRoom<N>* rooms, const Lane<TinyProcess>& process,
                                    const Lane<TablesView>& tables, const Lane<TinyKey>& key, int32_t magnitude_kind,
                                    uint32_t batch_size, const Lane<bool>& taking, Lane<uint32_t>& seen,
                                    const Pass& pass) {
    Lane<uint32_t> slice, round, last_unit, last_sample;
    Lane<uint64_t> carry;
    Lane<int> held;
    Lane<bool> open;
    w.each([&](int lane) {
        seen[lane] = slice[lane] = round[lane] = 0;
        carry[lane] = 0;
        held[lane] = 0;
        last_unit[lane] = last_sample[lane] = ~0u;
        open[lane] = taking[lane] && process[lane].n_units != 0;
        rooms[lane / kHalf].clear(lane);
    });
    while (w.any(open)) {
        // Where a model is not open what follows is done all the same and comes to nothing: cheaper than branches.
        const auto draw = [&](int lane, Kind kind) {
            const TinyKey& k = key[lane];
            return sequence_block(k.key, kind, k.purpose, 0, slice[lane], k.step, round[lane], (uint32_t)lane % kHalf);
        };
        w.each([&](int lane) {
            const PhiloxBlock gaps = draw(lane, Kind::kGap);
            uint64_t* to = rooms[lane / kHalf].gap + lane % kHalf;
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) to[kHalf * q] = gap(gaps.word[q], process[lane].gap_scale);
        });
        if constexpr (N > 3) w.sync();  // or the keys would stay in twenty registers, which larger networks lack
        w.each([&](int lane) {
            float value[4];
            magnitudes(magnitude_kind, draw(lane, Kind::kRareMagnitude).word, value);
            float* to = rooms[lane / kHalf].value + lane % kHalf;
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) to[kHalf * q] = value[q];
        });
        w.sync();
        struct Times {
            uint64_t time[4];
        };
        Lane<Times> t;
        Lane<uint64_t> sum;
        w.each([&](int lane) {
            const TwoTimes* g = reinterpret_cast<const TwoTimes*>(rooms[lane / kHalf].gap + 4 * (lane % kHalf));
            const TwoTimes first = g[0], second = g[1];
            t[lane].time[0] = first.value[0];
            t[lane].time[1] = t[lane].time[0] + first.value[1];
            t[lane].time[2] = t[lane].time[1] + second.value[0];
            t[lane].time[3] = sum[lane] = t[lane].time[2] + second.value[1];
        });
        const Lane<uint64_t> sums = running_sum(w, sum, kHalf);
        Lane<TinyArrivals> at;
        Lane<uint32_t> end_unit, end_sample;
        Lane<bool> ended;
        w.each([&](int lane) {
            const TinyProcess& p = process[lane];
            const uint32_t first = slice[lane] << p.slice_log2, left = batch_size - first, whole = 1u << p.slice_log2;
            // Times from here on lie past the slice, or past the batch.
            const uint64_t limit = open[lane] ? (uint64_t)(left < whole ? left : whole) << p.shift : 0;
            const uint64_t before = carry[lane] + sums[lane] - sum[lane];
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) {
                const uint64_t time = before + t[lane].time[i];
                at[lane].valid[i] = time < limit;
                at[lane].sample[i] = (uint32_t)(time >> p.shift);
                at[lane].unit[i] = tiny_unit(p, tables[lane], time & (((uint64_t)1 << p.shift) - 1));
            }
            ended[lane] = !at[lane].valid[3];
            end_unit[lane] = at[lane].unit[3];
            end_sample[lane] = at[lane].sample[3];
        });
        const Lane<uint64_t> total = w.broadcast(sums, kHalf - 1, kHalf);
        const Lane<uint32_t> unit_before = w.shuffle_up(end_unit, 1, kHalf),
                             sample_before = w.shuffle_up(end_sample, 1, kHalf);
        // Columns: a new one wherever the sample differs from that of the arrival before.
        Lane<int> fresh;
        w.each([&](int lane) {
            uint32_t s = lane % kHalf ? sample_before[lane] : last_sample[lane];
            fresh[lane] = 0;
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) {
                fresh[lane] += at[lane].valid[i] && at[lane].sample[i] != s;
                s = at[lane].sample[i];
            }
        });
        const Lane<int> columns_to = running_sum(w, fresh, kHalf);
        w.each([&](int lane) {
            TinyRareRoom<N>& room = rooms[lane / kHalf];
            const FourFloats value = reinterpret_cast<const FourFloats*>(room.value)[lane % kHalf];
            uint32_t s = lane % kHalf ? sample_before[lane] : last_sample[lane];
            uint32_t u = lane % kHalf ? unit_before[lane] : last_unit[lane];
            int column = held[lane] + columns_to[lane] - fresh[lane] - 1;
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) {
                const bool other_sample = at[lane].sample[i] != s;
                column += other_sample;
                if (at[lane].valid[i] && (other_sample || at[lane].unit[i] != u))
                    room.x[(process[lane].features >> (4 * at[lane].unit[i]) & 15u) * kTinyColumns + column] =
                        value.value[i];
                s = at[lane].sample[i];
                u = at[lane].unit[i];
            }
        });
        const Lane<int> all_fresh = w.broadcast(columns_to, kHalf - 1, kHalf);
        const uint32_t ends = w.ballot(ended);
        w.sync();
        Lane<int> complete;
        Lane<bool> more;
        w.each([&](int lane) {
            const bool slice_ended = (ends >> (lane / kHalf * kHalf) & 0xFFFFu) != 0;
            complete[lane] = held[lane] + all_fresh[lane] - !slice_ended;
            more[lane] = complete[lane] > 0;
        });
        for (int first = 0; w.any(more); first += kHalf)
            w.each([&](int lane) {
                const int column = first + lane % kHalf;
                float x[N];
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j) x[j] = rooms[lane / kHalf].x[j * kTinyColumns + column];
                pass(lane, column < complete[lane], x);
                more[lane] = first + kHalf < complete[lane];
            });
        // The next round, or slice; a column under way moves to the front of an empty buffer.
        w.each([&](int lane) {
            if (!open[lane]) return;
            seen[lane] += (uint32_t)complete[lane];
            if ((ends >> (lane / kHalf * kHalf) & 0xFFFFu) != 0) {
                ++slice[lane];
                round[lane] = 0;
                carry[lane] = 0;
                held[lane] = 0;
                last_unit[lane] = last_sample[lane] = ~0u;
                open[lane] = ((uint64_t)slice[lane] << process[lane].slice_log2) < batch_size;
            } else {
                ++round[lane];
                carry[lane] += total[lane];
                held[lane] = 1;  // the sample of the last arrival
            }
        });
        if (!w.any(open)) break;
        struct Column {
            float x[N];
        };
        Lane<Column> kept;
        const Lane<uint32_t> round_unit = w.broadcast(end_unit, kHalf - 1, kHalf),
                             round_sample = w.broadcast(end_sample, kHalf - 1, kHalf);
        w.each([&](int lane) {
            if (held[lane]) {
                last_unit[lane] = round_unit[lane];
                last_sample[lane] = round_sample[lane];
            }
            TOYKERN_UNROLL
            for (int j = 0; j < N; ++j) kept[lane].x[j] = rooms[lane / kHalf].x[j * kTinyColumns + complete[lane]];
        });
        w.sync();
        w.each([&](int lane) { rooms[lane / kHalf].clear(lane); });
        w.sync();
        w.each([&](int lane) {
            TOYKERN_UNROLL
            for (int j = 0; j < N; ++j)
                if (lane % kHalf == 0 && held[lane]) rooms[lane / kHalf].x[j * kTinyColumns] = kept[lane].x[j];
        });
        w.sync();
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
