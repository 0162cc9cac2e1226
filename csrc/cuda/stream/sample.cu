// Launching the draw of whole batches as rows: sample.cuh.
#include "cuda/stream/sample.cuh"

#include <algorithm>

#include "cuda/launch.h"

namespace toykern {

using namespace device_side;

namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpLanes;

// Slices of rare and of frequent units, `blocks` blocks of warps to a model.
__global__ void __launch_bounds__(kThreads, 4) sample_units(const __grid_constant__ SampleTask t, int64_t blocks) {
    const int number = (int)threadIdx.x / kWarpLanes;
    const Warp w = {(int)threadIdx.x % kWarpLanes, number};
    const int64_t model = blockIdx.x / blocks, task = blockIdx.x % blocks * kWarps + number, stride = blocks * kWarps;
    sample_rare(w, t, model, task, stride);
    sample_frequent(w, t, model, stride - 1 - task, stride);
}

// Four entries of one lane to a thread, `groups` groups of entries (docs/data_stream.md §7) to a model.
__global__ void __launch_bounds__(kThreads) sample_noisy(const __grid_constant__ SampleTask t, int64_t groups) {
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t model = i / (16 * groups), at = i % (16 * groups);
    if (model < t.p.n_models) sample_noise(t, model, (uint64_t)(at / 16), (uint32_t)(at % 16));
}

}  // namespace

namespace cuda {

void sample(const SampleParams& p, const Launch& l) {
    const DeviceGuard guard(l.device);
    const auto stream = static_cast<cudaStream_t>(l.stream);
    const int64_t entries = p.batch_size * p.data.n_features;
    SampleTask task = {};
    task.p = p;
    task.layout = l.layout;
    task.tables = l.tables;
    task.tables_stride = l.tables_stride;
    task.rows = p.clean ? p.clean : p.noisy;
    task.rows_stride = entries;
    check_cuda(cudaMemsetAsync(task.rows, 0, (size_t)(p.n_models * entries) * sizeof(float), stream),
               "clearing the samples");
    // About as many warps as there can be slices: one has some hundreds of active entries.
    const int64_t blocks = std::min<int64_t>(entries / (4096 * kWarps) + 1, 256);
    LaunchShape units;
    units.grid = p.n_models * blocks;
    units.block = kThreads;
    launch("sample_units", sample_units, units, stream, task, blocks);
    if (!p.noisy || (task.rows == p.noisy && p.data.noise <= 0.0f)) return;
    const int64_t groups = ((p.batch_size + 15) / 16 * p.data.n_features + 3) / 4;
    LaunchShape noise;
    noise.grid = (p.n_models * 16 * groups + kThreads - 1) / kThreads;
    noise.block = kThreads;
    launch("sample_noisy", sample_noisy, noise, stream, task, groups);
}

}  // namespace cuda
}  // namespace toykern
