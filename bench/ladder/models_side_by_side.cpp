// Rung 5, models side by side: sixteen models stand in the lanes, each with a stream of its own.
//
// A step of one model is a chain in which everything waits for what is before it: a logarithm, a position, a product, a
// square root. Sixteen chains side by side fill the time in which one waits, sums need not be added up across lanes, and
// logarithms and the optimiser work on full vectors. Lanes come to their ends at different times: the batch is over when
// the last one is.
#include "problem.h"
#include "vectors.h"

namespace models_side_by_side {

constexpr int n = kFeatures, m = kHidden;

// ln x of normal numbers in (0, 1]: the exponent, and a series in (f − 1) / (f + 1) of the rest, f in [0.7, 1.41).
static inline F log(F x) {
    const I bits = (I)x - 0x3F3504F3, exponent = bits >> 23;
    const F f = (F)((bits & 0x7FFFFF) + 0x3F3504F3), r = (f - 1.0f) / (f + 1.0f), q = r * r;
    const F series = 2.0f + q * (2.0f / 3.0f + q * (2.0f / 5.0f + q * (2.0f / 7.0f + q * (2.0f / 9.0f))));
    return r * series + __builtin_convertvector(exponent, F) * 0.69314718f;
}

// Sixteen models, a lane each, for as long as they are trained.
struct Group {
    F parameter[kParameters], moment1[kParameters], moment2[kParameters];
    uint32_t seed[kLanes];
};

static void step(Group& group, int number, Watcher* watcher) {
    constexpr int32_t kEntries = n * kBatch;
    const float scale = 1.0f / (float)std::log1p(-kDensity);
    F w[m][n], b[n], w_sum[m][n], b_sum[n], x[n], times = F{};
    U seed;
    for (int l = 0; l < kLanes; ++l) seed[l] = step_seed(group.seed[l], number);
    for (int j = 0; j < n; ++j) {
        b[j] = group.parameter[m * n + j];
        b_sum[j] = x[j] = F{};
        for (int k = 0; k < m; ++k) w[k][j] = group.parameter[k * n + j], w_sum[k][j] = F{};
    }
    I at = I{}, sample = I{} - 1;
    U word = U{};
    for (bool more = true; more;) {
        const F gap = log(uniform(random_word(seed, word))) * scale;
        const F value = uniform(random_word(seed, word + 1u));
        word += 2u;
        // Gaps beyond the batch are cut, so that they stay integers; a lane that is past its end stays there.
        const I far = gap >= (float)kEntries;
        at += (__builtin_convertvector(keep(~far, gap), I) & ~far) | (far & kEntries);
        at = (at & (at < kEntries)) | ((at >= kEntries) & kEntries);
        const I on = at < kEntries;
        const F rounded = __builtin_convertvector(at, F) * (1.0f / n) + 0.5f / n;
        const I next = __builtin_convertvector(rounded, I), feature = at - next * n, opens = (next != sample);
        // The sample in hand is whole where another begins: all lanes go through the passes, those count.
        const I whole = opens & (sample >= 0);
        F h[m], back[m];
        for (int k = 0; k < m; ++k) h[k] = back[k] = F{};
        for (int j = 0; j < n; ++j)
            for (int k = 0; k < m; ++k) h[k] += w[k][j] * x[j];
        for (int j = 0; j < n; ++j) {
            F y = b[j];
            for (int k = 0; k < m; ++k) y += w[k][j] * h[k];
            const F d = keep((y > 0.0f) & whole, y - x[j]);
            b_sum[j] += d;
            for (int k = 0; k < m; ++k) back[k] += w[k][j] * d, w_sum[k][j] += h[k] * d;
        }
        for (int k = 0; k < m; ++k)
            for (int j = 0; j < n; ++j) w_sum[k][j] += back[k] * x[j];
        times += keep(whole, all(1.0f));
        for (int j = 0; j < n; ++j) x[j] = keep(~opens, x[j]) + keep(on & (feature == j), value);
        for (int l = 0; l < 1 && watcher; ++l)
            if (on[l]) watcher->entries.push_back({number, next[l], feature[l], value[l]});
        // Past the end a lane's sample is the one after the last, which is never whole.
        sample = next;
        at += on & 1;
        more = false;
        for (int l = 0; l < kLanes; ++l) more |= on[l] != 0;
    }
    const float correct1 = 1.0f / (1.0f - std::pow(kBeta1, (float)(number + 1)));
    const float correct2 = 1.0f / (1.0f - std::pow(kBeta2, (float)(number + 1)));
    for (int i = 0; i < kParameters; ++i) {
        const int k = i / n, j = i % n;
        const F total = k < m ? w_sum[k][j] : b_sum[j] + ((float)kBatch - times) * relu(b[j]);
        const F g = total * (2.0f / (kBatch * n));
        F &m1 = group.moment1[i], &m2 = group.moment2[i];
        m1 = kBeta1 * m1 + (1.0f - kBeta1) * g;
        m2 = kBeta2 * m2 + (1.0f - kBeta2) * g * g;
        group.parameter[i] -= kRate * m1 * correct1 / (sqrt(m2 * correct2) + kEpsilon);
    }
}

// A number of models that the lanes do not divide is filled up with copies of the last, which are thrown away.
void train(Model* models, int count, int first_step, int steps, Watcher* watcher) {
    for (int i = 0; i < count; i += kLanes) {
        Group group;
        for (int l = 0; l < kLanes; ++l) {
            const Model& model = models[i + l < count ? i + l : count - 1];
            group.seed[l] = model.seed;
            for (int at = 0; at < kParameters; ++at) {
                group.parameter[at][l] = model.parameter[at];
                group.moment1[at][l] = model.moment1[at], group.moment2[at][l] = model.moment2[at];
            }
        }
        for (int t = first_step; t < first_step + steps; ++t) step(group, t, i == 0 ? watcher : nullptr);
        for (int l = 0; l < kLanes && i + l < count; ++l)
            for (int at = 0; at < kParameters; ++at) {
                Model& model = models[i + l];
                model.parameter[at] = group.parameter[at][l];
                model.moment1[at] = group.moment1[at][l], model.moment2[at] = group.moment2[at][l];
            }
    }
}

}  // namespace models_side_by_side
