// Which of the layer's loops takes a call. The one place where it is picked, by shapes and options alone.
#pragma once
#include "cpu/layer/models.inl"
#include "cpu/layer/samples.inl"

namespace toykern {
namespace TOYKERN_LEVEL {

inline LayerRegime pick_layer_regime(const LayerParams& p) {
    if (layer_models_fit(p)) return {"models", kLanes, no_shared_bytes, layer_models_bytes, run_layer_models};
    if (layer_columns_fit(p)) return {"columns", 1, no_shared_bytes, layer_columns_bytes, run_layer_columns};
    if (layer_samples_fit(p))
        return {"samples", 1, no_shared_bytes, p.is_double ? layer_samples_bytes<double> : layer_samples_bytes<float>,
                p.is_double ? run_layer_samples<double> : run_layer_samples<float>};
    if (p.is_double)
        return {"blocks", 1, LayerOf<double>::shared_bytes, LayerOf<double>::room_bytes, LayerOf<double>::run};
    return {"blocks", 1, LayerOf<float>::shared_bytes, LayerOf<float>::room_bytes, LayerOf<float>::run};
}

}  // namespace TOYKERN_LEVEL
}  // namespace toykern
