// Batches of frequent units for the tiny regime: gates bit-sliced, magnitudes in a ring, sixteen samples at a time.
//
// Layout     half a warp to a model. A chunk is 512 samples: 16 D gate words, D to a lane. Magnitudes in the order of their ranks go through
//            a ring of 256 in shared memory, refilled 64 at a time.
// Owner      the half warp
// Order      samples in order, sixteen at a time
// Limits     single features only, no rare unit among them: everything else is drawn as rows (tiny_rows.cuh)
// Roof       per 512 samples: D gate words a lane of about 3 Philox blocks, p D / 8 Philox blocks a lane for the magnitudes, and 32 passes with
//            about 9 operations a feature to find its value
#pragma once
#include "cuda/stream_frequent.cuh"
#include "cuda/tiny_sparse.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr uint32_t kTinyChunk = 512;  // samples; a dense slice of up to eight units is a multiple of it
constexpr uint32_t kTinyRing = 256;

template <int N>
struct TinyFrequentRoom {
    // The second model's ring falls on the other sixteen banks.
    uint32_t gate[16 * N + (N % 2 ? 0 : 16)];
    float ring[kTinyRing];
};

// Calls pass(lane, valid, x of the lane) for the batch of the halves whose model is `taking` part.
template <int N, class Pass>
TOYKERN_DEVICE void tiny_frequent_batch(const Warp& w, TinyFrequentRoom<N>* rooms, const Lane<TablesView>& tables,
                                        const Lane<PackedFeatures>& features, const Lane<StepKey>& key,
                                        int32_t magnitude_kind, uint32_t batch_size, const Lane<bool>& taking,
                                        const Pass& pass) {
    struct Units {
        int of_feature[N];  // number among the frequent units, or -1
    };
    Lane<Units> unit;
    Lane<uint32_t> have, used, slice;
    w.each([&](int lane) {
        TOYKERN_UNROLL
        for (int j = 0; j < N; ++j) unit[lane].of_feature[j] = -1;
        have[lane] = used[lane] = slice[lane] = 0;
        if (!taking[lane]) return;
        const uint32_t units = tables[lane].head().n_frequent;
        TOYKERN_UNROLL
        for (int j = 0; j < N; ++j)
            for (uint32_t u = 0; u < units; ++u)
                if ((features[lane] >> (4 * u) & 15u) == (uint32_t)j) unit[lane].of_feature[j] = (int)u;
    });
    for (uint32_t start = 0; start < batch_size; start += kTinyChunk) {
        w.sync();
        w.each([&](int lane) {
            if (!taking[lane]) return;
            const UnitTables& head = tables[lane].head();
            const uint32_t units = head.n_frequent, l = (uint32_t)lane % kHalf;
            const uint32_t slice_log2 = (uint32_t)dense_slice_log2(units);
            if ((start & ((1u << slice_log2) - 1u)) == 0) {
                slice[lane] = start >> slice_log2;
                have[lane] = used[lane] = 0;
            }
            // A chunk begins at a multiple of sixteen gate words: word 16 i + l is the lane's own.
            for (uint32_t i = 0; i < units; ++i) {
                const uint32_t at = 16 * i + l, d = at % units;
                rooms[lane / kHalf].gate[at] =
                    gate_word(key[lane], start / 32 + at / units, d, units, tables[lane].threshold()[d]);
            }
        });
        w.sync();
        for (uint32_t first = start; first < start + kTinyChunk && first < batch_size; first += kHalf) {
            struct Gates {
                uint32_t of_feature[N];
            };
            Lane<Gates> gates;
            Lane<uint32_t> total;
            Lane<bool> wanting;
            w.each([&](int lane) {
                total[lane] = 0;
                const uint32_t units = taking[lane] ? tables[lane].head().n_frequent : 0u;
                const uint32_t* row = rooms[lane / kHalf].gate + (first - start) / 32 * units;
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j) {
                    const int d = unit[lane].of_feature[j];
                    gates[lane].of_feature[j] = d < 0 ? 0u : row[d] >> (first & 16u) & 0xFFFFu;
                    total[lane] += (uint32_t)count_bits(gates[lane].of_feature[j]);
                }
                wanting[lane] = have[lane] - used[lane] < total[lane];
            });
            while (w.any(wanting)) {
                w.each([&](int lane) {
                    wanting[lane] = false;
                    // The other model takes the opportunity if there is room.
                    if (!taking[lane] || have[lane] - used[lane] > kTinyRing - kTinyArrivals) return;
                    const uint32_t l = (uint32_t)lane % kHalf;
                    const StepKey& k = key[lane];
                    const PhiloxBlock words = sequence_block(k.key, Kind::kDenseMagnitude, k.purpose, 0, slice[lane],
                                                             k.step, have[lane] / kTinyArrivals, l);
                    TOYKERN_UNROLL
                    for (int q = 0; q < 4; ++q)
                        rooms[lane / kHalf].ring[(have[lane] + 16 * q + l) % kTinyRing] =
                            magnitude(magnitude_kind, words.word[q]);
                    have[lane] += kTinyArrivals;
                    wanting[lane] = have[lane] - used[lane] < total[lane];
                });
                w.sync();
            }
            w.each([&](int lane) {
                const uint32_t l = (uint32_t)lane % kHalf;
                uint32_t rank = used[lane];
                float x[N];
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j) {
                    const uint32_t g = gates[lane].of_feature[j];
                    const uint32_t mine = rank + (uint32_t)count_bits(g & ((1u << l) - 1u));
                    x[j] = g >> l & 1u ? rooms[lane / kHalf].ring[mine % kTinyRing] : 0.0f;
                    rank += (uint32_t)count_bits(g);
                }
                used[lane] += total[lane];
                pass(lane, taking[lane] && first + l < batch_size, x);
            });
        }
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
