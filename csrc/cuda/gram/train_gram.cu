// Launching the Gram form: train_gram.cuh.
#include "cuda/gram/train_gram.cuh"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/regimes.h"

namespace toykern {

using namespace device_side;

namespace {

constexpr int kBlocks = 1 << 16;  // at a time, where none needs a workspace: they go through the models from theirs on
constexpr int kResident = 16;     // blocks on a multiprocessor as far as registers go: 128 for each thread

__global__ void __launch_bounds__(kWarpLanes, kResident)
    train_gram(const __grid_constant__ TrainParams p, const __grid_constant__ GramTask task, const double* step_scale,
               char* workspace) {
    const Block b = {(int)threadIdx.x, (int)blockDim.x};
    const GramRoom room = {{task.shape.small}, task.shape};
    if (threadIdx.x == 0) room.exchange().workspace = workspace + (size_t)blockIdx.x * task.shape.small.workspace_bytes;
    for (int64_t i = blockIdx.x; i < task.task.n_models; i += gridDim.x)
        train_gram_model(b, p, task.task, step_scale, room, p.order ? p.order[i] : i);
}

}  // namespace

namespace cuda {

void train_gram(const TrainParams& p, const Launch& l) {
    const DeviceGuard guard(l.device);
    const GramTask task = gram_task(p, l);
    LaunchShape shape;
    shape.grid = std::min<int64_t>(p.n_models, task.shape.small.workspace_bytes ? kSmallWorkspaceBlocks : kBlocks);
    shape.block = task.shape.small.threads();
    shape.shared_bytes = task.shape.small.shared_bytes;
    launch("train_gram", toykern::train_gram, shape, static_cast<cudaStream_t>(l.stream), p, task, l.step_scale,
           static_cast<char*>(l.workspace));
}

}  // namespace cuda
}  // namespace toykern
