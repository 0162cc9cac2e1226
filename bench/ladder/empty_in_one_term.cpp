// Rung 3, empty samples in one term: where x = 0 the output is ReLU(b), for all such samples alike.
//
// Of 1,024 samples some fifty have an active feature. Only these become columns of the passes; what the others add to
// the gradient of b is computed once and multiplied by their number, and to that of W they add nothing, since h = 0.
#include "problem.h"
#include "vectors.h"

namespace empty_in_one_term {

// Fills the columns x [n][batch] of samples with an active entry, one after another; returns how many there are.
static int draw(uint32_t seed, int n, int batch, float* x, int number, Watcher* watcher) {
    const float scale = 1.0f / (float)std::log1p(-kDensity);
    const int entries = n * batch;
    int column = -1, before = -1;
    for (uint32_t at = 0, word = 0;; ++at) {
        const float gap = std::floor(std::log(uniform(random_word(seed, word++))) * scale);
        if (gap >= (float)(entries - (int)at)) break;
        at += (uint32_t)gap;
        const int sample = (int)at / n, feature = (int)at % n;
        const float value = uniform(random_word(seed, word++));
        if (sample != before) {
            // Columns are cleared sixteen at a time, when the first of them is begun.
            if (++column % kLanes == 0)
                for (int j = 0; j < n; ++j) *(F*)(x + j * batch + column) = F{};
            before = sample;
        }
        x[feature * batch + column] = value;
        if (watcher) watcher->entries.push_back({number, sample, feature, value});
    }
    return column + 1;
}

static void step(Model& model, int n, int m, int batch, int number, Watcher* watcher) {
    alignas(64) static thread_local float columns[kFeatures * kBatch];
    const float *w = model.parameter, *b = model.parameter + m * n;
    const int count = draw(step_seed(model.seed, number), n, batch, columns, number, watcher);
    I lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    std::vector<F> x(n), h(m), back(m), sums((m + 1) * n, F{});
    for (int s = 0; s < count; s += kLanes) {
        const I there = lane < count - s;
        for (int j = 0; j < n; ++j) x[j] = *(const F*)(columns + j * batch + s);
        for (int k = 0; k < m; ++k) {
            h[k] = F{};
            for (int j = 0; j < n; ++j) h[k] += w[k * n + j] * x[j];
            back[k] = F{};
        }
        for (int j = 0; j < n; ++j) {
            F y = all(b[j]);
            for (int k = 0; k < m; ++k) y += w[k * n + j] * h[k];
            const F d = keep((y > 0.0f) & there, y - x[j]);
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
    for (int j = 0; j < n; ++j) total[m * n + j] += (float)(batch - count) * (b[j] > 0.0f ? b[j] : 0.0f);
    adam(model, total, number);
}

void train(Model* models, int count, int first_step, int steps, Watcher* watcher) {
    for (int i = 0; i < count; ++i)
        for (int t = first_step; t < first_step + steps; ++t)
            step(models[i], kFeatures, kHidden, kBatch, t, i == 0 ? watcher : nullptr);
}

}  // namespace empty_in_one_term
