// Launching the layer's kernels: cuda/layer/stacked.cuh and cuda/layer/large.cuh.
#include "cuda/launch.h"
#include "cuda/layer/large.cuh"
#include "cuda/layer/stacked.cuh"

namespace toykern {

using namespace device_side;

namespace {

template <class T>
__global__ void __launch_bounds__(256, 2) layer_stacked(const __grid_constant__ StackedTask t) {
    extern __shared__ float4 shared_room[];
    Stacked<T>(t, blockIdx.x, reinterpret_cast<char*>(shared_room)).run(Block{(int)threadIdx.x, (int)blockDim.x});
}

template <class T>
__global__ void __launch_bounds__(256) layer_slices(const __grid_constant__ StackedTask t) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < t.l.models * t.s.partial) add_stacked_slices<T>(t, i);
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) layer_tile(const __grid_constant__ LayerTileParams t) {
    extern __shared__ float4 shared_room[];
    Kernel::run(Block{(int)threadIdx.x, Kernel::kThreads}, t, blockIdx.x, reinterpret_cast<char*>(shared_room));
}

__global__ void __launch_bounds__(LargeSums::kThreads) layer_sums(const __grid_constant__ LayerSums s) {
    extern __shared__ float4 shared_room[];
    LargeSums::run(Block{(int)threadIdx.x, LargeSums::kThreads}, s, blockIdx.x, reinterpret_cast<char*>(shared_room));
}

template <class T>
void launch_stacked(const StackedTask& t, cudaStream_t stream) {
    LaunchShape shape;
    shape.grid = t.l.models * t.s.slices;
    shape.block = t.s.threads;
    shape.shared_bytes = 4 * (int64_t)t.s.floats;
    launch("layer_stacked", layer_stacked<T>, shape, stream, t);
    if (t.s.slices == 1 || t.p.task == (int32_t)LayerTask::kForward) return;
    LaunchShape sums;
    sums.grid = (t.l.models * t.s.partial + 255) / 256;
    sums.block = 256;
    launch("layer_slices", layer_slices<T>, sums, stream, t);
}

}  // namespace

namespace cuda {

void layer_stacked(const LayerParams& p, const LayerLaunch& l) {
    const DeviceGuard guard(l.device);
    const StackedTask task = {p, l, stacked_shape(p)};
    if (l.bf16)
        launch_stacked<Bf16>(task, static_cast<cudaStream_t>(l.stream));
    else
        launch_stacked<float>(task, static_cast<cudaStream_t>(l.stream));
}

void layer_tile(const LayerTileParams& t, int kernel, int device, void* stream) {
    const DeviceGuard guard(device);
    with_layer_kernel(t.bf16, kernel, [&](auto chosen) {
        using Kernel = decltype(chosen);
        LaunchShape shape;
        shape.grid = Kernel::blocks(t);
        shape.block = Kernel::kThreads;
        shape.shared_bytes = Kernel::kShared;
        launch(Kernel::kName, toykern::layer_tile<Kernel>, shape, static_cast<cudaStream_t>(stream), t);
    });
}

void layer_sums(const LayerSums& s, int device, void* stream) {
    const DeviceGuard guard(device);
    LaunchShape shape;
    shape.grid = LargeSums::blocks(s);
    shape.block = LargeSums::kThreads;
    shape.shared_bytes = LargeSums::kShared;
    launch(LargeSums::kName, toykern::layer_sums, shape, static_cast<cudaStream_t>(stream), s);
}

}  // namespace cuda
}  // namespace toykern
