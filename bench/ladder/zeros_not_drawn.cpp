// Rung 2, zeros are not drawn: from one active entry of the batch to the next it is a geometric gap.
//
// With u uniform on (0, 1], ⌊ln u / ln(1 − p)⌋ zeros stand before the next active entry (the inverse of the geometric
// distribution), so a batch of 5,120 entries takes some fifty gaps and fifty values instead of 5,120 gates. The products
// still go over all samples.
#include "problem.h"
#include "vectors.h"

namespace zeros_not_drawn {

// Fills x [n][batch] with zeros and the active entries of a batch.
static void draw(uint32_t seed, int n, int batch, float* x, int number, Watcher* watcher) {
    for (int i = 0; i < n * batch; ++i) x[i] = 0.0f;
    const float scale = 1.0f / (float)std::log1p(-kDensity);
    const int entries = n * batch;
    for (uint32_t at = 0, word = 0;; ++at) {
        const float gap = std::floor(std::log(uniform(random_word(seed, word++))) * scale);
        if (gap >= (float)(entries - (int)at)) return;
        at += (uint32_t)gap;
        const int sample = (int)at / n, feature = (int)at % n;
        const float value = uniform(random_word(seed, word++));
        x[feature * batch + sample] = value;
        if (watcher) watcher->entries.push_back({number, sample, feature, value});
    }
}

static void step(Model& model, int n, int m, int batch, int number, Watcher* watcher) {
    alignas(64) static thread_local float columns[kFeatures * kBatch];
    const float *w = model.parameter, *b = model.parameter + m * n;
    draw(step_seed(model.seed, number), n, batch, columns, number, watcher);
    std::vector<F> x(n), h(m), back(m), sums((m + 1) * n, F{});
    for (int s = 0; s < batch; s += kLanes) {
        for (int j = 0; j < n; ++j) x[j] = *(const F*)(columns + j * batch + s);
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

}  // namespace zeros_not_drawn
