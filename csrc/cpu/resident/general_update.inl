// The update of the general loop: every optimiser, with all that may stand before and after an elementwise step.
//
//   gradients   what is parallel to a vector of unit norm is removed; the model's norm is clipped
//   direction   SGD, Adam, AdamW and SGLD move the weights at once; LAMB writes its direction over the gradient
//   norms       LAMB's, of each tensor's weights and direction; no other optimiser has this phase
//   apply       LAMB moves the weights
//   after       biases shrink; vectors of unit norm are scaled
//
// Layout     each tensor flat, as the caller holds it
// Owner      the team: blocks of kStepBlock elements in turn, counted through all tensors; rows or groups of columns of a
//            tensor with unit norm
// Order      sums of squares by block, blocks added in their order by every rank: the team's size changes no bit
// Limits     none
// Roof       that of optimizer.inl; LAMB reads and writes 12 bytes an element more
#pragma once
#include "cpu/resident/optimizer.inl"
#include "cpu/stream/words.inl"
#include "toykern/api.h"

namespace toykern {
namespace TOYKERN_LEVEL {

constexpr int64_t kStepBlock = 4096;  // a multiple of the 64 words that are drawn at once

// One tensor of the model in hand as flat arrays in the caller's layout, [rows][columns] each.
struct FlatTensor {
    Role role;
    float *value, *gradient, *state[kMostStates];
    int64_t rows, columns;
    bool frozen;
};

inline int64_t step_blocks(int64_t elements) { return (elements + kStepBlock - 1) / kStepBlock; }

// The doubles that general_step needs: of each block one sum for the clipping and two for LAMB, in places of their own.
inline int64_t step_room(const Network& net) {
    int64_t blocks = 0;
    for (int32_t role = 0; role <= (int32_t)Role::kHiddenBias; ++role)  // those that are trained
        if (has_role(net, (Role)role)) blocks += step_blocks(elements(tensor_shape(net, (Role)role)));
    return 3 * blocks;
}

// What a step of one tensor is made with.
struct TensorStep {
    UpdateConstants plain;
    LambConstants lamb;
    SgldConstants sgld;
    double lr;
    float shrink;  // 1: it does not
};

inline TensorStep tensor_step(const TrainParams& p, int64_t model, int64_t step, Role role) {
    const int64_t t = step - p.first_step;
    const TensorView& view = tensor_of(p, role);
    const double wd = p.weight_decay[model] * (view.weight_decay_scale ? view.weight_decay_scale[model] : 1.0);
    TensorStep s = {};
    s.lr = p.lr[model] * p.lr_factor[t];
    if (view.lr_scale) s.lr *= view.lr_scale[model];
    s.shrink = view.shrink && step < p.shrink_until ? (float)(1.0 - view.shrink[model] * s.lr) : 1.0f;
    switch ((Optimizer)p.optimizer) {
        case Optimizer::kLAMB:
            s.lamb = {(float)(1.0 - p.beta1), (float)p.beta2, (float)(1.0 - p.beta2), 1.0f, 1.0f,
                      (float)p.eps,           (float)wd};
            if (p.debias_moments) {
                s.lamb.inverse_bc1 = (float)(1.0 / p.correction1[t]);
                s.lamb.inverse_bc2 = (float)(1.0 / p.correction2[t]);
            }
            if (p.debias_step) s.lr *= p.correction2[t] / p.correction1[t];
            break;
        case Optimizer::kSGLD:
            s.sgld = {(float)(0.5 * s.lr), (float)p.nbeta[model], (float)wd,
                      p.localization ? (float)p.localization[model] : 0.0f, (float)__builtin_sqrt(s.lr)};
            break;
        default: s.plain = step_constants(p, s.lr, wd, step);
    }
    return s;
}

inline M first_of(int64_t left) { return mask_first((int)(left < 0 ? 0 : left < kLanes ? left : kLanes)); }

inline double sum_of_squares(const float* a, int64_t length) {
    F sum[4] = {fzero(), fzero(), fzero(), fzero()};
    for (int64_t i = 0; i < length; i += 4 * kLanes)
        for (int v = 0; v < 4; ++v) {
            const F x = load_first(a + i + v * kLanes, first_of(length - i - v * kLanes));
            sum[v] = fmadd(x, x, sum[v]);
        }
    return (double)fsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

inline double sum_of(const double* sums, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) sum += sums[i];
    return sum;
}

// Calls body(tensor, block, start, length) for this rank's blocks of the tensors that are trained.
template <class Body>
TOYKERN_INLINE void over_blocks(FlatTensor* tensors, int count, const Team& team, const Body& body) {
    int64_t block = 0;
    for (int i = 0; i < count; ++i) {
        const int64_t length = tensors[i].rows * tensors[i].columns;
        for (int64_t start = 0; start < length && !tensors[i].frozen; start += kStepBlock, ++block)
            if (block % team.size == team.rank)
                body(i, block, start, length - start < kStepBlock ? length - start : kStepBlock);
    }
}

// By what the gradient is multiplied: `scale`, and where its norm exceeds the model's clip_norm the quotient of both, as
// torch.nn.utils.clip_grad_norm_ has it.
inline float clipped_scale(const TrainParams& p, int64_t model, float scale, FlatTensor* tensors, int count,
                           const Team& team, double* sums) {
    if (!p.clip_norm) return scale;
    int64_t blocks = 0;
    for (int i = 0; i < count; ++i)
        if (!tensors[i].frozen) blocks += step_blocks(tensors[i].rows * tensors[i].columns);
    over_blocks(tensors, count, team, [&](int i, int64_t block, int64_t start, int64_t length) {
        sums[block] = sum_of_squares(tensors[i].gradient + start, length);
    });
    team.meet();
    const double norm = (double)scale * __builtin_sqrt(sum_of(sums, blocks));
    const double factor = p.clip_norm[model] / (norm + 1e-6);
    return factor >= 1.0 ? scale : (float)((double)scale * factor);  // a NaN shows
}

// Elements start … start + length - 1 of a tensor; start is a multiple of 64. Words by role and element
// (docs/data_stream.md §12).
inline void sgld_block(const SgldConstants& constants, const StreamKey& key, const FlatTensor& tensor, int64_t start,
                       int64_t length, float scale) {
    const SgldConstants c = constants;
    const F k = bcast(scale);
    uint32_t words[64];
    for (int64_t from = start; from < start + length; from += 64) {
        const uint64_t c0 = 16u * ((uint64_t)from / 64);
        philox16<1>({(uint32_t)c0}, (uint32_t)(c0 >> 32), key.step,
                    {counter_tag(Kind::kLangevin, key.purpose, (uint32_t)tensor.role)}, key.keys, {words});
        const int64_t left = start + length - from;
        for (int64_t i = 0; i < 64 && i < left; i += kLanes) {
            const M m = first_of(left - i);
            float* w = tensor.value + from + i;
            const F x = load_first(w, m), g = load_first(tensor.gradient + from + i, m) * k;
            const F x0 = tensor.state[0] ? load_first(tensor.state[0] + from + i, m) : x;
            store_first(w, sgld_step(c, x, g, x0, signed_normal(load(words + i))), m);
        }
    }
}

// LAMB's direction over the gradient; the sums of squares of the weights and of it.
inline void lamb_block(const LambConstants& constants, const FlatTensor& tensor, int64_t start, int64_t length,
                       float scale, double* sums) {
    const LambConstants c = constants;
    const F k = bcast(scale);
    float *w = tensor.value + start, *g = tensor.gradient + start;
    float *s1 = tensor.state[0] + start, *s2 = tensor.state[1] + start;
    for (int64_t i = 0; i < length; i += kLanes) {
        const M m = first_of(length - i);
        F a = load_first(s1 + i, m), v = load_first(s2 + i, m);
        const F u = lamb_direction(c, load_first(w + i, m), load_first(g + i, m) * k, a, v);
        store_first(s1 + i, a, m);
        store_first(s2 + i, v, m);
        store_first(g + i, u, m);
    }
    sums[0] = sum_of_squares(w, length);
    sums[1] = sum_of_squares(g, length);
}

// The step along a tensor's direction by its trust ratio, which is 1 where either norm is 0.
inline float lamb_factor(const TrainParams& p, const TensorStep& s, const double* sums, int64_t blocks) {
    double weights = 0.0, direction = 0.0;
    for (int64_t b = 0; b < blocks; ++b) weights += sums[2 * b], direction += sums[2 * b + 1];
    weights = __builtin_sqrt(weights), direction = __builtin_sqrt(direction);
    if (weights > p.norm_clamp) weights = p.norm_clamp;
    return (float)(weights == 0.0 || direction == 0.0 ? s.lr : s.lr * (weights / direction));
}

inline void add_multiple(float* to, float factor, const float* from, int64_t length) {
    const F k = bcast(factor);
    for (int64_t i = 0; i < length; i += kLanes) {
        const M m = first_of(length - i);
        store_first(to + i, fmadd(k, load_first(from + i, m), load_first(to + i, m)), m);
    }
}

inline void multiply_by(float* a, float factor, int64_t length) {
    const F k = bcast(factor);
    for (int64_t i = 0; i < length; i += kLanes) {
        const M m = first_of(length - i);
        store_first(a + i, load_first(a + i, m) * k, m);
    }
}

// What a vector of the square norm `squares` is multiplied by to have norm 1; 1 where it is 0.
TOYKERN_INLINE F to_unit(F squares) {
    const M there = nonzero(squares);
    const F one = bcast(1.0f);
    return keep(there, one / fsqrt(squares)) + (one - keep(there, one));
}

// Of a tensor whose vectors are rows, those of this rank: norm 1, or (`remove`) the gradient without what is parallel.
inline void unit_rows(const FlatTensor& tensor, const Team& team, bool remove) {
    for (int64_t r = team.rank; r < tensor.rows; r += team.size) {
        float *w = tensor.value + r * tensor.columns, *g = tensor.gradient + r * tensor.columns;
        const float squares = (float)sum_of_squares(w, tensor.columns);
        if (!(squares != 0.0f)) continue;
        if (!remove) {
            multiply_by(w, 1.0f / __builtin_sqrtf(squares), tensor.columns);
            continue;
        }
        F sum = fzero();
        for (int64_t j = 0; j < tensor.columns; j += kLanes) {
            const M m = first_of(tensor.columns - j);
            sum = fmadd(load_first(w + j, m), load_first(g + j, m), sum);
        }
        add_multiple(g, -fsum(sum) / squares, w, tensor.columns);
    }
}

// The same of a tensor whose vectors are columns, in groups.
inline void unit_columns(const FlatTensor& tensor, const Team& team, bool remove) {
    constexpr int kVectors = 64 / kLanes, kRun = 64;  // columns of a group; rows to a sum of its own
    const int64_t n = tensor.columns;
    for (int64_t j = team.rank * 64; j < n; j += team.size * 64) {
        M lanes[kVectors];
        F squares[kVectors], dots[kVectors], factor[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            lanes[v] = first_of(n - j - v * kLanes);
            squares[v] = dots[v] = fzero();
        }
        for (int64_t first = 0; first < tensor.rows; first += kRun) {
            const int64_t last = first + kRun < tensor.rows ? first + kRun : tensor.rows;
            for (int v = 0; v < kVectors; ++v) {
                F square = fzero(), dot = fzero();
                for (int64_t r = first; r < last; ++r) {
                    const int64_t at = r * n + j + v * kLanes;
                    const F w = load_first(tensor.value + at, lanes[v]);
                    square = fmadd(w, w, square);
                    if (remove) dot = fmadd(w, load_first(tensor.gradient + at, lanes[v]), dot);
                }
                squares[v] = squares[v] + square;
                dots[v] = dots[v] + dot;
            }
        }
        for (int v = 0; v < kVectors; ++v)
            factor[v] = remove ? keep(nonzero(squares[v]), dots[v] / squares[v]) : to_unit(squares[v]);
        for (int64_t r = 0; r < tensor.rows; ++r)
            for (int v = 0; v < kVectors; ++v) {
                const int64_t at = r * n + j + v * kLanes;
                const F w = load_first(tensor.value + at, lanes[v]);
                if (remove)
                    store_first(tensor.gradient + at, load_first(tensor.gradient + at, lanes[v]) - factor[v] * w,
                                lanes[v]);
                else
                    store_first(tensor.value + at, w * factor[v], lanes[v]);
            }
    }
}

// False where no tensor has vectors of unit norm.
inline bool unit_vectors(const TrainParams& p, FlatTensor* tensors, int count, const Team& team, bool remove) {
    bool any = false;
    for (int i = 0; i < count; ++i) {
        if (tensors[i].frozen || !tensor_of(p, tensors[i].role).unit_norm) continue;
        any = true;
        if (tensors[i].role == Role::kDecoder)
            unit_columns(tensors[i], team, remove);
        else
            unit_rows(tensors[i], team, remove);
    }
    return any;
}

// One optimiser step of all tensors, by a team whose ranks all see the whole gradients, which are multiplied by `scale`
// first and may be written over. Every rank sees the new weights when it returns. `room` has step_room() doubles, the
// team's.
inline void general_step(const TrainParams& p, int64_t model, int64_t step, float scale, FlatTensor* tensors, int count,
                         const Team& team, double* room) {
    const bool lamb = (Optimizer)p.optimizer == Optimizer::kLAMB, sgld = (Optimizer)p.optimizer == Optimizer::kSGLD;
    if (p.remove_parallel && unit_vectors(p, tensors, count, team, true)) team.meet();
    const int64_t sums = step_room(p.network) / 3;
    double* const norms = room + sums;  // [blocks][2]
    const float k = clipped_scale(p, model, scale, tensors, count, team, room);
    const StreamKey key = stream_key(p.seed[model], (uint32_t)step, (uint32_t)Purpose::kTraining);
    TensorStep steps[kRoles];
    for (int i = 0; i < count; ++i) steps[i] = tensor_step(p, model, step, tensors[i].role);

    over_blocks(tensors, count, team, [&](int i, int64_t block, int64_t start, int64_t length) {
        const FlatTensor& tensor = tensors[i];
        float* const value = tensor.value + start;
        if (lamb) return lamb_block(steps[i].lamb, tensor, start, length, k, norms + 2 * block);
        if (sgld)
            sgld_block(steps[i].sgld, key, tensor, start, length, k);
        else
            optimizer_step(steps[i].plain, value, tensor.gradient + start,
                           tensor.state[0] ? tensor.state[0] + start : nullptr,
                           tensor.state[1] ? tensor.state[1] + start : nullptr, length, k);
        if (steps[i].shrink != 1.0f) multiply_by(value, steps[i].shrink, length);
    });
    if (lamb) {
        team.meet();
        float factors[kRoles];
        const double* from = norms;
        for (int i = 0; i < count; ++i) {
            if (tensors[i].frozen) continue;
            const int64_t blocks = step_blocks(tensors[i].rows * tensors[i].columns);
            factors[i] = lamb_factor(p, steps[i], from, blocks);
            from += 2 * blocks;
        }
        over_blocks(tensors, count, team, [&](int i, int64_t, int64_t start, int64_t length) {
            float* const value = tensors[i].value + start;
            add_multiple(value, -factors[i], tensors[i].gradient + start, length);
            if (steps[i].shrink != 1.0f) multiply_by(value, steps[i].shrink, length);
        });
    }
    team.meet();
    if (unit_vectors(p, tensors, count, team, false)) team.meet();
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
