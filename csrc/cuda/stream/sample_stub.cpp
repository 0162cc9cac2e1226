// In the place of sample.cu in a build without CUDA kernels.
#include "toykern/cuda.h"

namespace toykern {
namespace cuda {

void sample(const SampleParams&, const Launch&) { throw CudaNotBuilt(); }

}  // namespace cuda
}  // namespace toykern
