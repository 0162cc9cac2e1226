// Checks the rungs against a reference, and times them in turn. Prints one JSON object for `python -m bench.ladder`.
//
//   ladder check STEPS                  of each rung: the largest distance of a parameter from a float64 replay of the entries
//                                       that it drew, what it drew, and whether a model has the same bits among others
//   ladder time MODELS STEPS ROUNDS     of each rung: nanoseconds of processor time of a model-step, for each round
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "problem.h"

struct Rung {
    const char* name;
    Train train;
};
static const Rung kRungs[] = {
    {"naive", naive::train},
    {"samples_in_lanes", samples_in_lanes::train},
    {"zeros_not_drawn", zeros_not_drawn::train},
    {"empty_in_one_term", empty_in_one_term::train},
    {"sums_in_registers", sums_in_registers::train},
    {"models_side_by_side", models_side_by_side::train},
};
static const int kCount = sizeof(kRungs) / sizeof(kRungs[0]);

// Weights spread over (−0.5, 0.5), biases 0, a seed of its own for each model.
static std::vector<Model> new_models(int count) {
    std::vector<Model> models(count);
    for (int i = 0; i < count; ++i) {
        Model& model = models[i];
        std::memset(&model, 0, sizeof(model));
        model.seed = random_word((uint32_t)i, 7u);
        for (int k = 0; k < kHidden * kFeatures; ++k)
            model.parameter[k] = uniform(random_word(model.seed, 0x40000000u + (uint32_t)k)) - 0.5f;
    }
    return models;
}

// The same steps in float64, dense, from the entries that a rung drew.
struct Reference {
    double p[kParameters] = {}, m1[kParameters] = {}, m2[kParameters] = {};

    explicit Reference(const Model& model) {
        for (int i = 0; i < kParameters; ++i) p[i] = model.parameter[i];
    }
    void step(int number, const std::vector<double>& x) {
        const double *w = p, *b = p + kHidden * kFeatures;
        double g[kParameters] = {};
        for (int s = 0; s < kBatch; ++s) {
            const double* in = &x[(size_t)s * kFeatures];
            double h[kHidden] = {}, back[kHidden] = {};
            for (int k = 0; k < kHidden; ++k)
                for (int j = 0; j < kFeatures; ++j) h[k] += w[k * kFeatures + j] * in[j];
            for (int j = 0; j < kFeatures; ++j) {
                double y = b[j];
                for (int k = 0; k < kHidden; ++k) y += w[k * kFeatures + j] * h[k];
                const double d = y > 0.0 ? 2.0 * (y - in[j]) / (kBatch * kFeatures) : 0.0;
                g[kHidden * kFeatures + j] += d;
                for (int k = 0; k < kHidden; ++k) {
                    g[k * kFeatures + j] += h[k] * d;
                    back[k] += w[k * kFeatures + j] * d;
                }
            }
            for (int k = 0; k < kHidden; ++k)
                for (int j = 0; j < kFeatures; ++j) g[k * kFeatures + j] += back[k] * in[j];
        }
        for (int i = 0; i < kParameters; ++i) {
            m1[i] = kBeta1 * m1[i] + (1.0 - kBeta1) * g[i];
            m2[i] = kBeta2 * m2[i] + (1.0 - kBeta2) * g[i] * g[i];
            p[i] -= kRate * (m1[i] / (1.0 - std::pow((double)kBeta1, number + 1))) /
                    (std::sqrt(m2[i] / (1.0 - std::pow((double)kBeta2, number + 1))) + kEpsilon);
        }
    }
};

static void check(const Rung& rung, int steps, bool last) {
    std::vector<Model> models = new_models(17), alone(1, models[16]);
    Reference reference(models[0]);
    Watcher watcher;
    rung.train(models.data(), 17, 0, steps, &watcher);
    rung.train(alone.data(), 1, 0, steps, nullptr);
    size_t at = 0;
    long drawn[kFeatures] = {}, twice = 0;
    double values = 0.0, squares = 0.0;
    for (int t = 0; t < steps; ++t) {
        std::vector<double> x((size_t)kBatch * kFeatures, 0.0);
        for (; at < watcher.entries.size() && watcher.entries[at].step == t; ++at) {
            const Watcher::Entry& e = watcher.entries[at];
            double& to = x[(size_t)e.sample * kFeatures + e.feature];
            twice += to != 0.0;
            to = e.value;
            ++drawn[e.feature];
            values += e.value, squares += (double)e.value * e.value;
        }
        reference.step(t, x);
    }
    double error = 0.0;
    for (int i = 0; i < kParameters; ++i) error = std::fmax(error, std::fabs(models[0].parameter[i] - reference.p[i]));
    std::printf("  \"%s\": {\"error\": %.3e, \"unread\": %zu, \"twice\": %ld, \"drawn\": [", rung.name, error,
                watcher.entries.size() - at, twice);
    for (int j = 0; j < kFeatures; ++j) std::printf("%ld%s", drawn[j], j + 1 < kFeatures ? ", " : "], ");
    std::printf("\"values\": %.6f, \"squares\": %.6f, \"same_among_others\": %s}%s\n", values, squares,
                std::memcmp(&models[16], &alone[0], sizeof(Model)) ? "false" : "true", last ? "" : ",");
}

static double processor_seconds() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int count, char** arguments) {
    if (count == 3 && !std::strcmp(arguments[1], "check")) {
        std::printf("{\n");
        for (int i = 0; i < kCount; ++i) check(kRungs[i], std::atoi(arguments[2]), i + 1 == kCount);
        std::printf("}\n");
        return 0;
    }
    if (count != 5 || std::strcmp(arguments[1], "time")) {
        std::fprintf(stderr, "ladder check STEPS | ladder time MODELS STEPS ROUNDS\n");
        return 2;
    }
    const int models = std::atoi(arguments[2]), steps = std::atoi(arguments[3]), rounds = std::atoi(arguments[4]);
    std::vector<std::vector<double>> taken(kCount);
    for (int round = 0; round <= rounds; ++round)  // the first warms up
        for (int i = 0; i < kCount; ++i) {
            std::vector<Model> all = new_models(models);
            const double began = processor_seconds();
            kRungs[i].train(all.data(), models, 0, steps, nullptr);
            if (round) taken[i].push_back((processor_seconds() - began) / ((double)models * steps) * 1e9);
        }
    std::printf("{\n");
    for (int i = 0; i < kCount; ++i) {
        std::printf("  \"%s\": [", kRungs[i].name);
        for (int r = 0; r < rounds; ++r) std::printf("%.2f%s", taken[i][r], r + 1 < rounds ? ", " : "]");
        std::printf("%s\n", i + 1 < kCount ? "," : "");
    }
    std::printf("}\n");
    return 0;
}
