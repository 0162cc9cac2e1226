// Output activations of the layer and what becomes of a row of pre-outputs: output, loss, or gradient.
//
//   y = g(z),  z given without its bias;  loss += I (y − t)²,  dz = scale·2 I (y − t) g′(z)  or  dz = dy g′(z)
//
// Slopes     ReLU: 0 at 0 and below, 1 at NaN; GELU: Φ(z) + z φ(z) with Φ the normal distribution (the exact one, by erf)
// Limits     float32 erf after Abramowitz & Stegun 7.1.26 (error of erf below 1.5e-7, says its source); float64 by libm's erf and exp
// Order      the loss of a row: lanes along its features, then a fixed tree
#pragma once
#include "cpu/simd_double.h"
#include "toykern/layer.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// e^−u for u >= 0 (and NaN), as 2^k · 2^f with |f| <= 1/2; the polynomial is Taylor's, its error about 2e-7 relative.
TOYKERN_INLINE F exp_minus(F u) {
    const F t = fmax(bcast(-126.0f), u * bcast(-1.44269504f));
    const F magic = bcast(12582912.0f);  // 1.5·2^23: the sum's last bits are the rounded integer
    const F shifted = t + magic;
    const F f = t - (shifted - magic);
    F p = bcast(1.5403530e-4f);
    p = fmadd(p, f, bcast(1.3333558e-3f));
    p = fmadd(p, f, bcast(9.6181291e-3f));
    p = fmadd(p, f, bcast(5.5504109e-2f));
    p = fmadd(p, f, bcast(2.4022651e-1f));
    p = fmadd(p, f, bcast(6.9314718e-1f));
    p = fmadd(p, f, bcast(1.0f));
    return as_floats(as_words(p) + shl(as_words(shifted) - as_words(magic), 23));
}

// Φ(z) and φ(z) of the standard normal distribution.
TOYKERN_INLINE void normal_of(F z, F& distribution, F& density) {
    const F a = magnitude(z) * bcast(0.70710678f);
    const F e = exp_minus(a * a);
    const F t = bcast(1.0f) / fmadd(bcast(0.3275911f), a, bcast(1.0f));
    F p = bcast(1.061405429f);
    p = fmadd(p, t, bcast(-1.453152027f));
    p = fmadd(p, t, bcast(1.421413741f));
    p = fmadd(p, t, bcast(-0.284496736f));
    p = fmadd(p, t, bcast(0.254829592f));
    const F tail = bcast(0.5f) * (p * t * e);  // Φ(−|z|)
    const M positive = gt_or_nan(z, fzero());
    distribution = keep(positive, bcast(1.0f) - tail) + (tail - keep(positive, tail));
    density = e * bcast(0.39894228f);
}
TOYKERN_INLINE void normal_of(D z, D& distribution, D& density) {
    for (int i = 0; i < kDoubleLanes; ++i) {
        distribution.v[i] = 0.5 * __builtin_erfc(-z.v[i] * 0.70710678118654752440);
        density.v[i] = 0.39894228040143267794 * __builtin_exp(-0.5 * z.v[i] * z.v[i]);
    }
}

// y = g(z) and its slope.
template <OutputActivation kG, class V>
TOYKERN_INLINE V activate(V z, V zero, V one, V& slope) {
    if (kG == OutputActivation::kRelu) {
        slope = keep(gt_or_nan(z, zero), one);
        return fmax(zero, z);
    }
    if (kG == OutputActivation::kGelu) {
        V distribution, density;
        normal_of(z, distribution, density);
        slope = fmadd(z, density, distribution);
        return z * distribution;
    }
    slope = one;
    return z;
}

