// Batches of rare units for the tiny regime: arrivals become columns, one for each sample that is not empty.
//
// Layout     half a warp to a model. 64 arrivals a round: lane l draws Philox block l, that is arrivals 16 q + l; through shared memory it
//            gets arrivals 4 l … 4 l + 3, so that the running sum and the comparison with the arrival before are mostly its own.
//            Columns x [N][kColumns] in shared memory.
// Owner      the half warp; a column under way at the end of a round becomes column 0 of the next
// Order      columns in the order of their samples, sixteen at a time: a function of the model's own data
// Roof       for 64 arrivals of each of two models: 2 Philox blocks (140 instructions), 4 gaps (140), a 64-bit scan (30), 4 places (80), then
//            the passes
#pragma once
#include "common/stream_words.h"
#include "common/unit_tables.h"
#include "cuda/stream_rare.cuh"
#include "cuda/warp.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr int kHalf = 16;
constexpr int kTinyArrivals = 64;  // of a round
constexpr int kTinyColumns = 80;   // one under way, 64 new ones, up to a multiple of sixteen

// Features of up to eight units, four bits each.
using PackedFeatures = uint32_t;
TOYKERN_DEVICE PackedFeatures pack_features(const uint32_t* feature, uint32_t units) {
    PackedFeatures packed = 0;
    for (uint32_t u = 0; u < units; ++u) packed |= feature[u] << (4 * u);
    return packed;
}

// Shared memory of one model.
template <int N>
struct TinySparseRoom {
    // The second model's columns fall on the other sixteen banks.
    static constexpr int kFloats = N * kTinyColumns + (N % 2 ? 0 : 16);
    float x[kFloats];
    uint64_t gap[kTinyArrivals];
    float value[kTinyArrivals];
};

