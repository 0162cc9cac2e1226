// The binding of the autoencoder layer.
#include "bind/bind.h"
#include "toykern/api.h"

namespace py = pybind11;

namespace toykern {

void bind_layer(py::module_& m) {
    py::class_<LayerParams> p(m, "LayerParams");
    p.def(py::init([] { return LayerParams{}; }))
        .def_readwrite("task", &LayerParams::task)
        .def_readwrite("is_double", &LayerParams::is_double)
        .def_readwrite("tied", &LayerParams::tied)
        .def_readwrite("hidden_activation", &LayerParams::hidden_activation)
        .def_readwrite("output_activation", &LayerParams::output_activation)
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
                  py::gil_scoped_release release;
                  fault = check_entries(reinterpret_cast<const int64_t*>(row_start), rows,
                                        reinterpret_cast<const int32_t*>(feature), entries, n_features, threads);
              }
              return py::make_tuple(std::string(fault.what), fault.row);
          });
    m.def("layer_loop", [](const LayerParams& params) { return std::string(layer_loop(params)); });
    m.def("run_layer", [](const LayerParams& params) {
        py::gil_scoped_release release;
        run_layer(params);
    });
}

}  // namespace toykern
