// Which GPUs there are, what went wrong, and a kernel that shows whether one can be launched at all.
#include <algorithm>

#include "cuda/launch.h"

namespace toykern {
namespace {

// Errors after which every further call of this process fails: the GPU's context is lost.
bool lasting(cudaError_t error) {
    switch (error) {
        case cudaErrorIllegalAddress:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorIllegalInstruction:
        case cudaErrorHardwareStackError:
        case cudaErrorLaunchFailure:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorECCUncorrectable: return true;
        default: return false;
    }
}

// CUDA's own words and name for an error, but that it calls a driver too old where there is none.
std::string describe(cudaError_t error) {
    int driver = 0;
    if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
        return "there is no NVIDIA driver on this machine (cudaErrorInsufficientDriver)";
    return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

// Each thread hands the arch that its code was made for to its neighbour, by way of shared memory.
__global__ void probe(int* arch) {
    extern __shared__ int passed[];
#ifdef __CUDA_ARCH__
    passed[threadIdx.x] = __CUDA_ARCH__ / 10;
#endif
    __syncthreads();
    if (threadIdx.x == 0) *arch = passed[blockDim.x - 1];
}

struct DeviceInt {
    int* pointer = nullptr;
    DeviceInt() { check_cuda(cudaMalloc(&pointer, sizeof(int)), "allocating 4 bytes"); }
    ~DeviceInt() { cudaFree(pointer); }
};

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device),
               "asking for the properties of CUDA device " + std::to_string(device));
    return value;
}

}  // namespace

void check_cuda(cudaError_t error, const std::string& doing) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the runtime keeps the error for whoever asks next: it has been reported here
    const std::string text = doing + " failed: " + describe(error);
    if (error == cudaErrorMemoryAllocation) throw CudaOutOfMemory(text);
    throw CudaError(lasting(error) ? text + "; this process can use CUDA no more: restart it" : text);
}

void check_shape(const char* name, const LaunchShape& shape) {
    constexpr int64_t kMostBlocks = 0x7FFFFFFF, kMostShared = 0x7FFFFFFF;
    const auto refuse = [name](const char* what, int64_t value) {
        throw CudaError(std::string("launching the kernel ") + name + " failed: " + std::to_string(value) + " " + what);
    };
    if (shape.grid < 0 || shape.grid > kMostBlocks) refuse("blocks are not from 0 to 2147483647", shape.grid);
    if (shape.block < 1 || shape.block > 1024) refuse("threads in a block are not from 1 to 1024", shape.block);
    if (shape.shared_bytes < 0 || shape.shared_bytes > kMostShared)
        refuse("bytes of shared memory are out of range", shape.shared_bytes);
    if (shape.cluster < 1 || shape.grid % shape.cluster)
        refuse("blocks in a cluster do not divide the grid", shape.cluster);
}

void allow_shared(const char* name, const void* kernel, int64_t bytes) {
    const std::string doing = std::string("preparing the kernel ") + name;
    int device = 0, most = 0;
    cudaFuncAttributes has;
    check_cuda(cudaGetDevice(&device), doing);
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), doing);
    check_cuda(cudaFuncGetAttributes(&has, kernel), doing);
    const int64_t limit = most - (int64_t)has.sharedSizeBytes;
    if (bytes > limit)
        throw CudaError(std::string("the kernel ") + name + " needs " + std::to_string(bytes) +
                        " bytes of shared memory in a block, but this GPU grants " + std::to_string(limit));
    // Always the same value: another thread may be about to launch the same kernel with another size.
    if (has.maxDynamicSharedSizeBytes < limit)
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)limit), doing);
}

CudaStatus cuda_status() {
    CudaStatus status = {true, 0, 0, 0, ""};
    cudaRuntimeGetVersion(&status.runtime);
    cudaDriverGetVersion(&status.driver);  // 0 where there is no driver
    const cudaError_t error = cudaGetDeviceCount(&status.devices);
    if (error != cudaSuccess) {
        cudaGetLastError();
        status.devices = 0;
        status.problem = describe(error);
    }
    return status;
}

CudaDevice cuda_device(int device) {
    const CudaStatus status = cuda_status();
    if (!status.problem.empty()) throw CudaError("looking for CUDA devices failed: " + status.problem);
    if (device < 0 || device >= status.devices)
        throw CudaError("there is no CUDA device " + std::to_string(device) + ": there are " +
                        std::to_string(status.devices));
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, device),
               "asking for the properties of CUDA device " + std::to_string(device));
    CudaDevice d = {};
    d.name = properties.name;
    d.major = properties.major;
    d.minor = properties.minor;
    d.multiprocessors = properties.multiProcessorCount;
    d.clock_khz = attribute(cudaDevAttrClockRate, device);  // left CUDA 13's properties
    d.threads_per_sm = properties.maxThreadsPerMultiProcessor;
    d.registers_per_sm = properties.regsPerMultiprocessor;
    d.shared_per_sm = (int64_t)properties.sharedMemPerMultiprocessor;
    d.shared_static = (int64_t)properties.sharedMemPerBlock;
    d.shared_per_block = (int64_t)properties.sharedMemPerBlockOptin;
    d.memory = (int64_t)properties.totalGlobalMem;
    d.l2 = properties.l2CacheSize;
    d.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
    return d;
}

int64_t cuda_shared_limit(int device) {
    if (device < 0) return kSharedLimit;
    return std::min<int64_t>(kSharedLimit, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
}

void cuda_synchronize(int device, void* stream, const std::string& doing) {
    const DeviceGuard guard(device);
    synchronize(static_cast<cudaStream_t>(stream), doing);
}

int cuda_probe(int device, int threads, int64_t shared_bytes) {
    if (shared_bytes < (int64_t)threads * (int64_t)sizeof(int))
        throw CudaError("the kernel probe needs 4 bytes of shared memory for each thread");
    const DeviceGuard guard(device);
    const DeviceInt result;
    LaunchShape shape;
    shape.block = threads;
    shape.shared_bytes = shared_bytes;
    launch("probe", probe, shape, cudaStreamPerThread, result.pointer);
    int arch = 0;
    check_cuda(cudaMemcpyAsync(&arch, result.pointer, sizeof(int), cudaMemcpyDeviceToHost, cudaStreamPerThread),
               "copying the result of the kernel probe");
    synchronize(cudaStreamPerThread, "running the kernel probe");
    return arch;
}

}  // namespace toykern
