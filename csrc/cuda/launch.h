// Launching kernels: on the caller's device and stream, every failure an exception that names the kernel. For .cu
// files.
//
//     DeviceGuard guard(device);
//     LaunchShape shape;
//     shape.grid = blocks;
//     shape.block = 128;
//     launch("train_tiny", train_tiny<5, 2>, shape, stream, params);
//
// A launch does not wait. What goes wrong while a kernel runs shows at the next synchronize().
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "toykern/cuda_devices.h"

namespace toykern {

// Throws what `error` means, if it is one: `doing` says what was tried, as in "launching train_tiny".
void check_cuda(cudaError_t error, const std::string& doing);

// Waits for all work of the stream; `doing` names what has been put there.
inline void synchronize(cudaStream_t stream, const std::string& doing) {
    check_cuda(cudaStreamSynchronize(stream), doing);
}

// Makes `device` the current one for its lifetime. The runtime's own device is left alone where it is the same
// already: setting it would make a context on it.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check_cuda(cudaGetDevice(&before_), "asking for the current device");
        if (device == before_) return;
        check_cuda(cudaSetDevice(device), "choosing CUDA device " + std::to_string(device));
        changed_ = true;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

struct LaunchShape {
    int64_t grid = 1;          // blocks
    int block = 32;            // threads of each
    int64_t shared_bytes = 0;  // dynamic shared memory of each
    int cluster = 1;           // blocks that share their shared memory (sm_90 and newer)
    bool cooperative = false;  // all blocks run at a time and may wait for each other
};

// Whether a shape can be launched at all; throws with the limit otherwise.
void check_shape(const char* name, const LaunchShape& shape);

// Lets the kernel have that much dynamic shared memory on the current device (more than 48 KiB have to be asked for);
// throws with the device's limit where it has less. `kernel` is a __global__ function.
void allow_shared(const char* name, const void* kernel, int64_t bytes);

// Puts the kernel on the stream. Nothing is launched for an empty grid.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            Arguments&&... arguments) {
    if (shape.grid == 0) return;
    check_shape(name, shape);
    if (shape.shared_bytes > 0) allow_shared(name, reinterpret_cast<const void*>(kernel), shape.shared_bytes);
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)shape.grid);
    config.blockDim = dim3((unsigned)shape.block);
    config.dynamicSmemBytes = (size_t)shape.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (shape.cluster > 1) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = (unsigned)shape.cluster;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.cooperative) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...),
               std::string("launching the kernel ") + name);
}

}  // namespace toykern
