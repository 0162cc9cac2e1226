// Every loss, told once, over a lane type (common/lanes.h): what all loops of both backends compute.
//
//   L = 1/N · Σ_samples Σ_j I_j ρ(y_j − t_j)
//
// A loss is a struct with
//   slope(e, I)            I ρ′(e) / kGradient of an error e = y − t: what goes back; the rest of the gradient is one
//                          number, which goes with the mean (gradient_factor)
//   add(e, slope, I, sum)  sum + I ρ(e), given that slope
// and ρ(0) = ρ′(0) = 0: an output that is not there (a pad, a sample past the last) has an error of 0. The loops call
// them by AnyLoss, a branch that goes the same way for the whole loop.
// To add one: its number in toykern/network.h, its struct and its case here. docs/adding_an_option.md has the rest.
#pragma once
#include "common/lanes.h"
#include "toykern/network.h"

namespace toykern {

struct SquaredError {
    static constexpr double kGradient = 2.0;
    template <class V>
    TOYKERN_MATHS V slope(V error, V importance) {
        return error * importance;
    }
    template <class V>
    TOYKERN_MATHS V add(V error, V slope, V, V sum) {
        return fmadd(slope, error, sum);
    }
};

// The border refuses numbers that are not in the enum (bind/checks.h).
#define TOYKERN_LOSS(kind, CALL)            \
    switch (kind) {                         \
        default: return CALL(SquaredError); \
    }

// The others are no sums over outputs: the general loop alone has them (cpu/resident/general_outputs.inl).
TOYKERN_SHARED bool is_elementwise(int32_t loss) { return loss == (int32_t)Loss::kSquaredError; }

struct AnyLoss {
    int32_t kind;

    template <class V>
    TOYKERN_HD __attribute__((always_inline)) V slope(V error, V importance) const {
#define TOYKERN_CALL(L) L::slope(error, importance)
        TOYKERN_LOSS(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
    }
    template <class V>
    TOYKERN_HD __attribute__((always_inline)) V add(V error, V slope, V importance, V sum) const {
#define TOYKERN_CALL(L) L::add(error, slope, importance, sum)
        TOYKERN_LOSS(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
    }
    // Adds one output's part to `sum`; returns what goes back.
    template <class V>
    TOYKERN_HD __attribute__((always_inline)) V add_to(V& sum, V error, V importance) const {
        const V back = slope(error, importance);
        sum = add(error, back, importance, sum);
        return back;
    }
    // What goes back is to be multiplied by this beside the mean.
    TOYKERN_HD __attribute__((always_inline)) double gradient() const {
#define TOYKERN_CALL(L) L::kGradient
        TOYKERN_LOSS(kind, TOYKERN_CALL)
#undef TOYKERN_CALL
    }
};

// What a target keeps of the bits of a float input: all, or all but the sign.
TOYKERN_SHARED uint32_t target_bits(int32_t target) {
    return target == (int32_t)Target::kMagnitude ? 0x7FFFFFFFu : 0xFFFFFFFFu;
}

// The loss is the sum over samples and outputs times this. Cross-entropies have no mean over outputs, and that of a batch
// none over samples.
TOYKERN_SHARED double mean_factor(const Network& net, int64_t batch_size) {
    if (net.loss == (int32_t)Loss::kBatchCrossEntropy) return 1.0;
    const bool of_outputs = net.reduction == (int32_t)Reduction::kMean && is_elementwise(net.loss);
    return 1.0 / ((double)batch_size * (of_outputs ? (double)net.n_outputs : 1.0));
}
// The gradient is the sum of what goes back times this.
TOYKERN_SHARED float gradient_factor(const Network& net, int64_t batch_size) {
    const double gradient = is_elementwise(net.loss) ? AnyLoss{net.loss}.gradient() : 1.0;
    return (float)(gradient * mean_factor(net, batch_size));
}

}  // namespace toykern