// One row of a chunk of features.
template <class T>
struct OutputRow {
    int64_t count;           // features
    T* z;                    // [count padded] pre-outputs without bias; becomes dz
    const T *bias, *target;  // [count padded]; target unpadded and, unless the task is kLoss, unused
    const T* importance;     // [count padded]
    T scale;                 // dz = scale · I (y − t) g′(z)
    bool target_magnitude;   // the target is |target|
    T *output,
        *direct_grad;  // unpadded. kLoss: direct_grad, where not null, is dloss/dtarget (·sign where the target is |x|)
    const T* output_grad;  // unpadded, kBackward
    const T* saved;        // unpadded, kBackward: y, where not null z is not known
    T* bias_sum;           // [count padded] += dz
    uint64_t* active;      // [count / 64 rounded up] bits of dz that are not zero
    double loss;
    int64_t n_active;
};

template <LayerTask kTask, OutputActivation kG, class T>
inline void output_row(OutputRow<T>& r) {
    using V = typename Lane<T>::Vector;
    constexpr int kStep = Lane<T>::kCount;
    const V zero = Lane<T>::zero(), one = bcast((T)1), scale = bcast(r.scale);
    V loss = zero;
    uint64_t word = 0;
    for (int64_t j = 0; j < r.count; j += kStep) {
        const bool whole = r.count - j >= kStep;
        const auto in = Lane<T>::first(r.count - j);
        const auto get = [&](const T* p) { return whole ? load(p + j) : load_first(p + j, in); };
        const auto put = [&](T* p, V v) {
            if (whole)
                store(p + j, v);
            else
                store_first(p + j, v, in);
        };
        V dz, slope;
        if (kTask == LayerTask::kBackward && r.saved) {  // ReLU's output tells its slope, the identity has none
            slope = kG == OutputActivation::kRelu ? keep(gt_or_nan(get(r.saved), zero), one) : one;
            dz = get(r.output_grad) * slope;
        } else {
            const V z = load(r.z + j) + load(r.bias + j);
            const V y = activate<kG>(z, zero, one, slope);
            if (kTask == LayerTask::kForward) {
                put(r.output, y);
                continue;
            }
            if (kTask == LayerTask::kBackward) {
                dz = get(r.output_grad) * slope;
            } else {
                const V given = get(r.target), t = r.target_magnitude ? magnitude(given) : given;
                const V error = keep(in, y - t), weighted = error * load(r.importance + j);
                loss = fmadd(weighted, error, loss);
                dz = weighted * scale;
                if (r.direct_grad) {
                    const V to_target = zero - dz;
                    put(r.direct_grad, r.target_magnitude ? signed_like(to_target, given) : to_target);
                }
                // A slope of 0 or 1 selects, as PyTorch's ReLU does: what is off stays 0 whatever the error.
                dz = kG == OutputActivation::kGelu ? dz * slope : keep(nonzero(slope), dz);
            }
        }
        dz = keep(in, dz);
        store(r.z + j, dz);
        store(r.bias_sum + j, load(r.bias_sum + j) + dz);
        word |= (uint64_t)bits(nonzero(dz)) << (j % 64);
        if ((j + kStep) % 64 == 0 || j + kStep >= r.count) {
            r.active[j / 64] = word;
            r.n_active += __builtin_popcountll(word);
            word = 0;
        }
    }
    if (kTask == LayerTask::kLoss) r.loss = (double)fsum(loss);
}

template <class T>
using OutputRowFunction = void (*)(OutputRow<T>&);

template <class T>
inline OutputRowFunction<T> output_row_for(LayerTask task, OutputActivation g) {
#define TOYKERN_TASK(TASK)                                                                          \
    return g == OutputActivation::kRelu   ? output_row<LayerTask::TASK, OutputActivation::kRelu, T> \
           : g == OutputActivation::kGelu ? output_row<LayerTask::TASK, OutputActivation::kGelu, T> \
                                          : output_row<LayerTask::TASK, OutputActivation::kNone, T>
    if (task == LayerTask::kForward) TOYKERN_TASK(kForward);
    if (task == LayerTask::kLoss) TOYKERN_TASK(kLoss);
    TOYKERN_TASK(kBackward);
#undef TOYKERN_TASK
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
