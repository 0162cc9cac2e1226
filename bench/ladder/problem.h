// The problem that every rung of the ladder solves, and the few things that no rung improves.
//
//   h = W x, y = ReLU(Wᵀ h + b), L = Σ_s Σ_j (y_j − x_j)² / (B n), one step of Adam, on a fresh batch each time:
//   B = 1,024 samples of n = 5 features, each active with probability p = 0.01 and then uniform on (0, 1]; m = 2.
//
// A rung is a file with one function, train(): it draws its own batches and goes through `steps` steps of `models`
// models. Whoever wants to see what a rung computes passes a Watcher, which is told every active entry that is drawn.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

constexpr int kFeatures = 5, kHidden = 2, kBatch = 1024;
constexpr double kDensity = 0.01;
constexpr int kParameters = kHidden * kFeatures + kFeatures;  // W row by row, then b
constexpr float kRate = 1e-3f, kBeta1 = 0.9f, kBeta2 = 0.999f, kEpsilon = 1e-8f;

struct Model {
    float parameter[kParameters], moment1[kParameters], moment2[kParameters];
    uint32_t seed;
};

// Active entries of one model's batches, in the order in which they are drawn.
struct Watcher {
    struct Entry {
        int step, sample, feature;
        float value;
    };
    std::vector<Entry> entries;
};

// A random word: a hash of a seed and a counter, so that words can be drawn in any order and side by side. Two rounds
// of shift and multiply (the constants of Ettinger's `lowbias32`).
template <class U>
inline U random_word(U seed, U counter) {
    U x = counter * 0x9E3779B9u + seed;
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    x *= 0x735A2D97u;
    return x ^ (x >> 15);
}
// What a step of a model starts its counters with.
inline uint32_t step_seed(uint32_t seed, int step) { return random_word(seed, (uint32_t)step + 0x80000000u); }

// Uniform on (0, 1].
inline float uniform(uint32_t word) { return (float)((word >> 8) + 1u) * 0x1p-24f; }

// One step of Adam from the sum over the batch of half the gradient.
inline void adam(Model& model, const float* sum, int step) {
    const float correct1 = 1.0f / (1.0f - std::pow(kBeta1, (float)(step + 1)));
    const float correct2 = 1.0f / (1.0f - std::pow(kBeta2, (float)(step + 1)));
    for (int i = 0; i < kParameters; ++i) {
        const float g = sum[i] * (2.0f / (kBatch * kFeatures));
        model.moment1[i] = kBeta1 * model.moment1[i] + (1.0f - kBeta1) * g;
        model.moment2[i] = kBeta2 * model.moment2[i] + (1.0f - kBeta2) * g * g;
        model.parameter[i] -= kRate * model.moment1[i] * correct1 / (std::sqrt(model.moment2[i] * correct2) + kEpsilon);
    }
}

// What main.cpp calls.
using Train = void (*)(Model* models, int count, int first_step, int steps, Watcher* watcher);

namespace naive {
void train(Model*, int, int, int, Watcher*);
}
namespace samples_in_lanes {
void train(Model*, int, int, int, Watcher*);
}
namespace zeros_not_drawn {
void train(Model*, int, int, int, Watcher*);
}
namespace empty_in_one_term {
void train(Model*, int, int, int, Watcher*);
}
namespace sums_in_registers {
void train(Model*, int, int, int, Watcher*);
}
namespace models_side_by_side {
void train(Model*, int, int, int, Watcher*);
}
