// Rung 0, the loop as one writes it down: sample by sample, number by number, for any n and m.
//
// Every entry of the batch is drawn, and goes through every product, though 99 of 100 are zeros.
#include "problem.h"

namespace naive {

static void step(Model& model, int n, int m, int batch, int number, Watcher* watcher) {
    const float *w = model.parameter, *b = model.parameter + m * n;
    const uint32_t seed = step_seed(model.seed, number);
    std::vector<float> x(n), h(m), y(n), back(m), sum((m + 1) * n);
    for (int s = 0; s < batch; ++s) {
        for (int j = 0; j < n; ++j) {
            const uint32_t at = 2u * (uint32_t)(s * n + j);
            const bool active = uniform(random_word(seed, at)) <= (float)kDensity;
            x[j] = active ? uniform(random_word(seed, at + 1)) : 0.0f;
            if (active && watcher) watcher->entries.push_back({number, s, j, x[j]});
        }
        for (int k = 0; k < m; ++k) {
            h[k] = 0.0f;
            for (int j = 0; j < n; ++j) h[k] += w[k * n + j] * x[j];
            back[k] = 0.0f;
        }
        for (int j = 0; j < n; ++j) {
            y[j] = b[j];
            for (int k = 0; k < m; ++k) y[j] += w[k * n + j] * h[k];
            const float d = y[j] > 0.0f ? y[j] - x[j] : 0.0f;  // of half the squared error, by what is inside the ReLU
            sum[m * n + j] += d;
            for (int k = 0; k < m; ++k) {
                back[k] += w[k * n + j] * d;
                sum[k * n + j] += h[k] * d;
            }
        }
        for (int k = 0; k < m; ++k)
            for (int j = 0; j < n; ++j) sum[k * n + j] += back[k] * x[j];
    }
    adam(model, sum.data(), number);
}

void train(Model* models, int count, int first_step, int steps, Watcher* watcher) {
    for (int i = 0; i < count; ++i)
        for (int t = first_step; t < first_step + steps; ++t)
            step(models[i], kFeatures, kHidden, kBatch, t, i == 0 ? watcher : nullptr);
}

}  // namespace naive
