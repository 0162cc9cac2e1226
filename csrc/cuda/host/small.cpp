// The small regime's device source run on the host, lanes in lock step.
#include "cuda/host/memory.h"
#include "cuda/regimes.h"
#include "cuda/small/train_small.cuh"

namespace toykern {

size_t small_shared_bytes(const Network& network) { return small_shape(network).shared_bytes; }

size_t small_workspace(const Network& network, int64_t n_models) {
    const int64_t blocks = n_models < kSmallWorkspaceBlocks ? n_models : kSmallWorkspaceBlocks;
    return (size_t)small_shape(network).workspace_bytes * (size_t)blocks;
}

namespace host {

using namespace host_side;

namespace {

// Two blocks, each in memory of its own, take every second model.
template <class Run>
void run(const SmallTask& task, const Run& run_model) {
    host_each(2, [&](int block) {
        const Memory shared = memory_of(task.shape.shared_bytes), workspace = memory_of(task.shape.workspace_bytes);
        const SmallRoom room = {task.shape, shared.get()};
        room.exchange().workspace = workspace.get();
        Block b;
        b.threads = task.shape.threads();
        for (int64_t i = block; i < task.n_models; i += 2) run_model(b, room, i);
    });
}

template <int kM, class A = FloorActivation<float>>
void train_as(const TrainParams& p, const Launch& launch) {
    const SmallTask task = small_task(p, launch);
    run(task, [&](const Block& b, const SmallRoom& room, int64_t i) {
        train_small_model<kM, A>(b, p, task, launch.step_scale, room, p.order ? p.order[i] : i);
    });
}

}  // namespace

void train_small(const TrainParams& p, const Launch& launch) {
    if (!has_floors_alone(p.network)) return train_as<0, CalledActivation>(p, launch);
    switch (p.network.n_hidden) {
        case 1: return train_as<1>(p, launch);
        case 2: return train_as<2>(p, launch);
        case 3: return train_as<3>(p, launch);
        case 4: return train_as<4>(p, launch);
        case 5: return train_as<5>(p, launch);
        case 6: return train_as<6>(p, launch);
        case 7: return train_as<7>(p, launch);
        case 8: return train_as<8>(p, launch);
        default: return train_as<0>(p, launch);
    }
}

void evaluate_small(const EvaluateParams& p, const Launch& launch) {
    const SmallTask task = small_task(p, launch);
    run(task, [&](const Block& b, const SmallRoom& room, int64_t i) {
        has_floors_alone(p.network) ? evaluate_small_model<FloorActivation<float>>(b, p, task, room, i)
                                    : evaluate_small_model<CalledActivation>(b, p, task, room, i);
    });
}

}  // namespace host
}  // namespace toykern
