// Which loop trains a shape: the one dispatcher of both sides, the device and its source on the host.
#include <algorithm>
#include <stdexcept>

#include "cuda/gram/shape.h"
#include "cuda/regimes.h"
#include "cuda/warp.h"

namespace toykern {
namespace {

const char* const kNames[] = {"tiny", "small", "large"};

// Models that the tiny regime leaves to the small one: some of them, maybe.
bool leaves_some(const Distribution& data, const Launch& launch) {
    return launch.mixed || !launch.layout.plain || data.noise > 0.0f;
}
Launch the_rest(const Launch& launch) {
    Launch rest = launch;
    rest.rows_only = true;
    return rest;
}
Launch with_gram(const Launch& launch) {
    Launch both = launch;
    both.gram = (uint8_t)(launch.regime < 0 ? GramChoice::kWhereItPays : GramChoice::kEverywhere);
    return both;
}
// Training by the small regime's shapes: models may be the Gram form's.
bool has_gram(const Network& network, int64_t batch_size, const Launch& launch) {
    return launch.regime != (int)DeviceRegime::kSmall && gram_trains(network, batch_size, launch.shared_limit);
}

DeviceRegime regime_of(const Network& network, int64_t batch_size, const Launch& launch) {
    if (launch.regime < 0) return device_regime(network, batch_size, launch.shared_limit);
    if (launch.regime == (int)DeviceRegime::kTiny && !has_floors_alone(network))
        throw std::invalid_argument("the tiny regime knows none and ReLU alone");  // it would take others for none
    return (DeviceRegime)launch.regime;
}

// Calls the loop of the shape; after the tiny one the small one, for the models that are left.
template <class Params>
void by_regime(const Params& p, const Launch& launch, void (*tiny)(const Params&, const Launch&),
               void (*small)(const Params&, const Launch&), void (*large)(const Params&, const Launch&)) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny:
            tiny(p, launch);
            if (leaves_some(p.data, launch)) small(p, the_rest(launch));
            return;
        case DeviceRegime::kSmall:
        case DeviceRegime::kGram: return small(p, launch);
        default: return large(p, launch);
    }
}

// The Gram form first, then the small loop for the models that are left.
template <void (*gram)(const TrainParams&, const Launch&), void (*small)(const TrainParams&, const Launch&)>
void gram_and_small(const TrainParams& p, const Launch& launch) {
    if (!has_gram(p.network, p.batch_size, launch) || launch.rows_only) return small(p, launch);
    gram(p, with_gram(launch));
    small(p, with_gram(launch));
}

template <class Params>
size_t workspace_for(const Params& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return leaves_some(p.data, launch) ? small_workspace(p.network, p.n_models) : 0;
        case DeviceRegime::kSmall:
        case DeviceRegime::kGram:
            return std::max(small_workspace(p.network, p.n_models),
                            has_gram(p.network, p.batch_size, launch) ? gram_workspace(p.network, p.n_models) : 0);
        default: return cuda::large_workspace(p.network, launch.layout, p.n_models, p.batch_size);
    }
}

}  // namespace

namespace cuda {

const char* train_regime(const Network& network, int64_t batch_size, int64_t shared_limit) {
    return kNames[(int)device_regime(network, batch_size, shared_limit)];
}

size_t train_workspace(const TrainParams& p, const Launch& launch) { return workspace_for(p, launch); }
size_t evaluate_workspace(const EvaluateParams& p, const Launch& launch) { return workspace_for(p, launch); }

void train(const TrainParams& p, const Launch& launch) {
    by_regime(p, launch, train_tiny, gram_and_small<train_gram, train_small>, train_large);
}
void evaluate(const EvaluateParams& p, const Launch& launch) {
    by_regime(p, launch, evaluate_tiny, evaluate_small, evaluate_large);
}

}  // namespace cuda

namespace host {

void train(const TrainParams& p, const Launch& launch, bool descending) {
    const host_side::HostOrder order(descending);
    by_regime(p, launch, train_tiny, gram_and_small<train_gram, train_small>, train_large);
}

void evaluate(const EvaluateParams& p, const Launch& launch, bool descending) {
    const host_side::HostOrder order(descending);
    by_regime(p, launch, evaluate_tiny, evaluate_small, evaluate_large);
}

}  // namespace host
}  // namespace toykern
