// Batches of any distribution for the tiny regime: drawn as rows in device memory, then read sixteen samples at a time.
//
// Taken where rare and frequent units mix, and for groups and noise. The whole warp draws for one model.
//
// Layout     rows [2][batch][N]: clean, then what the model sees (the same rows without noise)
// Owner      the warp
// Order      samples in order, sixteen at a time
// Limits     none
// Roof       device memory or cache: 4 to 12 bytes written and read for every entry
#pragma once
#include "cuda/sample.cuh"
#include "cuda/tiny_pass.cuh"
#include "cuda/tiny_sparse.cuh"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

// What training and evaluation have in common.
struct TinyTask {
    Network network;
    Distribution data;
    TablesLayout layout;
    const char* tables;
    int64_t tables_stride;
    int64_t n_models, batch_size;
    const int64_t* seed;
    const float* importance;
    int64_t importance_stride;
    const int64_t* order;  // [K] or null
    PassOptions options;
    double mean_factor;  // a batch's loss is its sum of errors times this
};

inline double tiny_mean_factor(const Network& net, int64_t batch_size) {
    return 1.0 / ((double)batch_size * (net.loss_sum ? 1.0 : (double)net.n_features));
}

// A model's batch into its rows [2][batch][n].
TOYKERN_DEVICE_CALL void tiny_rows_draw(const Warp& w, const TinyTask& task, int64_t model, uint32_t step,
                                        Purpose purpose, float* rows) {
    const int64_t batch = task.batch_size, n = task.network.n_features, entries = batch * n;
    SampleTask draw = {};
    draw.p.data = task.data;
    draw.p.batch_size = batch;
    draw.p.seed = task.seed;
    draw.p.seed_stride = 1;
    draw.p.step = step;
    draw.p.purpose = (uint32_t)purpose;
    draw.p.noisy = rows + entries;
    draw.layout = task.layout;
    draw.tables = task.tables;
    draw.tables_stride = task.tables_stride;
    draw.rows = rows;
    w.each([&](int lane) {
        for (int64_t i = lane; i < entries; i += kWarpLanes) rows[i] = 0.0f;
    });
    w.sync();
    sample_rare(w, draw, model, 0, 1);
    sample_frequent(w, draw, model, 0, 1);
    w.sync();
    if (task.data.noise > 0.0f)
        w.each([&](int lane) {
            const uint64_t groups = ((uint64_t)((batch + 15) / 16 * n) + 3) / 4;
            for (uint64_t g = (uint64_t)lane / kHalf; g < groups; g += 2)
                sample_noise(draw, model, g, (uint32_t)lane % kHalf);
        });
    w.sync();
}

// Calls pass(lane, valid, x, clean) for the samples of drawn rows, in the lanes of half `half`.
template <int N, class Pass>
TOYKERN_DEVICE void tiny_rows_batch(const Warp& w, const float* rows, int64_t batch, bool noise, int half,
                                    const Pass& pass) {
    const float *clean = rows, *noisy = noise ? rows + batch * N : rows;
    for (int64_t first = 0; first < batch; first += kHalf)
        w.each([&](int lane) {
            const int64_t s = first + lane % kHalf;
            const bool valid = lane / kHalf == half && s < batch;
            float x[N], target[N];
            TOYKERN_UNROLL
            for (int j = 0; j < N; ++j) {
                x[j] = valid ? noisy[s * N + j] : 0.0f;
                target[j] = valid ? clean[s * N + j] : 0.0f;
            }
            pass(lane, valid, x, target);
        });
    w.sync();
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
