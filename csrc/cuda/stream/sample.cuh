// Batches of the data stream as dense rows on a device: bit for bit what the CPU draws. The CPU's twin is
// cpu/stream/sample.inl.
//
//   sample_rare, sample_frequent   scatter slices of units into rows that are zero
//   sample_noise                   adds the input noise, four entries to a thread
//
// Layout     rows [K][batch][n]
// Owner      a warp to a slice; no two slices or units write the same entry
// Roof       the output is written twice (zeros, entries)
#pragma once
#include "cuda/stream/entries.cuh"
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

// Warp number `task` of a model's slices: they are taken `stride` apart.
TOYKERN_DEVICE void sample_rare(const Warp& w, const SampleTask& t, int64_t model, int64_t task, int64_t stride) {
    const TablesView tables = t.view(model);
    const StepKey key = t.key(model);
    const SliceRange slices = rare_slices(tables, 0, t.p.batch_size);
    for (int64_t slice = task; slice < slices.end; slice += stride) {
        float* rows = t.rows + model * t.rows_stride + slices.start(slice) * t.p.data.n_features;
        rare_entries(w, t.p.data, tables, key, (uint32_t)slice, slices.samples(slice, t.p.batch_size),
                     [&](uint32_t s, uint32_t j, float x) { rows[(int64_t)s * t.p.data.n_features + j] = x; });
    }
}

TOYKERN_DEVICE void sample_frequent(const Warp& w, const SampleTask& t, int64_t model, int64_t task, int64_t stride) {
    const TablesView tables = t.view(model);
    const StepKey key = t.key(model);
    const SliceRange slices = frequent_slices(tables, 0, t.p.batch_size);
    for (int64_t slice = task; slice < slices.end; slice += stride) {
        float* rows = t.rows + model * t.rows_stride + slices.start(slice) * t.p.data.n_features;
        frequent_entries(w, t.p.data, tables, key, (uint32_t)slice, slices.samples(slice, t.p.batch_size),
                         [&](uint32_t s, uint32_t j, float x) { rows[(int64_t)s * t.p.data.n_features + j] = x; });
    }
}

// Noise for the four entries of Philox block `block` of a model's noise sequence (§7): entry e holds samples 16 (e / n)
// + lane of feature e mod n.
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
