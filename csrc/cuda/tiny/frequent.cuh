// Batches of frequent units for the tiny regime: gates bit-sliced, magnitudes in a ring, sixteen samples at a time.
//
// Layout     half a warp to a model. A chunk is 512 samples: lane l draws the gate words of samples 32 l … 32 l + 31,
//            ranks their active gates by one scan, and leaves an entry for each run of sixteen samples and feature: the
//            gates in the lower half, the rank of the first active one in the upper. Magnitudes in the order of their
//            ranks go through a ring of 256, refilled 64 at a time.
// Owner      the half warp
// Order      samples in order, sixteen at a time
// Limits     single features only, up to eight, no rare unit among them
// Roof       a pass for sixteen samples of each of two models, with some nine operations a feature to find its value; p
//            N / 8 Philox blocks a lane for the magnitudes of 32 samples, about three for each gate word:
//            docs/gpu_trainer.md counts them
#pragma once
#include "cuda/stream/frequent.cuh"
#include "cuda/tiny/rare.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr uint32_t kTinyChunk = 512;  // samples; a dense slice of up to eight units is a multiple of it
constexpr uint32_t kTinyRing = 256;
constexpr uint32_t kChunkRuns = kTinyChunk / kHalf;

template <int N>
struct alignas(16) TinyFrequentRoom {
    static_assert(32 * N + kTinyArrivals <= kTinyRing, "the ring must hold 32 samples beside a refill");
    // The second model's entries fall on the other sixteen banks.
    uint32_t entry[kChunkRuns * N + (N % 2 ? 0 : 16)];
    uint32_t end[kChunkRuns / 2];  // rank after each 32 samples
    float ring[kTinyRing];
};

// Calls pass(lane, valid, x) for the batches of the halves whose model is `taking` part. kN: features.
template <int N, class Pass>
TOYKERN_DEVICE void tiny_frequent_batch(const Warp& w, TinyFrequentRoom<N>* rooms, const Lane<TablesView>& tables,
                                        const Lane<PackedFeatures>& features, const Lane<StepKey>& key,
                                        int32_t magnitude_kind, uint32_t batch_size, const Lane<bool>& taking,
                                        const Pass& pass) {
    Lane<uint32_t> have, rank, slice, units;  // magnitudes drawn, gates ranked so far in the dense slice
    w.each([&](int lane) {
        have[lane] = rank[lane] = slice[lane] = 0;
        units[lane] = taking[lane] ? tables[lane].head().n_frequent : 0u;
        TinyFrequentRoom<N>& room = rooms[lane / kHalf];
        for (uint32_t i = (uint32_t)lane % kHalf; i < kChunkRuns * N; i += kHalf) room.entry[i] = 0;
    });
    for (uint32_t start = 0; start < batch_size; start += kTinyChunk) {
        struct Words {
            uint32_t gate[N];
        };
        Lane<Words> words;
        Lane<uint32_t> counts;
        w.sync();
        w.each([&](int lane) {
            const uint32_t d_count = units[lane], slice_log2 = (uint32_t)dense_slice_log2(d_count);
            if ((start & ((1u << slice_log2) - 1u)) == 0) {
                slice[lane] = start >> slice_log2;
                have[lane] = rank[lane] = 0;
            }
            counts[lane] = 0;
            TOYKERN_UNROLL
            for (int d = 0; d < N; ++d) {
                words[lane].gate[d] = 0;
                if ((uint32_t)d < d_count)
                    words[lane].gate[d] = gate_word(key[lane], start / 32 + (uint32_t)lane % kHalf, (uint32_t)d,
                                                    d_count, tables[lane].threshold()[d]);
                counts[lane] += (uint32_t)count_bits(words[lane].gate[d]);
            }
        });
        const Lane<uint32_t> ranks = running_sum(w, counts, kHalf);
        const Lane<uint32_t> chunk_count = w.broadcast(ranks, kHalf - 1, kHalf);
        w.each([&](int lane) {
            const uint32_t l = (uint32_t)lane % kHalf;
            TinyFrequentRoom<N>& room = rooms[lane / kHalf];
            uint32_t next = rank[lane] + ranks[lane] - counts[lane];
            for (uint32_t run = 0; run < 2; ++run) {
                TOYKERN_UNROLL
                for (int d = 0; d < N; ++d) {
                    if ((uint32_t)d >= units[lane]) continue;
                    const uint32_t gate = words[lane].gate[d] >> (16 * run) & 0xFFFFu;
                    room.entry[(2 * l + run) * N + (features[lane] >> (4 * d) & 15u)] = gate | next << 16;
                    next += (uint32_t)count_bits(gate);
                }
            }
            room.end[l] = next;
            rank[lane] += chunk_count[lane];
        });
        w.sync();
        for (uint32_t first = start; first < start + kTinyChunk && first < batch_size; first += 2 * kHalf) {
            const uint32_t block = (first - start) / (2 * kHalf);
            Lane<bool> wanting;
            w.each([&](int lane) { wanting[lane] = taking[lane] && have[lane] < rooms[lane / kHalf].end[block]; });
            while (w.any(wanting)) {
                w.sync();
                w.each([&](int lane) {
                    TinyFrequentRoom<N>& room = rooms[lane / kHalf];
                    const uint32_t end = taking[lane] ? room.end[block] : 0u;
                    // What the block can still read are the 32 N magnitudes before its end. The other model goes along
                    // if it has the room.
                    const bool draws =
                        taking[lane] && have[lane] + kTinyArrivals <= end - min_of(end, 32u * N) + kTinyRing;
                    const uint32_t l = (uint32_t)lane % kHalf;
                    const StepKey& k = key[lane];
                    float value[4];
                    magnitudes(magnitude_kind,
                               sequence_block(k.key, Kind::kFrequentMagnitude, k.purpose, 0, slice[lane], k.step,
                                              have[lane] / kTinyArrivals, l),
                               value);
                    if (draws) {
                        TOYKERN_UNROLL
                        for (uint32_t q = 0; q < 4; ++q) room.ring[(have[lane] + 16 * q + l) % kTinyRing] = value[q];
                        have[lane] += kTinyArrivals;
                    }
                    wanting[lane] = have[lane] < end;
                });
                w.sync();
            }
            w.each([&](int lane) {
                const uint32_t l = (uint32_t)lane % kHalf, below = (1u << l) - 1u;
                const TinyFrequentRoom<N>& room = rooms[lane / kHalf];
                TOYKERN_UNROLL
                for (uint32_t run = 0; run < 2; ++run) {
                    float x[N];
                    TOYKERN_UNROLL
                    for (int j = 0; j < N; ++j) {
                        const uint32_t entry = room.entry[(2 * block + run) * N + j];
                        const uint32_t at = (entry >> 16) + (uint32_t)count_bits(entry & below);
                        x[j] = entry >> l & 1u ? room.ring[at % kTinyRing] : 0.0f;
                    }
                    pass(lane, taking[lane] && first + kHalf * run + l < batch_size, x);
                }
            });
        }
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
