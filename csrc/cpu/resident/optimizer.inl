// The optimiser's step (common/optimizer_step.h) on flat float arrays of the model in hand.
//
// Elementwise: no order of sums, no limits. Roof: 28 bytes of cache traffic and one square root and one division an
// element.
#pragma once
#include "common/optimizer_step.h"
#include "common/tensors.h"
#include "cpu/simd/lanes.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// One model's arrays as the caller holds them, [rows][columns] each; null where absent.
struct ModelArrays {
    struct Of {
        float* array[kRoles];
        float* operator[](Role role) const { return array[(int32_t)role]; }
    };
    Of parameter, state[kMostStates];
    const float* importance;   // [n_outputs]
    const uint8_t* connected;  // [m][n] 1 or 0; null: all connections exist
    const float* projection;   // [n_outputs][n], or null
    double l1;
};

template <class Params>
ModelArrays model_arrays(const Params& p, int64_t model) {
    ModelArrays arrays = {};
    for (int32_t role = 0; role < kRoles; ++role) {
        const TensorView& view = p.tensors[role];
        const int64_t at = view.shared ? 0 : model * elements(view.shape);
        arrays.parameter.array[role] = view.data ? view.data + at : nullptr;
        for (int s = 0; s < kMostStates; ++s)
            arrays.state[s].array[role] = view.state[s] ? view.state[s] + at : nullptr;
    }
    arrays.importance = p.importance + model * p.importance_stride;
    const int64_t projected = p.network.n_outputs * p.network.n_features;
    arrays.projection = p.projection.per_model ? p.projection.matrix + model * projected : p.projection.matrix;
    arrays.l1 = p.l1 ? p.l1[model] : 0.0;
    return arrays;
}

// A part of a batch has gradients of its own: where they do not fit the cache, it must have samples enough to be worth
// them.
inline int64_t least_samples_of(const Network& net) { return net.n_features * net.n_hidden > 65536 ? 128 : 32; }

// Which tensors stay as they are.
struct Frozen {
    bool of[kRoles];
    bool operator[](Role role) const { return of[(int32_t)role]; }
    bool any() const {
        bool found = false;
        for (const bool one : of) found = found || one;
        return found;
    }
};

// With a learning rate and a weight decay of this step.
inline UpdateConstants step_constants(const TrainParams& p, double lr, double weight_decay, int64_t step) {
    const int64_t t = step - p.first_step;
    if ((Optimizer)p.optimizer == Optimizer::kSGD) return update_constants(p, weight_decay, step, lr, lr, 1.0);
    return update_constants(p, weight_decay, step, lr, lr / p.correction1[t], 1.0 / p.correction2[t]);
}
inline UpdateConstants step_constants(const TrainParams& p, int64_t model, int64_t step) {
    return step_constants(p, p.lr[model] * p.lr_factor[step - p.first_step], p.weight_decay[model], step);
}

// p, g, s1, s2: [length], g scaled by `scale` first.
inline void optimizer_step(const UpdateConstants& constants, float* p, const float* g, float* s1, float* s2,
                           int64_t length, float scale) {
    const UpdateConstants c = constants;  // a copy, which the stores below cannot reach
    const F k = bcast(scale);
    if (c.kind == Optimizer::kSGD) {
        for (int64_t i = 0; i < length; i += kLanes) {
            const M m = mask_first((int)(length - i < kLanes ? length - i : kLanes));
            F b = c.momentum && !c.first ? load_first(s1 + i, m) : fzero();
            const F w = sgd_step(c, load_first(p + i, m), load_first(g + i, m) * k, b);
            if (c.momentum) store_first(s1 + i, b, m);
            store_first(p + i, w, m);
        }
        return;
    }
    for (int64_t i = 0; i < length; i += kLanes) {
        const M m = mask_first((int)(length - i < kLanes ? length - i : kLanes));
        F a = load_first(s1 + i, m), v = load_first(s2 + i, m);
        const F w = adam_step(c, load_first(p + i, m), load_first(g + i, m) * k, a, v);
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
