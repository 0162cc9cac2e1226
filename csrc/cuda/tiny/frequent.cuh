// Batches of frequent units for the tiny regime: gates bit-sliced, magnitudes in a ring, four samples to a lane.
//
// Layout     half a warp to a model. A chunk is 512 samples: lane l draws the gate words of samples 32 l … 32 l + 31,
//            ranks their active gates by one scan, and leaves an entry for each run of sixteen samples and feature: the
//            gates in the lower half, the rank of the first active one in the upper. A block is 64 samples, of which
//            lane l has 4 l … 4 l + 3: they are of one run, so that a lane counts bits once for four samples, and their
//            magnitudes follow one another. Magnitudes in the order of their ranks go through a ring, refilled by one
//            or two Philox blocks of each lane.
// Owner      the half warp
// Order      a lane's samples in order; which they are depends on the batch's size alone
// Limits     single features only, up to six, no rare unit among them
// Roof       a pass for each sixteen samples of two models, with some five operations a feature to find its value; p N / 2
//            Philox blocks a lane for the magnitudes of 32 samples, about three for each gate word: docs/gpu_trainer.md
//            counts them. Lanes of a run that read the ring four magnitudes apart meet on banks, up to four of them:
//            half of the time in which the pass is issued
#pragma once
#include "cuda/stream/frequent.cuh"
#include "cuda/tiny/rare.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

constexpr uint32_t kTinyChunk = 512;  // samples; a dense slice of up to eight units is a multiple of it
constexpr uint32_t kChunkRuns = kTinyChunk / kHalf;
constexpr uint32_t kLaneSamples = 4;                    // of a block
constexpr uint32_t kTinyBlock = kLaneSamples * kHalf;   // samples
constexpr uint32_t kLanesOfRun = kHalf / kLaneSamples;  // of a block

template <int N>
struct alignas(16) TinyFrequentRoom {
    static constexpr uint32_t kBlocks = N <= 3 ? 2 : 1;  // of Philox, drawn by a lane for a refill: registers
    static constexpr uint32_t kRefill = kBlocks * kTinyArrivals;
    static constexpr uint32_t kReach = kTinyBlock * N;  // a block's magnitudes lie this far before its end at most
    static constexpr uint32_t kRing = kReach + kRefill <= 256 ? 256 : 512;
    static constexpr uint32_t kTogether = N <= 3 ? 4 : 2;  // samples of a lane whose loads may overlap: registers
    static_assert(kReach + kRefill <= kRing, "the ring must hold a block beside a refill");
    uint32_t entry[kChunkRuns * N + 4];
    uint32_t end[kTinyChunk / kTinyBlock];  // rank after each block
    float ring[kRing + 4];                  // the first three again at its end: a lane's four samples look nowhere else
};

