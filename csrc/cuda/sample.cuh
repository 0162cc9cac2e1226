// Batches of the data stream as dense rows on a device: bit for bit what the CPU draws. The CPU's twin is cpu/sample.inl.
//
//   sample_slice   scatters one slice of the rare or of the frequent units into rows that are zero
//   sample_noise   adds the input noise, four entries to a thread
//
// Layout     rows [K][batch][n]
// Owner      a warp to a slice; no two slices or units write the same entry
// Roof       the output is written twice (zeros, entries)
#pragma once
#include "cuda/stream_frequent.cuh"
#include "cuda/stream_rare.cuh"
#include "toykern/cuda.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

struct SampleTask {
    SampleParams p;
    TablesLayout layout;
    const char* tables;
    int64_t tables_stride;
    float* rows;          // where the entries go: p.clean, or p.noisy
    int64_t rows_stride;  // between models, in rows and in p.noisy: batch n, or 0 where only one model's are kept

    TOYKERN_DEVICE TablesView view(int64_t model) const { return {tables + model * tables_stride, &layout}; }
    TOYKERN_DEVICE StepKey key(int64_t model) const {
        return {philox_key(p.seed[model * p.seed_stride]), p.step, p.purpose};
    }
};

// Warp number `task` of a model's rare slices: they are taken `stride` apart.
TOYKERN_DEVICE void sample_rare(const Warp& w, const SampleTask& t, int64_t model, int64_t task, int64_t stride) {
    const TablesView tables = t.view(model);
    const RareProcess r = tables.head().rare;
    if (r.n_units == 0) return;
    const StepKey key = t.key(model);
    const int64_t slices = (t.p.batch_size + ((int64_t)1 << r.slice_log2) - 1) >> r.slice_log2;
    for (int64_t slice = task; slice < slices; slice += stride) {
        const int64_t base = slice << r.slice_log2, left = t.p.batch_size - base;
        const uint32_t samples = (uint32_t)(left < ((int64_t)1 << r.slice_log2) ? left : (int64_t)1 << r.slice_log2);
        float* rows = t.rows + model * t.rows_stride + base * t.p.data.n_features;
        RareSlice arrivals(tables, key, (uint32_t)slice, samples);
        while (!arrivals.done()) {
            const Lane<Arrivals> a = arrivals.next(w);
            const Lane<PhiloxBlock> values = arrivals.words(w, Kind::kSparseMagnitude, 0);
            Lane<PhiloxBlock> choices = values;
            if (t.layout.has_exclusive) choices = arrivals.words(w, Kind::kSparseChoice, 0);
            for (uint32_t member = 0; member < t.layout.max_members; ++member) {
                const Lane<PhiloxBlock> words = member ? arrivals.words(w, Kind::kSparseMagnitude, member) : values;
                w.each([&](int lane) {
                    for (int q = 0; q < 4; ++q) {
                        if (!a[lane].kept[q]) continue;
                        const uint32_t unit = tables.rare_unit()[a[lane].unit[q]];
                        const uint32_t feature = active_member(t.p.data, tables, unit, choices[lane].word[q], member);
                        if (feature != kNoFeature)
                            rows[(int64_t)a[lane].sample[q] * t.p.data.n_features + feature] =
                                magnitude(t.p.data.magnitude, words[lane].word[q]);
                    }
                });
            }
        }
    }
}

TOYKERN_DEVICE void sample_frequent(const Warp& w, const SampleTask& t, int64_t model, int64_t task, int64_t stride) {
    const TablesView tables = t.view(model);
    const uint32_t units = tables.head().n_frequent;
    if (units == 0) return;
    const StepKey key = t.key(model);
    const int k = dense_slice_log2(units);
    const int64_t slices = (t.p.batch_size + ((int64_t)1 << k) - 1) >> k;
    for (int64_t slice = task; slice < slices; slice += stride) {
        const int64_t base = slice << k, left = t.p.batch_size - base;
        float* rows = t.rows + model * t.rows_stride + base * t.p.data.n_features;
        const uint32_t samples = (uint32_t)(left < ((int64_t)1 << k) ? left : (int64_t)1 << k);
        frequent_slice(w, tables, key, (uint32_t)slice, samples, [&](int, uint32_t s, uint32_t d, uint32_t rank) {
            const auto word = [&](Kind kind, uint32_t member) {
                return sequence_word(key.key, kind, key.purpose, member, (uint32_t)slice, key.step, rank);
            };
            const uint32_t choice = t.layout.has_exclusive ? word(Kind::kDenseChoice, 0) : 0u;
            for (uint32_t member = 0; member < t.layout.max_members; ++member) {
                const uint32_t feature = active_member(t.p.data, tables, tables.frequent_unit()[d], choice, member);
                if (feature == kNoFeature) return;
                rows[(int64_t)s * t.p.data.n_features + feature] =
                    magnitude(t.p.data.magnitude, word(Kind::kDenseMagnitude, member));
            }
        });
    }
}

// Noise for the four entries of Philox block `block` of a model's noise sequence (§7): entry e holds samples 16 (e / n) + lane of feature
// e mod n.
TOYKERN_DEVICE void sample_noise(const SampleTask& t, int64_t model, uint64_t group, uint32_t lane) {
    const StepKey key = t.key(model);
    const uint64_t counter = 16 * group + lane, n = (uint64_t)t.p.data.n_features;
    const PhiloxBlock words = philox(key.key, (uint32_t)counter, (uint32_t)(counter >> 32), key.step,
                                     counter_tag(Kind::kNoise, key.purpose, 0));
    for (uint64_t q = 0; q < 4; ++q) {
        const uint64_t entry = 4 * group + q, s = 16 * (entry / n) + lane, j = entry % n;
        if (s >= (uint64_t)t.p.batch_size) return;
        const uint64_t at = (uint64_t)(model * t.rows_stride) + s * n + j;
        t.p.noisy[at] = t.rows[at] + t.p.data.noise * signed_normal(words.word[q]);
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
