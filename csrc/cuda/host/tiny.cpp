// The tiny regime's device source run on the host, lanes in lock step.
#include <cmath>
#include <memory>

#include "cuda/regimes.h"
#include "cuda/tiny/train_tiny.cuh"

namespace toykern {
namespace host {

using namespace host_side;

namespace {

template <int N, int M>
struct Train {
    static void run(const TrainParams& p, const Launch& launch) {
        const TinyTask task = tiny_task(p, launch, p.order);
        host_each((int)((p.n_models + 1) / 2), [&](int pair) {
            const auto room = std::make_unique<TinyRoom<N, M>>();
            train_tiny_pair<N, M>(Warp{}, p, task, launch.step_scale, *room, (uint32_t)pair);
        });
    }
};

template <int N, int M>
struct Evaluate {
    static void run(const EvaluateParams& p, const Launch& launch) {
        const TinyTask task = tiny_task(p, launch, nullptr);
        host_each((int)((p.n_models + 1) / 2), [&](int pair) {
            const auto room = std::make_unique<TinyRoom<N, M>>();
            evaluate_tiny_pair<N, M>(Warp{}, p, task, *room, (uint32_t)pair);
        });
    }
};

}  // namespace

void train_tiny(const TrainParams& p, const Launch& launch) { for_tiny_shape<Train>(p.network, p, launch); }
void evaluate_tiny(const EvaluateParams& p, const Launch& launch) { for_tiny_shape<Evaluate>(p.network, p, launch); }

}  // namespace host
}  // namespace toykern
