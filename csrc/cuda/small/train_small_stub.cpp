// In the place of train_small.cu in a build without CUDA kernels.
#include "cuda/regimes.h"
#include "toykern/cuda_devices.h"

namespace toykern {
namespace cuda {

void train_small(const TrainParams&, const Launch&) { throw CudaNotBuilt(); }
void evaluate_small(const EvaluateParams&, const Launch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
