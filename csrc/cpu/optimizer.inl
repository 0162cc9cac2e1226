// One optimiser step on flat float arrays, with PyTorch's arithmetic (torch.optim.SGD, Adam, AdamW; decoupled decay of
// Loshchilov & Hutter 2019). Scalars that depend on the step are made in double and rounded once.
//
//   AdamW  p *= 1 - lr·wd;  m += (g - m)(1 - β1);  v = β2 v + (1 - β2) g²;  p -= lr/bc1 · m / (√v/√bc2 + eps)
//   Adam   the same with g += wd·p instead of the decay
//   SGD    g += wd·p;  b = μ b + (1 - dampening) g (b = g at step 0);  p -= lr·(nesterov ? g + μ b : b)
//
// Elementwise: no order of sums, no limits. Roof: 28 bytes of cache traffic and one square root and one division an element.
#pragma once
#include "cpu/simd.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// One model's arrays as the caller holds them: encoder [m][n], decoder [n][m], bias [n]; null where absent.
struct ModelArrays {
    float* parameter[3];
    float* state[2][3];
    const float* importance;   // [n]
    const uint8_t* connected;  // [m][n] 1 or 0; null: all connections exist
};

struct StepConstants {
    Optimizer kind;
    bool nesterov, first, momentum;
    float lr, decay, l2;                        // decay = 1 - lr·wd (AdamW), l2 = wd (SGD, Adam)
    float mix1, beta2, mix2, inverse_bc2, eps;  // mix = 1 - beta; lr is divided by bc1
    float mu, undamped;
};

inline StepConstants step_constants(const TrainParams& p, int64_t model, int64_t step) {
    StepConstants c = {};
    c.kind = (Optimizer)p.optimizer;
    const double lr = p.lr[model] * p.lr_factor[step - p.first_step], wd = p.weight_decay[model];
    c.first = step == 0;
    if (c.kind == Optimizer::kSGD) {
        c.lr = (float)lr;
        c.l2 = (float)wd;
        c.mu = (float)p.beta1;
        c.undamped = (float)(1.0 - p.beta2);
        c.nesterov = p.nesterov;
        c.momentum = p.beta1 != 0.0;
        return c;
    }
    c.decay = c.kind == Optimizer::kAdamW ? (float)(1.0 - lr * wd) : 1.0f;
    c.l2 = c.kind == Optimizer::kAdam ? (float)wd : 0.0f;
    c.mix1 = (float)(1.0 - p.beta1);
    c.beta2 = (float)p.beta2;
    c.mix2 = (float)(1.0 - p.beta2);
    c.lr = (float)(lr / p.correction1[step - p.first_step]);
    c.inverse_bc2 = (float)(1.0 / p.correction2[step - p.first_step]);
    c.eps = (float)p.eps;
    return c;
}

// p, g, s1, s2: [length], g scaled by `scale` first.
inline void optimizer_step(const StepConstants& c, float* p, const float* g, float* s1, float* s2, int64_t length,
                           float scale) {
    const F k = bcast(scale), lr = bcast(c.lr), l2 = bcast(c.l2);
    if (c.kind == Optimizer::kSGD) {
        const F mu = bcast(c.mu), undamped = bcast(c.undamped);
        for (int64_t i = 0; i < length; i += kLanes) {
            const M m = mask_first((int)(length - i < kLanes ? length - i : kLanes));
            F w = load_first(p + i, m), d = load_first(g + i, m) * k;
            d = fmadd(l2, w, d);
            if (c.momentum) {
                const F b = c.first ? d : fmadd(mu, load_first(s1 + i, m), undamped * d);
                store_first(s1 + i, b, m);
                d = c.nesterov ? fmadd(mu, b, d) : b;
            }
            store_first(p + i, w - lr * d, m);
        }
        return;
    }
    const F decay = bcast(c.decay), mix1 = bcast(c.mix1), beta2 = bcast(c.beta2), mix2 = bcast(c.mix2);
    const F inverse = bcast(c.inverse_bc2), eps = bcast(c.eps);
    for (int64_t i = 0; i < length; i += kLanes) {
        const M m = mask_first((int)(length - i < kLanes ? length - i : kLanes));
        F w = load_first(p + i, m) * decay;
        F d = load_first(g + i, m) * k;
        F a = load_first(s1 + i, m), v = load_first(s2 + i, m);
        d = fmadd(l2, w, d);
        a = fmadd(d - a, mix1, a);
        v = fmadd(mix2 * d, d, beta2 * v);
        // 0/0 (eps = 0, a gradient that was never anything but zero) is no update.
        w = w - lr * keep(nonzero(a), a / fmadd(fsqrt(v), inverse, eps));
        store_first(s1 + i, a, m);
        store_first(s2 + i, v, m);
        store_first(p + i, w, m);
    }
}

// g[i] = 0 where connected[i] is 0: an element whose value and state are 0 then stays 0 under every optimiser above.
inline void mask_gradient(float* g, const float* connected, int64_t length) {
    for (int64_t i = 0; i < length; i += kLanes) {
        const M m = mask_first((int)(length - i < kLanes ? length - i : kLanes));
        store_first(g + i, keep(nonzero(load_first(connected + i, m)), load_first(g + i, m)), m);
    }
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
