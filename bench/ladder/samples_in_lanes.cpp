// Rung 1, samples in lanes: sixteen samples side by side in every operation, the drawing included.
//
// It does what the naive loop does, and draws the same numbers. A weight is one number for all lanes, so nothing has to
// be moved between them until the sums are added up at the end of the batch.
#include "problem.h"
#include "vectors.h"

namespace samples_in_lanes {

static void step(Model& model, int n, int m, int batch, int number, Watcher* watcher) {
    const float *w = model.parameter, *b = model.parameter + m * n;
    const U seed = all(step_seed(model.seed, number));
    U lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = (uint32_t)l;
    std::vector<F> x(n), h(m), back(m), sums((m + 1) * n, F{});
    for (int s = 0; s < batch; s += kLanes) {
        for (int j = 0; j < n; ++j) {
            const U at = 2u * (((uint32_t)s + lane) * (uint32_t)n + (uint32_t)j);
            const I active = uniform(random_word(seed, at)) <= (float)kDensity;
            x[j] = keep(active, uniform(random_word(seed, at + 1u)));
            for (int l = 0; l < kLanes && watcher; ++l)
                if (active[l]) watcher->entries.push_back({number, s + l, j, x[j][l]});
        }
        for (int k = 0; k < m; ++k) {
            h[k] = F{};
            for (int j = 0; j < n; ++j) h[k] += w[k * n + j] * x[j];
            back[k] = F{};
        }
        for (int j = 0; j < n; ++j) {
            F y = all(b[j]);
            for (int k = 0; k < m; ++k) y += w[k * n + j] * h[k];
            const F d = keep(y > 0.0f, y - x[j]);
            sums[m * n + j] += d;
            for (int k = 0; k < m; ++k) {
                back[k] += w[k * n + j] * d;
                sums[k * n + j] += h[k] * d;
            }
        }
        for (int k = 0; k < m; ++k)
            for (int j = 0; j < n; ++j) sums[k * n + j] += back[k] * x[j];
    }
    float total[kParameters];
    for (int i = 0; i < kParameters; ++i) total[i] = sum(sums[i]);
    adam(model, total, number);
}

void train(Model* models, int count, int first_step, int steps, Watcher* watcher) {
    for (int i = 0; i < count; ++i)
        for (int t = first_step; t < first_step + steps; ++t)
            step(models[i], kFeatures, kHidden, kBatch, t, i == 0 ? watcher : nullptr);
}

}  // namespace samples_in_lanes
