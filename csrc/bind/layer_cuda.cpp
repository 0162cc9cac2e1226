// The binding of the autoencoder layer's CUDA kernels, and of their source on the host.
#include "toykern/layer_cuda.h"

#include "bind/bind.h"

namespace py = pybind11;

namespace toykern {

void bind_layer_cuda(py::module_& m) {
    py::class_<LayerLaunch> l(m, "LayerLaunch");
    l.def(py::init([] { return LayerLaunch{}; }))
        .def_readwrite("device", &LayerLaunch::device)
        .def_readwrite("bf16", &LayerLaunch::bf16)
        .def_readwrite("centered", &LayerLaunch::centered)
        .def_readwrite("entries", &LayerLaunch::entries)
        .def_readwrite("first_model", &LayerLaunch::first_model)
        .def_readwrite("models", &LayerLaunch::models);
    bind_pointer(l, "stream", &LayerLaunch::stream);
    bind_pointer(l, "loss", &LayerLaunch::loss);
    bind_pointer(l, "partial", &LayerLaunch::partial);

    py::class_<LayerTileParams> t(m, "LayerTileParams");
    t.def(py::init([] { return LayerTileParams{}; }))
        .def_readwrite("p", &LayerTileParams::p)
        .def_readwrite("bf16", &LayerTileParams::bf16)
        .def_readwrite("entries", &LayerTileParams::entries)
        .def_readwrite("first_model", &LayerTileParams::first_model)
        .def_readwrite("models", &LayerTileParams::models)
        .def_readwrite("first_row", &LayerTileParams::first_row)
        .def_readwrite("rows", &LayerTileParams::rows)
        .def_readwrite("first_feature", &LayerTileParams::first_feature)
        .def_readwrite("features", &LayerTileParams::features)
        .def_readwrite("add", &LayerTileParams::add);
    bind_pointer(t, "z", &LayerTileParams::z);
    bind_pointer(t, "dz", &LayerTileParams::dz);
    bind_pointer(t, "codes", &LayerTileParams::codes);
    bind_pointer(t, "stored_codes", &LayerTileParams::stored_codes);
    bind_pointer(t, "code_grad", &LayerTileParams::code_grad);
    bind_pointer(t, "stored_code_grad", &LayerTileParams::stored_code_grad);
    bind_pointer(t, "code_bias", &LayerTileParams::code_bias);
    bind_pointer(t, "encoder_rows", &LayerTileParams::encoder_rows);
    bind_pointer(t, "by_feature", &LayerTileParams::by_feature);
    bind_pointer(t, "feature_start", &LayerTileParams::feature_start);
    bind_pointer(t, "entry_row", &LayerTileParams::entry_row);
    bind_pointer(t, "column_sums", &LayerTileParams::column_sums);
    bind_pointer(t, "loss_sums", &LayerTileParams::loss_sums);
    bind_pointer(t, "active", &LayerTileParams::active);

    py::class_<LayerSums> s(m, "LayerSums");
    s.def(py::init([] { return LayerSums{}; }))
        .def_readwrite("models", &LayerSums::models)
        .def_readwrite("blocks", &LayerSums::blocks)
        .def_readwrite("count", &LayerSums::count)
        .def_readwrite("to_stride", &LayerSums::to_stride)
        .def_readwrite("first", &LayerSums::first)
        .def_readwrite("scale_stride", &LayerSums::scale_stride)
        .def_readwrite("factor", &LayerSums::factor)
        .def_readwrite("whole", &LayerSums::whole);
    bind_pointer(s, "from_", &LayerSums::from);
    bind_pointer(s, "to", &LayerSums::to);
    bind_pointer(s, "scale", &LayerSums::scale);

    m.def("layer_is_stacked", &layer_is_stacked, py::arg("n_features"), py::arg("n_hidden"), py::arg("tied"),
          py::arg("given") = true, py::arg("direct") = true, "Whether a network runs within a block's shared memory.");
    m.def("stacked_partial_floats", &stacked_partial_floats, "Scratch of one model; the pointers are not read.");
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    py::module_ c = m.attr("cuda");
    c.def("layer_stacked", &cuda::layer_stacked, unlocked);
    c.def("layer_tile", &cuda::layer_tile, unlocked);
    c.def("layer_sums", &cuda::layer_sums, unlocked);
    py::module_ host = m.attr("device_source_on_host");
    host.def("layer_stacked", &host::layer_stacked, unlocked);
    host.def("layer_tile", &host::layer_tile, unlocked);
    host.def("layer_sums", &host::layer_sums, unlocked);
}

}  // namespace toykern
