// Which loop trains a shape: the one dispatcher of both sides, the device and its source on the host.
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

DeviceRegime regime_of(const Network& network, int64_t batch_size, const Launch& launch) {
    return launch.regime < 0 ? device_regime(network, batch_size) : (DeviceRegime)launch.regime;
}

}  // namespace

namespace cuda {

const char* train_regime(const Network& network, int64_t batch_size) {
    return kNames[(int)device_regime(network, batch_size)];
}

size_t train_workspace(const TrainParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return leaves_some(p.data, launch) ? small_workspace(p.network, p.n_models) : 0;
        case DeviceRegime::kSmall: return small_workspace(p.network, p.n_models);
        default: return large_workspace(p.network, launch.layout, p.n_models, p.batch_size);
    }
}

size_t evaluate_workspace(const EvaluateParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return leaves_some(p.data, launch) ? small_workspace(p.network, p.n_models) : 0;
        case DeviceRegime::kSmall: return small_workspace(p.network, p.n_models);
        default: return large_workspace(p.network, launch.layout, p.n_models, p.batch_size);
    }
}

void train(const TrainParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny:
            train_tiny(p, launch);
            if (leaves_some(p.data, launch)) train_small(p, the_rest(launch));
            return;
        case DeviceRegime::kSmall: return train_small(p, launch);
        default: return train_large(p, launch);
    }
}

void evaluate(const EvaluateParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny:
            evaluate_tiny(p, launch);
            if (leaves_some(p.data, launch)) evaluate_small(p, the_rest(launch));
            return;
        case DeviceRegime::kSmall: return evaluate_small(p, launch);
        default: return evaluate_large(p, launch);
    }
}

}  // namespace cuda

namespace host {

void train(const TrainParams& p, const Launch& launch, bool descending) {
    const host_side::HostOrder order(descending);
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny:
            train_tiny(p, launch);
            if (leaves_some(p.data, launch)) train_small(p, the_rest(launch));
            return;
        case DeviceRegime::kSmall: return train_small(p, launch);
        default: return train_large(p, launch);
    }
}

void evaluate(const EvaluateParams& p, const Launch& launch, bool descending) {
    const host_side::HostOrder order(descending);
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny:
            evaluate_tiny(p, launch);
            if (leaves_some(p.data, launch)) evaluate_small(p, the_rest(launch));
            return;
        case DeviceRegime::kSmall: return evaluate_small(p, launch);
        default: return evaluate_large(p, launch);
    }
}

}  // namespace host
}  // namespace toykern
