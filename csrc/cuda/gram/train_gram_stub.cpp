// In the place of train_gram.cu in a build without CUDA kernels.
#include "cuda/regimes.h"
#include "toykern/cuda_devices.h"

namespace toykern {
namespace cuda {

void train_gram(const TrainParams&, const Launch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
