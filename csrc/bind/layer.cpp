// The binding of the autoencoder layer.
#include <limits>

#include "bind/bind.h"
#include "bind/checks.h"
#include "common/activation.h"
#include "toykern/api.h"

namespace py = pybind11;

namespace toykern {
namespace {

// Sizes and strides that a call can be made with; what an address leads to is for Python to know.
void check(const LayerParams& p) {
    check_range("task", p.task, 0, (int64_t)LayerTask::kBackward);
    check_range("hidden_activation", p.hidden_activation, 0, last_number(kActivationNames));
    check_range("output_activation", p.output_activation, 0, last_number(kActivationNames));
    check_option("hidden_activation", p.hidden_activation, p.hidden_option);
    check_option("output_activation", p.output_activation, p.output_option);
    check_range("loss_function", p.loss_function, 0, last_number(kLossNames));
    check_range("target", p.target, 0, last_number(kTargetNames));
    check_elements("n_models, n_hidden, n_features", p.n_models, p.n_hidden, p.n_features);
    check_range("batch", p.batch, 0, kMostSamples);
    if (p.batch) check_elements("n_models, batch, n_features", p.n_models, p.batch, p.n_features);
    check_range("top_k", p.top_k, 0, p.n_hidden);
    check_address("encoder", p.encoder);
    check_address("decoder", p.decoder, !p.tied);
    if (p.batch && !p.x) check_address("x or row_start", p.row_start);
    check_stride("x_stride", p.x_stride, p.batch * p.n_features);
    check_stride("row_stride", p.row_stride, p.batch);
    check_stride("importance_stride", p.importance_stride, p.n_features);
    check_stride("l1_stride", p.l1_stride, 1);
    check_stride("target_stride", p.target_stride, p.batch * p.n_features);
    if ((LayerTask)p.task == LayerTask::kLoss) check_address("loss", p.loss);
}

template <class T>
bool are_weights(const T* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (!(values[i] >= 0 && values[i] <= std::numeric_limits<T>::max())) return false;
    return true;
}

// A call of planned sizes and options with tensors of its own: of each the address, 0 where there is none. What is
// planned stays as it is, so that calls may go side by side.
void run_planned(const LayerParams& planned, int threads, uintptr_t encoder, uintptr_t decoder, uintptr_t bias,
                 uintptr_t hidden_bias, uintptr_t x, uintptr_t value, uintptr_t row_start, uintptr_t feature,
                 uintptr_t importance, int64_t importance_stride, uintptr_t l1, uintptr_t loss, uintptr_t output,
                 uintptr_t output_grad, uintptr_t encoder_grad, uintptr_t decoder_grad, uintptr_t bias_grad,
                 uintptr_t hidden_bias_grad) {
    LayerParams p = planned;
    p.threads = threads;
    p.encoder = pointer<const void>(encoder);
    p.decoder = pointer<const void>(decoder);
    p.bias = pointer<const void>(bias);
    p.hidden_bias = pointer<const void>(hidden_bias);
    p.x = pointer<const void>(x);
    p.row_start = pointer<const int64_t>(row_start);
    p.feature = pointer<const int32_t>(feature);
    p.value = pointer<const void>(value);
    p.importance = pointer<const void>(importance);
    p.importance_stride = importance_stride;
    p.l1 = pointer<const void>(l1);
    p.loss = pointer<void>(loss);
    p.output = pointer<void>(output);
    p.output_grad = pointer<const void>(output_grad);
    p.encoder_grad = pointer<void>(encoder_grad);
    p.decoder_grad = pointer<void>(decoder_grad);
    p.bias_grad = pointer<void>(bias_grad);
    p.hidden_bias_grad = pointer<void>(hidden_bias_grad);
    check(p);
    const Unlocked release;
    run_layer(p);
}

}  // namespace

void bind_layer(py::module_& m) {
    m.def("slope_from_output", &slope_from_output, py::arg("activation"),
          "Whether an activation's slope follows from its output.");
    py::class_<LayerParams> p(m, "LayerParams");
    p.def(py::init([] { return LayerParams{}; }))
        .def_readwrite("task", &LayerParams::task)
        .def_readwrite("is_double", &LayerParams::is_double)
        .def_readwrite("tied", &LayerParams::tied)
        .def_readwrite("hidden_activation", &LayerParams::hidden_activation)
        .def_readwrite("output_activation", &LayerParams::output_activation)
        .def_readwrite("hidden_option", &LayerParams::hidden_option)
        .def_readwrite("output_option", &LayerParams::output_option)
        .def_readwrite("loss_function", &LayerParams::loss_function)
        .def_readwrite("target", &LayerParams::target)
        .def_readwrite("top_k", &LayerParams::top_k)
        .def_readwrite("n_models", &LayerParams::n_models)
        .def_readwrite("batch", &LayerParams::batch)
        .def_readwrite("n_features", &LayerParams::n_features)
        .def_readwrite("n_hidden", &LayerParams::n_hidden)
        .def_readwrite("threads", &LayerParams::threads)
        .def_readwrite("x_stride", &LayerParams::x_stride)
        .def_readwrite("row_stride", &LayerParams::row_stride)
        .def_readwrite("value_grad_stride", &LayerParams::value_grad_stride)
        .def_readwrite("target_stride", &LayerParams::target_stride)
        .def_readwrite("importance_stride", &LayerParams::importance_stride)
        .def_readwrite("l1_stride", &LayerParams::l1_stride)
        .def_readwrite("loss_scale", &LayerParams::loss_scale)
        .def_readwrite("l1_scale", &LayerParams::l1_scale);
    bind_pointer(p, "encoder", &LayerParams::encoder);
    bind_pointer(p, "decoder", &LayerParams::decoder);
    bind_pointer(p, "bias", &LayerParams::bias);
    bind_pointer(p, "hidden_bias", &LayerParams::hidden_bias);
    bind_pointer(p, "x", &LayerParams::x);
    bind_pointer(p, "row_start", &LayerParams::row_start);
    bind_pointer(p, "feature", &LayerParams::feature);
    bind_pointer(p, "value", &LayerParams::value);
    bind_pointer(p, "target_values", &LayerParams::target_values);
    bind_pointer(p, "importance", &LayerParams::importance);
    bind_pointer(p, "l1", &LayerParams::l1);
    bind_pointer(p, "output", &LayerParams::output);
    bind_pointer(p, "output_grad", &LayerParams::output_grad);
    bind_pointer(p, "loss", &LayerParams::loss);
    bind_pointer(p, "encoder_grad", &LayerParams::encoder_grad);
    bind_pointer(p, "decoder_grad", &LayerParams::decoder_grad);
    bind_pointer(p, "bias_grad", &LayerParams::bias_grad);
    bind_pointer(p, "hidden_bias_grad", &LayerParams::hidden_bias_grad);
    bind_pointer(p, "x_grad", &LayerParams::x_grad);
    bind_pointer(p, "value_grad", &LayerParams::value_grad);
    bind_pointer(p, "target_grad", &LayerParams::target_grad);
    bind_pointer(p, "active", &LayerParams::active);

    m.def("check_entries",
          [](uintptr_t row_start, int64_t rows, uintptr_t feature, int64_t entries, int64_t n_features, int threads) {
              EntryFault fault;
              {
                  const Unlocked release;
                  fault = check_entries(reinterpret_cast<const int64_t*>(row_start), rows,
                                        reinterpret_cast<const int32_t*>(feature), entries, n_features, threads);
              }
              return py::make_tuple(std::string(fault.what), fault.row);
          });
    m.def("layer_regime", [](const LayerParams& params) { return std::string(layer_regime(params)); });
    m.def("run_layer", [](const LayerParams& params) {
        check(params);
        const Unlocked release;
        run_layer(params);
    });
    m.def(
        "are_weights",
        [](uintptr_t values, int64_t count, bool is_double) {
            return is_double ? are_weights(pointer<const double>(values), count)
                             : are_weights(pointer<const float>(values), count);
        },
        py::arg("values"), py::arg("count"), py::arg("is_double"), "Whether all are finite and at least 0.");
    m.def("run_planned_layer", &run_planned,
          "A call of the sizes and options in `planned`, with addresses in the order of run_planned's arguments.");
}

}  // namespace toykern
