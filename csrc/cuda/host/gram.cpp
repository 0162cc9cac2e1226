// The Gram form's device source run on the host, lanes in lock step.
#include "cuda/gram/train_gram.cuh"

#include "cuda/host/memory.h"
#include "cuda/regimes.h"

namespace toykern {

bool gram_trains(const Network& network, int64_t batch_size, int64_t shared_limit) {
    return gram_fits(network, batch_size, shared_limit);
}

size_t gram_workspace(const Network& network, int64_t n_models) {
    const int64_t blocks = n_models < kSmallWorkspaceBlocks ? n_models : kSmallWorkspaceBlocks;
    return (size_t)gram_shape(network).small.workspace_bytes * (size_t)blocks;
}

namespace host {

using namespace host_side;

void train_gram(const TrainParams& p, const Launch& launch) {
    const GramTask task = gram_task(p, launch);
    host_each(2, [&](int block) {  // each takes every second model
        const Memory shared = memory_of(task.shape.small.shared_bytes),
                     workspace = memory_of(task.shape.small.workspace_bytes);
        const GramRoom room = {{task.shape.small, shared.get()}, task.shape};
        room.exchange().workspace = workspace.get();
        Block b;
        b.threads = task.shape.small.threads();
        for (int64_t i = block; i < p.n_models; i += 2)
            train_gram_model(b, p, task.task, launch.step_scale, room, p.order ? p.order[i] : i);
    });
}

}  // namespace host
}  // namespace toykern
