// The sparse layers' device source run on the host, for the tests: blocks one after the other, each with shared memory
// of its own, in which nothing is a number.
#include <cstring>
#include <memory>
#include <stdexcept>

#include "cuda/sparse/launches.cuh"

namespace toykern {

using namespace host_side;

namespace {

struct HostQueue {
    int64_t shared_limit;

    template <class Kernel, class Task>
    void put(const Task& t, int64_t blocks, int threads, int64_t shared_bytes) const {
        if (shared_bytes > shared_limit) throw std::logic_error("a block takes more shared memory than there is");
        for (int64_t i = 0; i < blocks; ++i) {
            const std::unique_ptr<double[]> shared(new double[(size_t)(shared_bytes + 15) / 16 * 2 + 2]);
            // Aligned as dynamic shared memory is.
            char* memory = reinterpret_cast<char*>(shared.get());
            memory += (16 - reinterpret_cast<uintptr_t>(memory) % 16) % 16;
            std::memset(memory, 0xFF, (size_t)shared_bytes);
            Kernel::run(Block{0, threads}, t, host_descending() ? blocks - 1 - i : i, memory);
        }
    }
};

}  // namespace

size_t sparse_slots_workspace(const SparseLinearParams& p) {
    const SparseTopology& c = p.topology;
    const int64_t splits = slots_splits(c.capacity, p.batch_size);
    const size_t bytes = p.scalar == (int32_t)Scalar::kFloat64 ? 8 : 4;
    return splits > 1 ? (size_t)(splits * c.n_models * c.capacity) * bytes : 0;
}

namespace host {

void sparse_scatter(const SparseDense& t, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_sparse_scatter(HostQueue{l.shared_limit}, t);
}
void sparse_gather(const SparseDense& t, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_sparse_gather(HostQueue{l.shared_limit}, t);
}
void sparse_group_inputs(const SparseGroups& t, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_sparse_group_inputs(HostQueue{l.shared_limit}, t);
}
void sparse_group_inputs_gradient(const SparseGroups& t, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_sparse_group_inputs_gradient(HostQueue{l.shared_limit}, t);
}
void sparse_slots_forward(const SparseLinearParams& p, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_slots_forward(HostQueue{l.shared_limit}, p, l.shared_limit);
}
void sparse_slots_input_gradient(const SparseLinearParams& p, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_slots_input_gradient(HostQueue{l.shared_limit}, p, l.shared_limit);
}
void sparse_slots_values_gradient(const SparseLinearParams& p, const SparseLaunch& l, bool descending) {
    const HostOrder order(descending);
    queue_slots_values_gradient(HostQueue{l.shared_limit}, p, l.workspace);
}

}  // namespace host
}  // namespace toykern
