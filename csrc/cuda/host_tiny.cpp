// The tiny regime's device source run on the host, lanes in lock step.
#include <cmath>
#include <memory>
#include <vector>

#include "cuda/regimes.h"
#include "cuda/train_tiny.cuh"

namespace toykern {
namespace host {

using namespace host_side;

namespace {

template <class Params>
TinyTask task_of(const Params& p, const Launch& launch, const int64_t* order) {
    return {p.network,
            p.data,
            launch.layout,
            launch.tables,
            launch.tables_stride,
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
    static void run(const TrainParams& p, const Launch& launch) {
        const TinyTask task = task_of(p, launch, p.order);
        std::vector<float> rows((size_t)(2 * p.batch_size * N));
        host_each((int)((p.n_models + 1) / 2), [&](int pair) {
            const auto room = std::make_unique<TinyRoom<N, M>>();
            train_tiny_pair<N, M, true>(Warp{}, p, task, launch.step_scale, *room, rows.data(), (uint32_t)pair);
        });
    }
};

template <int N, int M>
struct Evaluate {
    static void run(const EvaluateParams& p, const Launch& launch) {
        const TinyTask task = task_of(p, launch, nullptr);
        std::vector<float> rows((size_t)(2 * p.batch_size * N));
        host_each((int)((p.n_models + 1) / 2), [&](int pair) {
            const auto room = std::make_unique<TinyRoom<N, M>>();
            evaluate_tiny_pair<N, M, true>(Warp{}, p, task, *room, rows.data(), (uint32_t)pair);
        });
    }
};

}  // namespace

void train_tiny(const TrainParams& p, const Launch& launch) { for_tiny_shape<Train>(p.network, p, launch); }
void evaluate_tiny(const EvaluateParams& p, const Launch& launch) { for_tiny_shape<Evaluate>(p.network, p, launch); }

}  // namespace host
}  // namespace toykern
