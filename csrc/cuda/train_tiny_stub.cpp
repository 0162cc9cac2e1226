// In the place of train_tiny.cu in a build without CUDA kernels.
#include "cuda/regimes.h"
#include "toykern/cuda_devices.h"

namespace toykern {
namespace cuda {

size_t tiny_workspace(const Network&, const Launch&, int64_t, int64_t, float) { throw CudaNotBuilt(); }
void train_tiny(const TrainParams&, const Launch&) { throw CudaNotBuilt(); }
void evaluate_tiny(const EvaluateParams&, const Launch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
