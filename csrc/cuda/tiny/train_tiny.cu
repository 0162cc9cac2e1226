// Launching the tiny regime: train_tiny.cuh.
#include "cuda/tiny/train_tiny.cuh"

#include "cuda/launch.h"
#include "cuda/regimes.h"

namespace toykern {

using namespace device_side;

namespace {

constexpr int kWarps = 2;  // of a block
constexpr int kThreads = kWarpLanes * kWarps;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kLargestDense = 8;  // ptxas needs a few registers more there
#else
constexpr int kLargestDense = 10;
#endif
// Blocks to be resident on a multiprocessor: what keeps registers from spilling at each size.
template <int N, int M>
constexpr int kResident = N * M <= kLargestDense ? 8 : 6;

// Calls body(warp, its shared memory, its pair of models).
template <class Room, class Body>
__device__ __forceinline__ void with_pair(Room* rooms, int64_t n_models, const Body& body) {
    const int number = (int)threadIdx.x / kWarpLanes;
    const uint32_t pair = blockIdx.x * kWarps + number;
    if (2 * (int64_t)pair < n_models) body(Warp{(int)threadIdx.x % kWarpLanes, number}, rooms[number], pair);
}

template <int N, int M>
__global__ void __launch_bounds__(kThreads, kResident<N, M>)
    train_tiny(const __grid_constant__ TrainParams p, const __grid_constant__ TinyTask task, const double* step_scale) {
    __shared__ TinyRoom<N, M> rooms[kWarps];
    with_pair(rooms, p.n_models, [&](const Warp& w, TinyRoom<N, M>& room, uint32_t pair) {
        train_tiny_pair<N, M>(w, p, task, step_scale, room, pair);
    });
}

template <int N, int M>
__global__ void __launch_bounds__(kThreads, kResident<N, M>)
    evaluate_tiny(const __grid_constant__ EvaluateParams p, const __grid_constant__ TinyTask task) {
    __shared__ TinyRoom<N, M> rooms[kWarps];
    with_pair(rooms, p.n_models, [&](const Warp& w, TinyRoom<N, M>& room, uint32_t pair) {
        evaluate_tiny_pair<N, M>(w, p, task, room, pair);
    });
}

// One block for every kWarps pairs of models.
LaunchShape shape_for(int64_t n_models) {
    LaunchShape shape;
    shape.grid = ((n_models + 1) / 2 + kWarps - 1) / kWarps;
    shape.block = kThreads;
    return shape;
}

template <int N, int M>
struct Train {
    static void run(const TrainParams& p, const Launch& l) {
        launch("train_tiny", train_tiny<N, M>, shape_for(p.n_models), static_cast<cudaStream_t>(l.stream), p,
               tiny_task(p, l, p.order), l.step_scale);
    }
};

template <int N, int M>
struct Evaluate {
    static void run(const EvaluateParams& p, const Launch& l) {
        launch("evaluate_tiny", evaluate_tiny<N, M>, shape_for(p.n_models), static_cast<cudaStream_t>(l.stream), p,
               tiny_task(p, l, nullptr));
    }
};

}  // namespace

namespace cuda {

void train_tiny(const TrainParams& p, const Launch& l) {
    const DeviceGuard guard(l.device);
    for_tiny_shape<Train>(p.network, p, l);
}

void evaluate_tiny(const EvaluateParams& p, const Launch& l) {
    const DeviceGuard guard(l.device);
    for_tiny_shape<Evaluate>(p.network, p, l);
}

}  // namespace cuda
}  // namespace toykern
