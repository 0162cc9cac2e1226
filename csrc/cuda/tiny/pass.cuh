// Forward and backward of one sample of a tied network whose shape is compiled in, all in one lane's registers.
//
//   h = f(W x), y = g(Wᵀ h + b), loss = Σ_j I_j ρ(y_j − t_j), the gradients of W and b but for a factor (common/loss.h),
//   which is the update's
//
// Layout     w [N][M]: all hidden units of a feature together
// Limits     activations that are a floor (common/activation.h): none and ReLU; networks with others go to
//            train_small.cuh
// Roof       5 N M fused multiply-adds and about 8 N + 2 M other operations a sample
#pragma once
#include "common/activation.h"
#include "common/loss.h"
#include "cuda/warp.h"
#include "toykern/params.h"

namespace toykern {
namespace TOYKERN_DEVICE_SPACE {

template <int N, int M>
struct TinyWeights {
    float w[N][M], b[N], importance[N];
};

template <int N, int M>
struct TinySums {
    float w[N][M], b[N], loss;
};

// The network's options as numbers that need no branch.
struct PassOptions {
    FloorActivation<float> hidden, output;
    AnyLoss loss;
    uint32_t target_bits;  // what a target keeps of x: all, or all but the sign
};

// On the host: a kernel has them in its parameters.
inline PassOptions pass_options(const Network& net) {
    return {FloorActivation<float>::of(net.hidden_activation, net.hidden_option),
            FloorActivation<float>::of(net.output_activation, net.output_option),
            {net.loss},
            toykern::target_bits(net.target)};
}

// Adds one sample to the sums, if it is `valid`. x is what the model sees, clean what the target is made from.
template <bool kGradient, int N, int M>
TOYKERN_DEVICE void tiny_pass(const TinyWeights<N, M>& p, const PassOptions& options, const float (&x)[N],
                              const float (&clean)[N], bool valid, TinySums<N, M>& sums) {
    float h[M], dh[M], d[N], slope;  // a floor's slope is in its value
    TOYKERN_UNROLL
    for (int k = 0; k < M; ++k) h[k] = dh[k] = 0.0f;
    TOYKERN_UNROLL
    for (int j = 0; j < N; ++j) {
        TOYKERN_UNROLL
        for (int k = 0; k < M; ++k) h[k] = fused(p.w[j][k], x[j], h[k]);
    }
    TOYKERN_UNROLL
    for (int k = 0; k < M; ++k) h[k] = options.hidden.value(h[k], slope);
    TOYKERN_UNROLL
    for (int j = 0; j < N; ++j) {
        float y = p.b[j];
        TOYKERN_UNROLL
        for (int k = 0; k < M; ++k) y = fused(p.w[j][k], h[k], y);
        const float target = keep_bits(clean[j], options.target_bits);
        const float r = valid ? options.output.value(y, slope) - target : 0.0f;
        d[j] = options.output.back(y, slope, options.loss.add_to(sums.loss, r, p.importance[j]));
        if constexpr (kGradient) {
            sums.b[j] += d[j];
            TOYKERN_UNROLL
            for (int k = 0; k < M; ++k) dh[k] = fused(p.w[j][k], d[j], dh[k]);
        }
    }
    if constexpr (kGradient) {
        TOYKERN_UNROLL
        for (int k = 0; k < M; ++k) dh[k] = options.hidden.back(h[k], slope, dh[k]);
        TOYKERN_UNROLL
        for (int j = 0; j < N; ++j) {
            TOYKERN_UNROLL
            for (int k = 0; k < M; ++k) sums.w[j][k] = fused(x[j], dh[k], fused(d[j], h[k], sums.w[j][k]));
        }
    }
}

// Adds `count` samples without any active feature: their hidden code is zero, so W has no share in the gradient.
template <bool kGradient, int N, int M>
TOYKERN_DEVICE void tiny_empty(const TinyWeights<N, M>& p, const PassOptions& options, float count,
                               TinySums<N, M>& sums) {
    TOYKERN_UNROLL
    for (int j = 0; j < N; ++j) {
        float slope;
        const float r = options.output.value(p.b[j], slope), back = count * options.loss.slope(r, p.importance[j]);
        sums.loss = options.loss.add(r, back, count * p.importance[j], sums.loss);
        if (kGradient) sums.b[j] += options.output.back(p.b[j], slope, back);
    }
}

}  // namespace TOYKERN_DEVICE_SPACE
}  // namespace toykern
