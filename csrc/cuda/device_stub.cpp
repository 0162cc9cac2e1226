// In the place of device.cu in a build without CUDA kernels.
#include "toykern/cuda_devices.h"

namespace toykern {

CudaStatus cuda_status() { return {false, 0, 0, 0, "this build has no CUDA kernels"}; }

CudaDevice cuda_device(int) { throw CudaNotBuilt(); }

int64_t cuda_shared_limit(int device) {
    if (device < 0) return kSharedLimit;
    throw CudaNotBuilt();
}

void cuda_synchronize(int, void*, const std::string&) { throw CudaNotBuilt(); }

int cuda_probe(int, int, int64_t) { throw CudaNotBuilt(); }

}  // namespace toykern
