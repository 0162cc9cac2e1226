// The one place where a training loop is picked on a device: by the shape, since it decides the order of the sums, and by
// the shared memory of a block, which is the same on every device from sm_80 on.
//
//   tiny    half a warp to a model, everything in registers train_tiny.cuh, which leaves some distributions to small;
//           of networks with none and ReLU alone, and not of sparse models
//   small   a block to a model, everything in shared memory            train_small.cuh; before it, of the same shapes,
//           models with linear codes and rare features                 train_gram.cuh (gram/shape.h says which)
//   large   kernels over all blocks, weights in device memory          train_large.cuh
#pragma once
#include "common/activation.h"
#include "toykern/cuda.h"

namespace toykern {

enum class DeviceRegime { kTiny, kSmall, kLarge, kGram };  // the last: tests force it for every model that it can take

// Tied networks whose shape is compiled in: calls Kernel<N, M>::run(arguments …) for the one that fits; false if there
// is none.
template <template <int, int> class Kernel, class... Arguments>
bool for_tiny_shape(const Network& net, const Arguments&... arguments) {
    const auto is = [&](int64_t n, int64_t m) { return net.n_features == n && net.n_hidden == m; };
    if (is(2, 1)) return Kernel<2, 1>::run(arguments...), true;
    if (is(3, 1)) return Kernel<3, 1>::run(arguments...), true;
    if (is(3, 2)) return Kernel<3, 2>::run(arguments...), true;
    if (is(4, 2)) return Kernel<4, 2>::run(arguments...), true;
    if (is(5, 2)) return Kernel<5, 2>::run(arguments...), true;
    if (is(6, 2)) return Kernel<6, 2>::run(arguments...), true;
    return false;
}
template <int N, int M>
struct AnyTinyShape {
    static void run() {}
};
constexpr int64_t kTinyBatch = 65536;  // longer batches would leave most of a device idle for want of models

size_t small_shared_bytes(const Network& network);  // of one block: cuda/small/shape.h
size_t small_workspace(const Network& network, int64_t n_models);

// Whether the Gram form trains some models, maybe: cuda/gram/shape.h.
bool gram_trains(const Network& network, int64_t batch_size, int64_t shared_limit);
size_t gram_workspace(const Network& network, int64_t n_models);

// `shared_limit`: of the device (cuda_shared_limit).
inline DeviceRegime device_regime(const Network& net, int64_t batch_size, int64_t shared_limit) {
    const bool plain = net.tied && !net.sparse && has_floors_alone(net);
    if (plain && batch_size <= kTinyBatch && for_tiny_shape<AnyTinyShape>(net)) return DeviceRegime::kTiny;
    return (int64_t)small_shared_bytes(net) <= shared_limit ? DeviceRegime::kSmall : DeviceRegime::kLarge;
}

// Each regime's entry points, on a device (train_<regime>.cu) and on the host (host_<regime>.cpp, lanes in lock step).
namespace cuda {
void train_tiny(const TrainParams&, const Launch&);
void evaluate_tiny(const EvaluateParams&, const Launch&);
void train_small(const TrainParams&, const Launch&);
void train_gram(const TrainParams&, const Launch&);
void evaluate_small(const EvaluateParams&, const Launch&);
size_t large_workspace(const Network&, const TablesLayout&, int64_t n_models, int64_t batch_size);
void train_large(const TrainParams&, const Launch&);
void evaluate_large(const EvaluateParams&, const Launch&);
}  // namespace cuda
namespace host {
void train_tiny(const TrainParams&, const Launch&);
void evaluate_tiny(const EvaluateParams&, const Launch&);
void train_small(const TrainParams&, const Launch&);
void train_gram(const TrainParams&, const Launch&);
void evaluate_small(const EvaluateParams&, const Launch&);
void train_large(const TrainParams&, const Launch&);
void evaluate_large(const EvaluateParams&, const Launch&);
}  // namespace host

}  // namespace toykern
