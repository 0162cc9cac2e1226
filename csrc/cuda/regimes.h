// The one place where a training loop is picked on a device: by the shape alone, since it decides the order of the sums.
//
//   tiny    half a warp to a model, everything in registers             train_tiny.cuh
//   small   a block to a model, everything in shared memory            train_small.cuh
//   large   kernels over all blocks, weights in device memory          train_large.cuh
#pragma once
#include "toykern/cuda.h"

namespace toykern {

enum class DeviceRegime { kTiny, kSmall, kLarge };

// Tied networks whose shape is compiled in.
constexpr bool is_tiny_shape(int64_t n, int64_t m) {
    return (n == 2 && m == 1) || (n == 3 && m == 1) || (n == 3 && m == 2) || (n == 4 && m == 2) || (n == 5 && m == 2) ||
           (n == 6 && m == 2);
}
constexpr int64_t kTinyBatch = 65536;  // longer batches would leave most of a device idle for want of models

size_t small_shared_bytes(const Network& network);  // of one block: train_small.cuh
constexpr size_t kSmallSharedLimit = 99 * 1024;     // what every device of sm_80 and newer can give a block

inline DeviceRegime device_regime(const Network& net, int64_t batch_size) {
    if (net.tied && is_tiny_shape(net.n_features, net.n_hidden) && batch_size <= kTinyBatch) return DeviceRegime::kTiny;
    return small_shared_bytes(net) <= kSmallSharedLimit ? DeviceRegime::kSmall : DeviceRegime::kLarge;
}

// Each regime's entry points, on a device (train_<regime>.cu) and on the host (host_<regime>.cpp, lanes in lock step).
namespace cuda {
void train_tiny(const TrainParams&, const Launch&);
void evaluate_tiny(const EvaluateParams&, const Launch&);
void train_small(const TrainParams&, const Launch&);
void evaluate_small(const EvaluateParams&, const Launch&);
size_t large_workspace(const Network&, const TablesLayout&, int64_t n_models, int64_t batch_size);
void train_large(const TrainParams&, const Launch&);
void evaluate_large(const EvaluateParams&, const Launch&);
}  // namespace cuda
namespace host {
void train_tiny(const TrainParams&, const Launch&);
void evaluate_tiny(const EvaluateParams&, const Launch&);
void train_small(const TrainParams&, const Launch&);
void evaluate_small(const EvaluateParams&, const Launch&);
void train_large(const TrainParams&, const Launch&);
void evaluate_large(const EvaluateParams&, const Launch&);
}  // namespace host

}  // namespace toykern
