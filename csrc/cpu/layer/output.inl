// What becomes of a row of pre-outputs of the layer: output, loss, or gradient.
//
//   y = g(z),  z given without its bias;  loss += I ρ(y − t),  dz = scale I ρ′(y − t) g′(z)  or  dz = dy g′(z)
//
// g          common/activation.h; a loop for each, since a row is short
// ρ          common/loss.h
// Order      the loss of a row: lanes along its features, then a fixed tree
#pragma once
#include "common/loss.h"
#include "cpu/simd/lanes.h"
#include "toykern/layer.h"

namespace toykern {
namespace TOYKERN_LEVEL {

// One row of a chunk of features.
template <class T>
struct OutputRow {
    int64_t count;           // features
    T* z;                    // [count padded] pre-outputs without bias; becomes dz
    const T *bias, *target;  // [count padded]; target unpadded and, unless the task is kLoss, unused
    const T* importance;     // [count padded]
    T option;                // of the activation
    AnyLoss loss_function;
    T scale;                // of what goes back from the loss
    bool target_magnitude;  // the target is |target|
    T *output,
        *direct_grad;  // unpadded. kLoss: direct_grad, where not null, is dloss/dtarget (·sign where the target is |x|)
    const T* output_grad;  // unpadded, kBackward
    const T* saved;        // unpadded, kBackward: y, where not null z is not known
    T* bias_sum;           // [count padded] += dz
    uint64_t* active;      // [count / 64 rounded up] bits of dz that are not zero
    double loss;
    int64_t n_active;
};

template <LayerTask kTask, class A, class T>
inline void output_row(OutputRow<T>& r) {
    using V = typename Lane<T>::Vector;
    constexpr int kStep = Lane<T>::kCount;
    const V zero = Lane<T>::zero(), scale = bcast(r.scale), option = bcast(r.option);
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
        V dz;
        if (kTask == LayerTask::kBackward && r.saved) {
            dz = get(r.output_grad) * A::slope_of(get(r.saved), option);
        } else {
            const Activated<V> a = A::at(load(r.z + j) + load(r.bias + j), option);
            if (kTask == LayerTask::kForward) {
                put(r.output, a.y);
                continue;
            }
            if (kTask == LayerTask::kBackward) {
                dz = get(r.output_grad) * a.slope;
            } else {
                const V given = get(r.target), t = r.target_magnitude ? magnitude(given) : given;
                dz = r.loss_function.add_to(loss, keep(in, a.y - t), load(r.importance + j)) * scale;
                if (r.direct_grad) {
                    const V to_target = zero - dz;
                    put(r.direct_grad, r.target_magnitude ? signed_like(to_target, given) : to_target);
                }
                dz = A::kSelects ? keep(nonzero(a.slope), dz) : dz * a.slope;
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

template <LayerTask kTask, class T>
inline OutputRowFunction<T> output_row_of(int32_t activation) {
#define TOYKERN_CALL(A) output_row<kTask, A, T>
    TOYKERN_ACTIVATION(activation, TOYKERN_CALL)
#undef TOYKERN_CALL
}
template <class T>
inline OutputRowFunction<T> output_row_for(LayerTask task, int32_t activation) {
    if (task == LayerTask::kForward) return output_row_of<LayerTask::kForward, T>(activation);
    if (task == LayerTask::kLoss) return output_row_of<LayerTask::kLoss, T>(activation);
    return output_row_of<LayerTask::kBackward, T>(activation);
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
