// One optimiser step of one parameter, with PyTorch's arithmetic (torch.optim.SGD, Adam, AdamW; decoupled decay of
// Loshchilov & Hutter 2019), over a lane type (common/lanes.h). Scalars that depend on the step are made in double and
// rounded once. LAMB (You et al. 2020) and SGLD (Welling & Teh 2011; localised as in Lau et al. 2023) are the general
// update's (cpu/resident/general_update.inl).
//
//   AdamW  p *= 1 - lr·wd;  m += (g - m)(1 - β1);  v = β2 v + (1 - β2) g²;  p -= lr/bc1 · m / (√v/√bc2 + eps)
//   Adam   the same with g += wd·p instead of the decay
//   SGD    g += wd·p;  b = μ b + (1 - dampening) g (b = g at step 0);  p -= lr·(nesterov ? g + μ b : b)
//   LAMB   m and v as Adam's;  u = m / (√v + eps) + wd·p;  p -= lr · min(‖p‖, clamp) / ‖u‖ · u, norms of the tensor
//   SGLD   p -= lr/2 · (nβ g + wd·p + γ (p - p0));  p += √lr · N(0, 1)
//
// Elementwise but for LAMB's norms: no order of sums, no limits.
#pragma once
#include "common/stream/stream.h"
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

// Whether an update is one of the first three, elementwise, with one learning rate and weight decay a model and nothing
// before or after it: what the loops of today and the devices' know.
TOYKERN_SHARED bool plain_update(const TrainParams& p) {
    if (p.optimizer > (int32_t)Optimizer::kAdamW || p.clip_norm) return false;
    for (int32_t role = 0; role < kRoles; ++role) {
        const TensorView& view = p.tensors[role];
        if (view.lr_scale || view.weight_decay_scale || view.shrink || view.unit_norm) return false;
    }
    return true;
}

// `lr` is the step's learning rate, `corrected` the same over bc1, `inverse_bc2` is 1 / √bc2 (1 each where there is no
// correction), `wd` the weight decay.
TOYKERN_SHARED UpdateConstants update_constants(const TrainParams& p, double wd, int64_t step, double lr,
                                                double corrected, double inverse_bc2) {
    UpdateConstants c = {};
    c.kind = (Optimizer)p.optimizer;
    c.first = step == 0;
    c.lr = (float)corrected;
    c.inverse_bc2 = (float)inverse_bc2;
    if (c.kind == Optimizer::kSGD) {
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
    c.eps = (float)p.eps;
    return c;
}
// The same where a step's numbers come as a row of Launch::step_scale.
TOYKERN_SHARED UpdateConstants update_constants(const TrainParams& p, int64_t model, int64_t step,
                                                const double* scale) {
    const double lr = p.lr[model];
    return update_constants(p, p.weight_decay[model], step, lr * scale[0], lr * scale[1], scale[2]);
}

// C is UpdateConstants, or has the same members, those of one model's own as lanes of several models.
// The parameter after the step; g is its gradient, s1 its momentum.
template <class C, class V>
TOYKERN_MATHS V sgd_step(const C& c, V w, V g, V& s1) {
    V d = fmadd(Lanes<V>::all(c.l2), w, g);
    if (c.momentum) {
        s1 = c.first ? d : fmadd(Lanes<V>::all(c.mu), s1, Lanes<V>::all(c.undamped) * d);
        d = c.nesterov ? fmadd(Lanes<V>::all(c.mu), s1, d) : s1;
    }
    return w - Lanes<V>::all(c.lr) * d;
}

// Adam and AdamW; s1 and s2 are the moments.
template <class C, class V>
TOYKERN_MATHS V adam_step(const C& c, V w, V g, V& s1, V& s2) {
    w = w * Lanes<V>::all(c.decay);
    const V d = fmadd(Lanes<V>::all(c.l2), w, g);
    s1 = fmadd(d - s1, Lanes<V>::all(c.mix1), s1);
    s2 = fmadd(Lanes<V>::all(c.mix2) * d, d, Lanes<V>::all(c.beta2) * s2);
    const V step = s1 / fmadd(fsqrt(s2), Lanes<V>::all(c.inverse_bc2), Lanes<V>::all(c.eps));
    // 0/0 (eps = 0, a gradient that was never anything but zero) is no update.
    return w - Lanes<V>::all(c.lr) * keep(nonzero(s1), step);
}

// LAMB's step before its length is known, u.
struct LambConstants {
    float mix1, beta2, mix2, inverse_bc1, inverse_bc2, eps, decay;
};
template <class V>
TOYKERN_MATHS V lamb_direction(const LambConstants& c, V w, V g, V& s1, V& s2) {
    s1 = fmadd(g - s1, Lanes<V>::all(c.mix1), s1);
    s2 = fmadd(Lanes<V>::all(c.mix2) * g, g, Lanes<V>::all(c.beta2) * s2);
    const V root = fmadd(fsqrt(s2), Lanes<V>::all(c.inverse_bc2), Lanes<V>::all(c.eps));
    const V step = s1 * Lanes<V>::all(c.inverse_bc1) / root;
    return fmadd(Lanes<V>::all(c.decay), w, keep(nonzero(s1), step));  // 0/0 as in adam_step
}

// SGLD; `x0` is where the weight began, `normal` a draw.
struct SgldConstants {
    float half_lr, nbeta, decay, localization, noise;  // half_lr = lr / 2, noise = √lr
};
template <class V>
TOYKERN_MATHS V sgld_step(const SgldConstants& c, V w, V g, V x0, V normal) {
    V d = fmadd(Lanes<V>::all(c.decay), w, Lanes<V>::all(c.nbeta) * g);
    d = fmadd(Lanes<V>::all(c.localization), w - x0, d);
    return fmadd(Lanes<V>::all(c.noise), normal, w - Lanes<V>::all(c.half_lr) * d);
}

template <class C, class V>
TOYKERN_MATHS V updated(const C& c, V w, V g, V& s1, V& s2) {
    return c.kind == Optimizer::kSGD ? sgd_step(c, w, g, s1) : adam_step(c, w, g, s1, s2);
}

// What the optimiser sees of the gradient of a sparse model's weight, which stands at `at` in the caller's arrays: 0
// where there is no connection, so that weight and moments stay 0 there. The last step's own gradient is written down
// for whoever grows connections.
TOYKERN_SHARED float connected_gradient(const TrainParams& p, int64_t step, int64_t at, float g) {
    if (p.gradient && step + 1 == p.first_step + p.steps) p.gradient[at] = g;
    return p.connected[at] ? g : 0.0f;
}

}  // namespace toykern