// Calls pass(valid columns, x of the lane) for the batch of the halves whose model is `taking` part, and gives the number of columns in `seen`.
template <int N, class Pass>
TOYKERN_DEVICE void tiny_sparse_batch(const Warp& w, TinySparseRoom<N>* rooms, const Lane<TablesView>& tables,
                                      const Lane<PackedFeatures>& features, const Lane<StepKey>& key,
                                      int32_t magnitude_kind, uint32_t batch_size, const Lane<bool>& taking,
                                      Lane<uint32_t>& seen, const Pass& pass) {
    Lane<uint32_t> slice, round, samples, last_unit, last_sample;
    Lane<uint64_t> carry;
    Lane<int> held;
    Lane<bool> open;
    w.each([&](int lane) {
        seen[lane] = slice[lane] = round[lane] = 0;
        carry[lane] = 0;
        held[lane] = 0;
        last_unit[lane] = last_sample[lane] = ~0u;
        open[lane] = taking[lane] && tables[lane].head().rare.n_units != 0;
        float* x = rooms[lane / kHalf].x;
        for (int i = lane % kHalf; i < TinySparseRoom<N>::kFloats; i += kHalf) x[i] = 0.0f;
    });
    while (w.any(open)) {
        w.each([&](int lane) {
            if (!open[lane]) return;
            const RareProcess& r = tables[lane].head().rare;
            TinySparseRoom<N>& room = rooms[lane / kHalf];
            const uint32_t l = (uint32_t)lane % kHalf;
            const StepKey& k = key[lane];
            const PhiloxBlock gaps =
                sequence_block(k.key, Kind::kGap, k.purpose, 0, slice[lane], k.step, round[lane], l);
            const PhiloxBlock values =
                sequence_block(k.key, Kind::kSparseMagnitude, k.purpose, 0, slice[lane], k.step, round[lane], l);
            TOYKERN_UNROLL
            for (int q = 0; q < 4; ++q) {
                room.gap[16 * q + l] = gap(gaps.word[q], r.gap_scale);
                room.value[16 * q + l] = magnitude(magnitude_kind, values.word[q]);
            }
            const int64_t left = (int64_t)batch_size - ((int64_t)slice[lane] << r.slice_log2);
            samples[lane] = left < ((int64_t)1 << r.slice_log2) ? (uint32_t)left : 1u << r.slice_log2;
        });
        w.sync();
        struct Four {
            uint64_t time[4];
        };
        Lane<Four> t;
        Lane<uint64_t> sum;
        w.each([&](int lane) {
            const uint64_t* g = rooms[lane / kHalf].gap + 4 * (lane % kHalf);
            sum[lane] = 0;
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) t[lane].time[i] = sum[lane] += g[i];
        });
        const Lane<uint64_t> sums = running_sum(w, sum, kHalf);
        struct Places {
            uint32_t sample[4], unit[4];
            bool valid[4];
        };
        Lane<Places> at;
        Lane<uint32_t> end_unit, end_sample;
        Lane<bool> ended;
        w.each([&](int lane) {
            ended[lane] = false;
            if (!open[lane]) return;
            const RareProcess& r = tables[lane].head().rare;
            const uint32_t cell_limit = cells_in_slice(r);
            const uint64_t before = carry[lane] + sums[lane] - sum[lane];
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) {
                const uint64_t time = before + t[lane].time[i];
                const Place p = place(time, r.rho);
                at[lane].sample[i] = p.sample;
                at[lane].valid[i] = (uint32_t)(time >> 32) < cell_limit && p.sample < samples[lane];
                at[lane].unit[i] = at[lane].valid[i] ? rare_unit_at(tables[lane], p.phi) : 0u;
                ended[lane] |= !at[lane].valid[i];
            }
            end_unit[lane] = at[lane].unit[3];
            end_sample[lane] = at[lane].sample[3];
        });
        const Lane<uint64_t> total = w.broadcast(sums, kHalf - 1, kHalf);
        const Lane<uint32_t> unit_before = w.shuffle_up(end_unit, 1, kHalf),
                             sample_before = w.shuffle_up(end_sample, 1, kHalf);
        const Lane<uint32_t> round_unit = w.broadcast(end_unit, kHalf - 1, kHalf),
                             round_sample = w.broadcast(end_sample, kHalf - 1, kHalf);
        // Columns: a new one wherever the sample differs from that of the arrival before.
        Lane<int> fresh;
        w.each([&](int lane) {
            fresh[lane] = 0;
            if (!open[lane]) return;
            uint32_t s = lane % kHalf ? sample_before[lane] : last_sample[lane];
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) {
                fresh[lane] += at[lane].valid[i] && at[lane].sample[i] != s;
                s = at[lane].sample[i];
            }
        });
        const Lane<int> columns_to = running_sum(w, fresh, kHalf);
        w.each([&](int lane) {
            if (!open[lane]) return;
            TinySparseRoom<N>& room = rooms[lane / kHalf];
            uint32_t s = lane % kHalf ? sample_before[lane] : last_sample[lane];
            uint32_t u = lane % kHalf ? unit_before[lane] : last_unit[lane];
            int column = held[lane] + columns_to[lane] - fresh[lane] - 1;
            TOYKERN_UNROLL
            for (int i = 0; i < 4; ++i) {
                const bool other_sample = at[lane].sample[i] != s;
                column += at[lane].valid[i] && other_sample;
                if (at[lane].valid[i] && (other_sample || at[lane].unit[i] != u)) {
                    const uint32_t feature = features[lane] >> (4 * at[lane].unit[i]) & 15u;
                    room.x[(int)feature * kTinyColumns + column] = room.value[4 * (lane % kHalf) + i];
                }
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
            const int columns = held[lane] + all_fresh[lane];
            complete[lane] = !open[lane] ? 0 : slice_ended ? columns : columns - 1;
            more[lane] = complete[lane] > 0;
        });
        for (int first = 0; w.any(more); first += kHalf)
            w.each([&](int lane) {
                const int column = first + lane % kHalf;
                float x[N];
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j)
                    x[j] = column < kTinyColumns ? rooms[lane / kHalf].x[j * kTinyColumns + column] : 0.0f;
                pass(lane, column < complete[lane], x);
                more[lane] = first + kHalf < complete[lane];
            });
        // The next round, or slice; a column under way moves to the front of an empty buffer.
        Lane<bool> again;
        w.each([&](int lane) {
            again[lane] = false;
            if (!open[lane]) return;
            seen[lane] += (uint32_t)complete[lane];
            const bool slice_ended = (ends >> (lane / kHalf * kHalf) & 0xFFFFu) != 0;
            if (slice_ended) {
                ++slice[lane];
                round[lane] = 0;
                carry[lane] = 0;
                held[lane] = 0;
                last_unit[lane] = last_sample[lane] = ~0u;
                open[lane] = ((int64_t)slice[lane] << tables[lane].head().rare.slice_log2) < (int64_t)batch_size;
            } else {
                ++round[lane];
                carry[lane] += total[lane];
                held[lane] = 1;  // the sample of the last arrival
                last_unit[lane] = round_unit[lane];
                last_sample[lane] = round_sample[lane];
            }
            again[lane] = open[lane];
        });
        if (w.any(again)) {
            struct Column {
                float x[N];
            };
            Lane<Column> kept;
            w.each([&](int lane) {
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j) kept[lane].x[j] = rooms[lane / kHalf].x[j * kTinyColumns + complete[lane]];
            });
            w.sync();
            w.each([&](int lane) {
                float* x = rooms[lane / kHalf].x;
                for (int i = lane % kHalf; i < TinySparseRoom<N>::kFloats; i += kHalf) x[i] = 0.0f;
            });
            w.sync();
            w.each([&](int lane) {
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j)
                    if (lane % kHalf == 0 && again[lane] && held[lane])
                        rooms[lane / kHalf].x[j * kTinyColumns] = kept[lane].x[j];
            });
            w.sync();
        }
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
