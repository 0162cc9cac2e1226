// One optimiser step of one parameter, with PyTorch's arithmetic (torch.optim.SGD, Adam, AdamW; decoupled decay of Loshchilov & Hutter
// 2019). The CPU kernels have the same on vectors (cpu/optimizer.inl, which writes the equations out).
#pragma once
#include "common/stream.h"
#include "toykern/params.h"

namespace toykern {

// What of an update does not depend on the parameter.
struct UpdateConstants {
    Optimizer kind;
    bool nesterov, first, momentum;
    float lr, decay, l2;                        // decay = 1 - lr·wd (AdamW), l2 = wd (SGD, Adam)
    float mix1, beta2, mix2, inverse_bc2, eps;  // mix = 1 - beta; lr is divided by bc1
    float mu, undamped;
};

// `scale` is the step's row of Launch::step_scale.
TOYKERN_SHARED UpdateConstants update_constants(const TrainParams& p, int64_t model, int64_t step,
                                                const double* scale) {
    UpdateConstants c = {};
    c.kind = (Optimizer)p.optimizer;
    c.first = step == 0;
    const double wd = p.weight_decay[model];
    c.lr = (float)(p.lr[model] * scale[1]);
    c.inverse_bc2 = (float)scale[2];
    if (c.kind == Optimizer::kSGD) {
        c.l2 = (float)wd;
        c.mu = (float)p.beta1;
        c.undamped = (float)(1.0 - p.beta2);
        c.nesterov = p.nesterov;
        c.momentum = p.beta1 != 0.0;
        return c;
    }
    c.decay = c.kind == Optimizer::kAdamW ? (float)(1.0 - p.lr[model] * scale[0] * wd) : 1.0f;
    c.l2 = c.kind == Optimizer::kAdam ? (float)wd : 0.0f;
    c.mix1 = (float)(1.0 - p.beta1);
    c.beta2 = (float)p.beta2;
    c.mix2 = (float)(1.0 - p.beta2);
    c.eps = (float)p.eps;
    return c;
}

// The parameter after the step; g is its gradient, s1 and s2 its moments (s1 alone: the momentum).
TOYKERN_SHARED float updated(const UpdateConstants& c, float w, float g, float& s1, float& s2) {
#if defined(__CUDA_ARCH__)
    const auto fma1 = [](float a, float b, float d) { return fmaf(a, b, d); };
    const auto root = [](float a) { return sqrtf(a); };
#else
    const auto fma1 = [](float a, float b, float d) { return __builtin_fmaf(a, b, d); };
    const auto root = [](float a) { return __builtin_sqrtf(a); };
#endif
    if (c.kind == Optimizer::kSGD) {
        float d = fma1(c.l2, w, g);
        if (c.momentum) {
            s1 = c.first ? d : fma1(c.mu, s1, c.undamped * d);
            d = c.nesterov ? fma1(c.mu, s1, d) : s1;
        }
        return w - c.lr * d;
    }
    w = w * c.decay;
    const float d = fma1(c.l2, w, g);
    s1 = fma1(d - s1, c.mix1, s1);
    s2 = fma1(c.mix2 * d, d, c.beta2 * s2);
    // 0/0 (eps = 0, a gradient that was never anything but zero) is no update.
    return s1 == 0.0f ? w : w - c.lr * (s1 / fma1(root(s2), c.inverse_bc2, c.eps));
}

// What the optimiser sees of the gradient of a sparse model's weight, which stands at `at` in the caller's arrays: 0 where there is no
// connection, so that weight and moments stay 0 there. The last step's own gradient is written down for whoever grows connections.
TOYKERN_SHARED float connected_gradient(const TrainParams& p, int64_t step, int64_t at, float g) {
    if (p.gradient && step + 1 == p.first_step + p.steps) p.gradient[at] = g;
    return p.connected[at] ? g : 0.0f;
}

}  // namespace toykern
