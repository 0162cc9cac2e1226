// Sampling by the device's source run on the host, lanes in lock step.
#include <algorithm>

#include "cuda/stream/sample.cuh"

namespace toykern {
namespace host {

using namespace host_side;

void sample(const SampleParams& p, const Launch& launch, bool descending) {
    const HostOrder order(descending);
    const int64_t entries = p.batch_size * p.data.n_features;
    SampleTask task = {p, launch.layout, launch.tables, launch.tables_stride, p.clean ? p.clean : p.noisy, entries};
    std::fill_n(task.rows, p.n_models * entries, 0.0f);
    host_each((int)p.n_models, [&](int model) {
        const Warp w;
        for (int64_t warp = 0; warp < 2; ++warp) {
            sample_rare(w, task, model, warp, 2);
            sample_frequent(w, task, model, warp, 2);
        }
        const int64_t groups = ((p.batch_size + 15) / 16 * p.data.n_features + 3) / 4;
        for (int64_t g = 0; p.noisy && p.data.noise > 0.0f && g < groups; ++g)
            for (uint32_t lane = 0; lane < 16; ++lane) sample_noise(task, model, (uint64_t)g, lane);
    });
}

}  // namespace host
}  // namespace toykern
