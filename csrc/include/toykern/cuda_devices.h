// GPUs and failures, free of CUDA's headers. Every build has these functions; in one without CUDA kernels they come
// from cuda/device_stub.cpp and throw CudaNotBuilt, but for cuda_status(), which always answers.
#pragma once
#include <cstdint>
#include <exception>
#include <string>
#include <utility>

namespace toykern {

// ---- failures ----

// A call of the CUDA runtime or a kernel failed; what() names it and CUDA's error.
struct CudaError : std::exception {
    explicit CudaError(std::string text) : text_(std::move(text)) {}
    const char* what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
};

// The GPU's memory is used up.
struct CudaOutOfMemory : CudaError {
    using CudaError::CudaError;
};

// A build without CUDA kernels was asked for them.
struct CudaNotBuilt : CudaError {
    CudaNotBuilt() : CudaError("this build has no CUDA kernels; `toykern info` says why") {}
};

// ---- devices (cuda/device.cu) ----

// Waits for all work of a stream of the device (a cudaStream_t); `doing` names what has been put there.
void cuda_synchronize(int device, void* stream, const std::string& doing);

// What this build and this machine have to offer. Versions are CUDA's numbers, 1000 · major + 10 · minor.
struct CudaStatus {
    bool built;           // are there CUDA kernels in this build
    int runtime;          // the CUDA runtime linked into it; 0: none
    int driver;           // the newest CUDA that the machine's driver serves; 0: there is no driver
    int devices;          // GPUs that can be used
    std::string problem;  // why there are none; empty if there are
};
CudaStatus cuda_status();  // never throws

// Sizes in bytes.
struct CudaDevice {
    std::string name;
    int major, minor;          // compute capability
    int multiprocessors;       // SMs
    int clock_khz;             // of the SMs, boosted
    int threads_per_sm;        // resident at a time
    int registers_per_sm;      // of 32 bits
    int64_t shared_per_sm;     // shared memory
    int64_t shared_static;     // a block's shared memory, without asking for more
    int64_t shared_per_block;  // the most that a block can ask for
    int64_t memory;
    int64_t l2;
    bool cooperative;  // kernels whose blocks wait for each other
};
CudaDevice cuda_device(int device);

// Shared memory that a block may take: what every device of sm_80 and newer has, or less where the device has less, as
// sm_75 with 64 KiB. Never more, so that newer devices cut their work alike, and their sums.
constexpr int64_t kSharedLimit = 99 * 1024;
int64_t cuda_shared_limit(int device);  // of no device (the source on the host): kSharedLimit

// Launches a kernel of `threads` threads in one block that uses `shared_bytes` (at least 4 · threads) of dynamic shared
// memory, waits for it, and returns the arch whose code ran there, such as 90. Throws as any launch does: a build
// without code for this GPU, too many threads, too much shared memory.
int cuda_probe(int device, int threads, int64_t shared_bytes);

}  // namespace toykern
