// Launching the sparse layers' kernels: cuda/sparse/dense.cuh, cuda/sparse/slots.cuh, cuda/sparse/slots_gradient.cuh,
// cuda/sparse/groups.cuh.
#include "cuda/launch.h"
#include "cuda/sparse/launches.cuh"

namespace toykern {

using namespace device_side;

namespace {

template <class Kernel, class Task, int kThreads, int kResident>
__global__ void __launch_bounds__(kThreads, kResident) sparse(const __grid_constant__ Task t) {
    extern __shared__ __align__(16) char shared[];
    Kernel::run(Block{(int)threadIdx.x, (int)blockDim.x}, t, (int64_t)blockIdx.x, shared);
}

// Blocks of a multiprocessor that the registers must suffice for, and the most threads of each.
template <class Kernel>
struct Residence {
    static constexpr int kThreads = Kernel::kThreads, kResident = 1024 / Kernel::kThreads;
};
template <class T>
struct Residence<SlotsProduct<T>> {
    static constexpr int kThreads = kSlotsWarps * kWarpLanes,
                         kResident = sizeof(typename Stored<T>::Computed) == 4 ? 2 : 1;
};

struct DeviceQueue {
    cudaStream_t stream;

    template <class Kernel, class Task>
    void put(const Task& t, int64_t blocks, int threads, int64_t shared_bytes) const {
        using R = Residence<Kernel>;
        LaunchShape shape;
        shape.grid = blocks;
        shape.block = threads;
        shape.shared_bytes = shared_bytes;
        launch(Kernel::kName, sparse<Kernel, Task, R::kThreads, R::kResident>, shape, stream, t);
    }
};

DeviceQueue queue_of(const SparseLaunch& l) { return {static_cast<cudaStream_t>(l.stream)}; }

}  // namespace

namespace cuda {

void sparse_scatter(const SparseDense& t, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_sparse_scatter(queue_of(l), t);
}
void sparse_gather(const SparseDense& t, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_sparse_gather(queue_of(l), t);
}
void sparse_group_inputs(const SparseGroups& t, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_sparse_group_inputs(queue_of(l), t);
}
void sparse_group_inputs_gradient(const SparseGroups& t, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_sparse_group_inputs_gradient(queue_of(l), t);
}
void sparse_slots_forward(const SparseLinearParams& p, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_slots_forward(queue_of(l), p, l.shared_limit);
}
void sparse_slots_input_gradient(const SparseLinearParams& p, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_slots_input_gradient(queue_of(l), p, l.shared_limit);
}
void sparse_slots_values_gradient(const SparseLinearParams& p, const SparseLaunch& l) {
    const DeviceGuard guard(l.device);
    queue_slots_values_gradient(queue_of(l), p, l.workspace);
}

}  // namespace cuda
}  // namespace toykern
