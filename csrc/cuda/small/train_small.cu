// Launching the small regime: train_small.cuh.
#include "cuda/small/train_small.cuh"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/regimes.h"

namespace toykern {

using namespace device_side;

namespace {

constexpr int kMostThreads = 256;
constexpr int kBlocks = 1 << 16;  // at a time, where none needs a workspace: they go through the models from theirs on

// Calls body(block, its memory, a model's number) for every model that falls to this block.
template <class Body>
__device__ __forceinline__ void over_models(const SmallTask& task, char* workspace, const Body& body) {
    const Block b = {(int)threadIdx.x, (int)blockDim.x};
    const SmallRoom room = {task.shape};
    if (threadIdx.x == 0) room.exchange().workspace = workspace + (size_t)blockIdx.x * task.shape.workspace_bytes;
    __syncthreads();  // for ptxas alone: see train_small.cuh
    for (int64_t i = blockIdx.x; i < task.n_models; i += gridDim.x) body(b, room, i);
}

// The bound that ptxas is given: 96 registers for each thread of the smaller codes, 128 for the rest.
template <int kM>
constexpr int kBound = kM ? 320 : kMostThreads;

template <int kM, class A>
__global__ void __launch_bounds__(kBound<kM>, 2)
    train_small(const __grid_constant__ TrainParams p, const __grid_constant__ SmallTask task, const double* step_scale,
                char* workspace) {
    over_models(task, workspace, [&](const Block& b, const SmallRoom& room, int64_t i) {
        train_small_model<kM, A>(b, p, task, step_scale, room, p.order ? p.order[i] : i);
    });
}

// One for all shapes: an evaluation is short.
template <class A>
__global__ void __launch_bounds__(kMostThreads, 2)
    evaluate_small(const __grid_constant__ EvaluateParams p, const __grid_constant__ SmallTask task, char* workspace) {
    over_models(task, workspace, [&](const Block& b, const SmallRoom& room, int64_t i) {
        evaluate_small_model<A>(b, p, task, room, i);
    });
}

LaunchShape shape_for(const SmallTask& task) {
    LaunchShape shape;
    shape.grid = std::min<int64_t>(task.n_models, task.shape.workspace_bytes ? kSmallWorkspaceBlocks : kBlocks);
    shape.block = task.shape.threads();
    shape.shared_bytes = task.shape.shared_bytes;
    return shape;
}

template <int kM, class A = FloorActivation<float>>
void train_as(const TrainParams& p, const Launch& l) {
    const SmallTask task = small_task(p, l);
    launch("train_small", train_small<kM, A>, shape_for(task), static_cast<cudaStream_t>(l.stream), p, task,
           l.step_scale, static_cast<char*>(l.workspace));
}

}  // namespace

namespace cuda {

void train_small(const TrainParams& p, const Launch& l) {
    const DeviceGuard guard(l.device);
    if (!has_floors_alone(p.network)) return train_as<0, CalledActivation>(p, l);
    switch (p.network.n_hidden) {
        case 1: return train_as<1>(p, l);
        case 2: return train_as<2>(p, l);
        case 3: return train_as<3>(p, l);
        case 4: return train_as<4>(p, l);
        case 5: return train_as<5>(p, l);
        case 6: return train_as<6>(p, l);
        case 7: return train_as<7>(p, l);
        case 8: return train_as<8>(p, l);
        default: return train_as<0>(p, l);
    }
}

void evaluate_small(const EvaluateParams& p, const Launch& l) {
    const DeviceGuard guard(l.device);
    const SmallTask task = small_task(p, l);
    const auto kernel = has_floors_alone(p.network) ? toykern::evaluate_small<FloorActivation<float>>
                                                    : toykern::evaluate_small<CalledActivation>;
    launch("evaluate_small", kernel, shape_for(task), static_cast<cudaStream_t>(l.stream), p, task,
           static_cast<char*>(l.workspace));
}

}  // namespace cuda
}  // namespace toykern
