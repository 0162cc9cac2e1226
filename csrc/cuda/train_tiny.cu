// Launching the tiny regime: train_tiny.cuh.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/regimes.h"
#include "cuda/train_tiny.cuh"

namespace toykern {

using namespace device_side;

namespace {

constexpr int kWarps = 2;                // of a block
constexpr int64_t kBlocksByRows = 4096;  // at a time, where batches lie in device memory
constexpr int kThreads = kWarpLanes * kWarps;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kLargestDense = 8;  // ptxas needs a few registers more there
#else
constexpr int kLargestDense = 10;
#endif
// Blocks to be resident on a multiprocessor: what keeps registers from spilling at each size.
template <int N, int M>
constexpr int kResident = N * M <= kLargestDense ? 8 : 6;

// Calls body(warp, its shared memory, its rows, a pair of models) for all pairs.
template <class Room, class Body>
__device__ __forceinline__ void over_pairs(Room* rooms, float* rows, int64_t row_floats, int64_t n_models,
                                           const Body& body) {
    const int number = (int)threadIdx.x / kWarpLanes;
    const Warp w = {(int)threadIdx.x % kWarpLanes, number};
    const uint32_t first = blockIdx.x * kWarps + number;
    for (uint32_t pair = first; 2 * (int64_t)pair < n_models; pair += gridDim.x * kWarps)
        body(w, rooms[number], rows + first * row_floats, pair);
}

// kAny: some model's batches are drawn as rows, in `rows`.
template <int N, int M, bool kAny>
__global__ void __launch_bounds__(kThreads, kResident<N, M>)
    train_tiny(const __grid_constant__ TrainParams p, const __grid_constant__ TinyTask task, const double* step_scale,
               float* rows) {
    __shared__ TinyRoom<N, M> rooms[kWarps];
    over_pairs(rooms, rows, 2 * p.batch_size * N, p.n_models,
               [&](const Warp& w, TinyRoom<N, M>& room, float* own_rows, uint32_t pair) {
                   train_tiny_pair<N, M, kAny>(w, p, task, step_scale, room, own_rows, pair);
               });
}

// One for all distributions: an evaluation is short.
template <int N, int M>
__global__ void __launch_bounds__(kThreads, kResident<N, M>)
    evaluate_tiny(const __grid_constant__ EvaluateParams p, const __grid_constant__ TinyTask task, float* rows) {
    __shared__ TinyRoom<N, M> rooms[kWarps];
    over_pairs(rooms, rows, 2 * p.batch_size * N, p.n_models,
               [&](const Warp& w, TinyRoom<N, M>& room, float* own_rows, uint32_t pair) {
                   evaluate_tiny_pair<N, M, true>(w, p, task, room, own_rows, pair);
               });
}

bool any_by_rows(const Launch& l, float noise) { return l.mixed || !l.layout.plain || noise > 0.0f; }

// One block for every kWarps pairs of models; where warps need rows of their own, no more than there is room for.
LaunchShape shape_for(int64_t n_models, bool any) {
    LaunchShape shape;
    shape.grid = ((n_models + 1) / 2 + kWarps - 1) / kWarps;
    if (any) shape.grid = std::min(shape.grid, kBlocksByRows);
    shape.block = kThreads;
    return shape;
}

template <class Params>
TinyTask task_of(const Params& p, const Launch& l, const int64_t* order) {
    return {p.network,
            p.data,
            l.layout,
            l.tables,
            l.tables_stride,
            p.n_models,
            p.batch_size,
            p.seed,
            p.importance,
            p.importance_stride,
            order,
            pass_options(p.network),
            tiny_mean_factor(p.network, p.batch_size)};
}

template <int N, int M>
struct Train {
    static void run(const TrainParams& p, const Launch& l) {
        const bool any = any_by_rows(l, p.data.noise);
        launch("train_tiny", any ? train_tiny<N, M, true> : train_tiny<N, M, false>, shape_for(p.n_models, any),
               static_cast<cudaStream_t>(l.stream), p, task_of(p, l, p.order), l.step_scale,
               static_cast<float*>(l.workspace));
    }
};

template <int N, int M>
struct Evaluate {
    static void run(const EvaluateParams& p, const Launch& l) {
        const bool any = any_by_rows(l, p.data.noise);
        launch("evaluate_tiny", evaluate_tiny<N, M>, shape_for(p.n_models, any), static_cast<cudaStream_t>(l.stream), p,
               task_of(p, l, nullptr), static_cast<float*>(l.workspace));
    }
};

}  // namespace

namespace cuda {

size_t tiny_workspace(const Network& network, const Launch& l, int64_t n_models, int64_t batch_size, float noise) {
    if (!any_by_rows(l, noise)) return 0;
    return (size_t)(shape_for(n_models, true).grid * kWarps * 2 * batch_size * network.n_features) * sizeof(float);
}

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
