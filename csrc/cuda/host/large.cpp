// train_large.cuh run on the host, for the tests: blocks one after the other, each with shared memory of exactly the
// size it asks for.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/large/train_large.cuh"
#include "toykern/api.h"

namespace toykern {

using namespace host_side;

namespace {

struct HostQueue {
    template <class Kernel>
    void put(const LargeTask& t) const {
        const int64_t blocks = Kernel::blocks(t) * t.models;
        for (int64_t i = 0; i < blocks; ++i) {
            const std::unique_ptr<double[]> shared(new double[(size_t)(Kernel::kShared + 7) / 8]);
            Kernel::run(Block{0, Kernel::kThreads}, t, host_descending() ? blocks - 1 - i : i,
                        reinterpret_cast<char*>(shared.get()));
        }
    }
    template <class Step>
    void repeat(int64_t times, const Step& step) const {
        for (int64_t i = 0; i < times; ++i) step(*this);
    }
};

// In memory of its own where the launch brings none: of workspace_bytes, or as much as a device would be asked for.
// Nothing in it is a number.
void run(LargeTask task, const Launch& launch) {
    const uint64_t bytes = launch.workspace_bytes ? launch.workspace_bytes : large_bytes(task.size, task.p.n_models);
    const int64_t group = large_group(task.size, bytes, task.p.n_models);
    if (group < 1 && task.p.n_models > 0)
        throw OutOfMemory("one model of this shape and batch size needs " + std::to_string(large_bytes(task.size, 1)) +
                          " bytes of workspace");
    std::unique_ptr<char[]> own;
    if (!launch.workspace) {
        const uint64_t used = kHeaderBytes + (uint64_t)group * task.size.slot_bytes;
        own.reset(new char[used + 256]);
        std::memset(own.get(), 0xFF, used + 256);
        const auto at = reinterpret_cast<uintptr_t>(own.get()) + used + 256;
        task.workspace = reinterpret_cast<char*>(at / 256 * 256 - used);  // its end is the end of what was allocated
    }
    queue_large(task, group, HostQueue());
}

}  // namespace

namespace cuda {

size_t large_workspace(const Network& network, const TablesLayout&, int64_t n_models, int64_t batch_size) {
    return large_bytes(large_sizes(network, batch_size), n_models);
}

}  // namespace cuda

namespace host {

void train_large(const TrainParams& p, const Launch& launch) { run(large_task(p, launch), launch); }
void evaluate_large(const EvaluateParams& p, const Launch& launch) { run(large_task(p, launch), launch); }

}  // namespace host
}  // namespace toykern
