// Rung 4, a shape that the compiler knows: the fifteen sums of gradients stay in registers.
//
// n and m are constants, so every loop over them is written out, weights are loaded once a batch, and a sum is touched
// by the arithmetic alone instead of being loaded and stored for each sixteen samples.
#include "problem.h"
#include "vectors.h"

namespace sums_in_registers {

constexpr int n = kFeatures, m = kHidden;

static int draw(uint32_t seed, float* x, int number, Watcher* watcher) {
    const float scale = 1.0f / (float)std::log1p(-kDensity);
    int column = -1, before = -1;
    for (uint32_t at = 0, word = 0;; ++at) {
        const float gap = std::floor(std::log(uniform(random_word(seed, word++))) * scale);
        if (gap >= (float)(n * kBatch - (int)at)) break;
        at += (uint32_t)gap;
        const int sample = (int)at / n, feature = (int)at % n;
        const float value = uniform(random_word(seed, word++));
        if (sample != before) {
            if (++column % kLanes == 0)
                for (int j = 0; j < n; ++j) *(F*)(x + j * kBatch + column) = F{};
            before = sample;
        }
        x[feature * kBatch + column] = value;
        if (watcher) watcher->entries.push_back({number, sample, feature, value});
    }
    return column + 1;
}

static void step(Model& model, int number, Watcher* watcher) {
    alignas(64) static thread_local float columns[n * kBatch];
    const int count = draw(step_seed(model.seed, number), columns, number, watcher);
    const float* b = model.parameter + m * n;
    I lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    F w[m][n], w_sum[m][n], b_sum[n];
#pragma GCC unroll 5
    for (int j = 0; j < n; ++j) {
        b_sum[j] = F{};
#pragma GCC unroll 2
        for (int k = 0; k < m; ++k) w[k][j] = all(model.parameter[k * n + j]), w_sum[k][j] = F{};
    }
    for (int s = 0; s < count; s += kLanes) {
        const I there = lane < count - s;
        F x[n], h[m], back[m];
#pragma GCC unroll 2
        for (int k = 0; k < m; ++k) h[k] = back[k] = F{};
#pragma GCC unroll 5
        for (int j = 0; j < n; ++j) {
            x[j] = *(const F*)(columns + j * kBatch + s);
#pragma GCC unroll 2
            for (int k = 0; k < m; ++k) h[k] += w[k][j] * x[j];
        }
#pragma GCC unroll 5
        for (int j = 0; j < n; ++j) {
            F y = all(b[j]);
#pragma GCC unroll 2
            for (int k = 0; k < m; ++k) y += w[k][j] * h[k];
            const F d = keep((y > 0.0f) & there, y - x[j]);
            b_sum[j] += d;
#pragma GCC unroll 2
            for (int k = 0; k < m; ++k) back[k] += w[k][j] * d, w_sum[k][j] += h[k] * d;
        }
#pragma GCC unroll 2
        for (int k = 0; k < m; ++k)
#pragma GCC unroll 5
            for (int j = 0; j < n; ++j) w_sum[k][j] += back[k] * x[j];
    }
    float total[kParameters];
    for (int j = 0; j < n; ++j) {
        for (int k = 0; k < m; ++k) total[k * n + j] = sum(w_sum[k][j]);
        total[m * n + j] = sum(b_sum[j]) + (float)(kBatch - count) * (b[j] > 0.0f ? b[j] : 0.0f);
    }
    adam(model, total, number);
}

void train(Model* models, int count, int first_step, int steps, Watcher* watcher) {
    for (int i = 0; i < count; ++i)
        for (int t = first_step; t < first_step + steps; ++t) step(models[i], t, i == 0 ? watcher : nullptr);
}

}  // namespace sums_in_registers