// Calls pass(lane, true, x) for the samples of the halves whose model is `taking` part. N: features.
template <int N, class Pass>
TOYKERN_DEVICE void tiny_frequent_batch(const Warp& w, TinyFrequentRoom<N>* rooms, const Lane<TablesView>& tables,
                                        const Lane<PackedFeatures>& features, const Lane<TinyKey>& key,
                                        int32_t magnitude_kind, uint32_t batch_size, const Lane<bool>& taking,
                                        const Pass& pass) {
    using Room = TinyFrequentRoom<N>;
    constexpr uint32_t kReach = Room::kReach, kRing = Room::kRing, kBlocks = Room::kBlocks, kRefill = Room::kRefill,
                       kTogether = Room::kTogether;
    // A block's entries of the second model lie on banks that the first one's four runs leave free.
    static_assert(sizeof(Room) % 128 == 64, "a model's room is an odd number of half rows of banks");
    Lane<uint32_t> have, rank, slice, units;  // magnitudes drawn, gates ranked so far in the dense slice
    Lane<uint32_t> slice_log2;
    w.each([&](int lane) {
        have[lane] = rank[lane] = slice[lane] = 0;
        units[lane] = taking[lane] ? tables[lane].head().n_frequent : 0u;
        slice_log2[lane] = (uint32_t)dense_slice_log2(units[lane]);
        Room& room = rooms[lane / kHalf];
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
            const uint32_t d_count = units[lane];
            if ((start & ((1u << slice_log2[lane]) - 1u)) == 0) {
                slice[lane] = start >> slice_log2[lane];
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
            Room& room = rooms[lane / kHalf];
            uint32_t next = rank[lane] + ranks[lane] - counts[lane];
            TOYKERN_UNROLL
            for (uint32_t run = 0; run < 2; ++run) {
                TOYKERN_UNROLL
                for (int d = 0; d < N; ++d) {
                    if ((uint32_t)d >= units[lane]) continue;
                    const uint32_t gate = words[lane].gate[d] >> (16 * run) & 0xFFFFu;
                    room.entry[(2 * l + run) * N + (features[lane] >> (4 * d) & 15u)] = gate | next << 16;
                    next += (uint32_t)count_bits(gate);
                }
            }
            if (l % 2) room.end[l / 2] = next;  // a lane's gates are half a block
            rank[lane] += chunk_count[lane];
        });
        w.sync();
        for (uint32_t first = start; first < start + kTinyChunk && first < batch_size; first += kTinyBlock) {
            const uint32_t block = (first - start) / kTinyBlock;
            Lane<bool> wanting;
            w.each([&](int lane) { wanting[lane] = taking[lane] && have[lane] < rooms[lane / kHalf].end[block]; });
            while (w.any(wanting)) {
                w.sync();
                w.each([&](int lane) {
                    Room& room = rooms[lane / kHalf];
                    const uint32_t end = taking[lane] ? room.end[block] : 0u;
                    // What the block can still read are the magnitudes just before its end. The other model goes along
                    // if it has the room.
                    const bool draws = taking[lane] && have[lane] + kRefill <= end - min_of(end, kReach) + kRing;
                    const uint32_t l = (uint32_t)lane % kHalf;
                    uint32_t words[kRefill / kHalf];
                    float value[kRefill / kHalf];
                    TOYKERN_UNROLL
                    for (uint32_t g = 0; g < kBlocks; ++g) {
                        const PhiloxBlock block =
                            sequence_block(key[lane].key, Kind::kFrequentMagnitude, key[lane].purpose, 0, slice[lane],
                                           key[lane].step, have[lane] / kTinyArrivals + g, l);
                        TOYKERN_UNROLL
                        for (uint32_t q = 0; q < 4; ++q) words[4 * g + q] = block.word[q];
                    }
                    magnitudes(magnitude_kind, words, value);
                    if (draws) {
                        float* to = room.ring + have[lane] % kRing + l;  // a refill does not go over the ring's end
                        TOYKERN_UNROLL
                        for (uint32_t i = 0; i < kRefill / kHalf; ++i) to[kHalf * i] = value[i];
                        if (have[lane] % kRing + l < kLaneSamples - 1) to[kRing] = value[0];
                        have[lane] += kRefill;
                    }
                    wanting[lane] = have[lane] < end;
                });
                w.sync();
            }
            w.each([&](int lane) {
                const uint32_t l = (uint32_t)lane % kHalf, sample = first + kLaneSamples * l;
                if (!taking[lane] || sample >= batch_size) return;
                const Room& room = rooms[lane / kHalf];
                // The lane's four gates of each feature, and where the first active one's magnitude lies.
                uint32_t gates[N];
                const float* from[N];
                const uint32_t shift = kLaneSamples * (l % kLanesOfRun);
                TOYKERN_UNROLL
                for (int j = 0; j < N; ++j) {
                    const uint32_t entry = room.entry[(kLanesOfRun * block + l / kLanesOfRun) * N + j];
                    gates[j] = entry >> shift;
                    from[j] = room.ring + ((entry >> 16) + (uint32_t)count_bits(entry & ((1u << shift) - 1u))) % kRing;
                }
                const auto next = [&](uint32_t i) {
                    float x[N];
                    TOYKERN_UNROLL
                    for (int j = 0; j < N; ++j) {
                        const bool active = gates[j] >> i & 1u;
                        x[j] = active ? *from[j] : 0.0f;
                        from[j] += active;
                    }
                    pass(lane, true, x);
                };
                if (batch_size - sample >= kLaneSamples) {
                    TOYKERN_NO_UNROLL
                    for (uint32_t i = 0; i < kLaneSamples; i += kTogether) {
                        TOYKERN_UNROLL
                        for (uint32_t k = 0; k < kTogether; ++k) next(i + k);
                    }
                } else {
                    TOYKERN_NO_UNROLL
                    for (uint32_t i = 0; i < batch_size - sample; ++i) next(i);
                }
            });
        }
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
