// Which loop trains a shape: the one dispatcher of both sides, the device and its source on the host.
#include "cuda/regimes.h"
#include "cuda/warp.h"

namespace toykern {
namespace {

const char* const kNames[] = {"tiny", "small", "large"};

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
        case DeviceRegime::kTiny: return tiny_workspace(p.network, launch, p.n_models, p.batch_size, p.data.noise);
        case DeviceRegime::kSmall: return small_workspace(p.network, p.n_models);
        default: return large_workspace(p.network, launch.layout, p.n_models, p.batch_size);
    }
}

size_t evaluate_workspace(const EvaluateParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return tiny_workspace(p.network, launch, p.n_models, p.batch_size, p.data.noise);
        case DeviceRegime::kSmall: return small_workspace(p.network, p.n_models);
        default: return large_workspace(p.network, launch.layout, p.n_models, p.batch_size);
    }
}

void train(const TrainParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return train_tiny(p, launch);
        case DeviceRegime::kSmall: return train_small(p, launch);
        default: return train_large(p, launch);
    }
}

void evaluate(const EvaluateParams& p, const Launch& launch) {
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return evaluate_tiny(p, launch);
        case DeviceRegime::kSmall: return evaluate_small(p, launch);
        default: return evaluate_large(p, launch);
    }
}

}  // namespace cuda

namespace host {

void train(const TrainParams& p, const Launch& launch, bool descending) {
    const host_side::HostOrder order(descending);
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return train_tiny(p, launch);
        case DeviceRegime::kSmall: return train_small(p, launch);
        default: return train_large(p, launch);
    }
}

void evaluate(const EvaluateParams& p, const Launch& launch, bool descending) {
    const host_side::HostOrder order(descending);
    switch (regime_of(p.network, p.batch_size, launch)) {
        case DeviceRegime::kTiny: return evaluate_tiny(p, launch);
        case DeviceRegime::kSmall: return evaluate_small(p, launch);
        default: return evaluate_large(p, launch);
    }
}

}  // namespace host
}  // namespace toykern
