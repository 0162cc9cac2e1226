// The training of the bench written down in plain C++, as a good student does in an afternoon: one model after another,
// one sample after another, jumps over inactive entries, all-zero samples once. No intrinsics: the compiler does what it
// can with -O3 -march=native -ffast-math. bench/peers/plain_loop.py compiles it for each shape and calls it.
#include <cmath>
#include <cstdint>
#include <vector>

constexpr int n = FEATURES, m = HIDDEN;

struct Entry {  // an active feature
    int sample, feature;
    float value;
};
struct Model {
    float w[n * m], b[n];  // w[j][k]: all hidden units of a feature together
};

struct Random {  // splitmix64
    uint64_t& state;
    float uniform() {  // in (0, 1]
        uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return ((z ^ (z >> 31)) >> 40) * 0x1p-24f + 0x1p-25f;
    }
};

// The active entries of a batch in order: gaps between the successes of a Bernoulli process are geometric.
static int draw(Random random, int batch, double p, Entry* out) {
    const float scale = p < 1.0 ? (float)(1.0 / std::log1p(-p)) : 0.0f;
    constexpr int block = 64;
    float gap[block], value[block];
    int count = 0;
    for (int64_t at = -1;;) {
        for (int i = 0; i < block; ++i) gap[i] = random.uniform(), value[i] = random.uniform();
        for (int i = 0; i < block; ++i) gap[i] = p < 1.0 ? std::log(gap[i]) * scale : 0.0f;
        for (int i = 0; i < block; ++i) {
            at += 1 + (int)gap[i];
            if (at >= (int64_t)batch * n) return count;
            out[count++] = {(int)(at / n), (int)(at % n), value[i]};
        }
    }
}

// Adds a sample's gradients `times` over; returns its loss.
static float sample(const Model& model, Model& g, const float* importance, const Entry* x, int active, int times) {
    float h[m] = {}, dh[m] = {}, d[n], loss = 0;
    for (int e = 0; e < active; ++e)
        for (int k = 0; k < m; ++k) h[k] += model.w[x[e].feature * m + k] * x[e].value;
    for (int j = 0; j < n; ++j) {
        float y = model.b[j];
        for (int k = 0; k < m; ++k) y += model.w[j * m + k] * h[k];
        d[j] = y > 0 ? y : 0;
    }
    float target[n] = {};
    for (int e = 0; e < active; ++e) target[x[e].feature] = x[e].value;
    for (int j = 0; j < n; ++j) {
        const float error = d[j] - target[j];
        loss += importance[j] * error * error;
        d[j] = d[j] > 0 ? 2 * importance[j] * error * times : 0;
        g.b[j] += d[j];
    }
    if (!active) return loss * times;
    for (int j = 0; j < n; ++j)
        for (int k = 0; k < m; ++k) {
            dh[k] += model.w[j * m + k] * d[j];
            g.w[j * m + k] += h[k] * d[j];
        }
    for (int e = 0; e < active; ++e)
        for (int k = 0; k < m; ++k) g.w[x[e].feature * m + k] += dh[k] * x[e].value;
    return loss;
}

// One step of Adam on a batch; returns the batch's loss. `t` counts from 1.
static float step(Model& model, Model& first, Model& second, const float* importance, const Entry* x, int count,
                  int batch, float lr, int t) {
    Model g = {};
    float loss = 0;
    int empty = batch;
    for (int from = 0, to; from < count; from = to, --empty) {
        for (to = from + 1; to < count && x[to].sample == x[from].sample;) ++to;
        loss += sample(model, g, importance, x + from, to - from, 1);
    }
    if (empty) loss += sample(model, g, importance, x, 0, empty);
    const float scale = 1.0f / ((float)batch * n), rate = lr / (1 - std::pow(0.9f, (float)t));
    const float correction = 1 / (1 - std::pow(0.999f, (float)t));
    float *p = model.w, *p1 = first.w, *p2 = second.w, *gradient = g.w;
    for (int i = 0; i < n * m + n; ++i) {
        const float value = gradient[i] * scale;
        p1[i] = 0.9f * p1[i] + 0.1f * value;
        p2[i] = 0.999f * p2[i] + 0.001f * value * value;
        p[i] -= rate * p1[i] / (std::sqrt(p2[i] * correction) + 1e-8f);
    }
    return loss * scale;
}

extern "C" {
int draw_batch(uint64_t* state, int batch, double p, Entry* out) { return draw({*state}, batch, p, out); }

float update(Model* model, Model* first, Model* second, const float* importance, const Entry* x, int count, int batch,
             float lr, int t) {
    return step(*model, *first, *second, importance, x, count, batch, lr, t);
}

void train(int models, Model* model, Model* first, Model* second, const float* importance, uint64_t* state, double p,
           int batch, float lr, int done, int steps, double* loss) {
    std::vector<Entry> x((size_t)batch * n);
#ifdef __x86_64__  // a program that is linked with -ffast-math counts numbers below the smallest normal one as 0
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040u);
#endif
    for (int i = 0; i < models; ++i)
        for (int t = done + 1; t <= done + steps; ++t) {
            const int count = draw({state[i]}, batch, p, x.data());
            loss[i] += step(model[i], first[i], second[i], importance + i * n, x.data(), count, batch, lr, t);
        }
#ifdef __x86_64__
    __builtin_ia32_ldmxcsr(before);
#endif
}
}
