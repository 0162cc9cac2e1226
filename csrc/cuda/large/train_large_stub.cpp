// In the place of train_large.cu in a build without CUDA kernels.
#include "cuda/regimes.h"

namespace toykern {
namespace cuda {

void train_large(const TrainParams&, const Launch&) { throw CudaNotBuilt(); }
void evaluate_large(const EvaluateParams&, const Launch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
