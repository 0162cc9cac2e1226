// In the place of train_tiny.cu in a build without CUDA kernels.
#include "cuda/regimes.h"
#include "toykern/cuda_devices.h"

namespace toykern {
namespace cuda {

void train_tiny(const TrainParams&, const Launch&) { throw CudaNotBuilt(); }
void evaluate_tiny(const EvaluateParams&, const Launch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
