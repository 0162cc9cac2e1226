// The binding of the CUDA backend, and of its source on the host.
#include "toykern/cuda.h"

#include "bind/bind.h"

namespace py = pybind11;

namespace toykern {

void bind_cuda(py::module_& m) {
    py::class_<TablesLayout>(m, "TablesLayout", "Where the stream's tables of one model lie.")
        .def_readonly("bytes", &TablesLayout::bytes);
    m.def("tables_layout", &tables_layout, "Of a distribution whose pointers are on the host.");
    m.def("fill_tables",
          [](const Distribution& d, const TablesLayout& layout, int64_t n_models, uintptr_t out, int threads) {
              py::gil_scoped_release release;
              return fill_tables(d, layout, n_models, reinterpret_cast<char*>(out), threads);
          });
    m.def("step_scales", [](const TrainParams& p, uintptr_t out) { step_scales(p, reinterpret_cast<double*>(out)); });

    py::class_<Launch> l(m, "Launch");
    l.def(py::init([] { return Launch{}; }))
        .def_readwrite("device", &Launch::device)
        .def_readwrite("layout", &Launch::layout)
        .def_readwrite("tables_stride", &Launch::tables_stride)
        .def_readwrite("mixed", &Launch::mixed)
        .def_readwrite("regime", &Launch::regime)
        .def_readwrite("workspace_bytes", &Launch::workspace_bytes);
    bind_pointer(l, "tables", &Launch::tables);
    bind_pointer(l, "step_scale", &Launch::step_scale);
    bind_pointer(l, "stream", &Launch::stream);
    bind_pointer(l, "workspace", &Launch::workspace);

    py::module_ c = m.def_submodule("cuda", "The kernels on a device: every pointer is device memory.");
    c.def("regime", [](const Network& network, int64_t batch_size) {
        return std::string(cuda::train_regime(network, batch_size));
    });
    c.def("train_workspace", &cuda::train_workspace, "Bytes that train needs; the pointers are not read.");
    c.def("evaluate_workspace", &cuda::evaluate_workspace);
    c.def("train", &cuda::train, py::call_guard<py::gil_scoped_release>());
    c.def("evaluate", &cuda::evaluate, py::call_guard<py::gil_scoped_release>());
    c.def("sample", &cuda::sample, py::call_guard<py::gil_scoped_release>());

    py::module_ host =
        m.def_submodule("device_source_on_host", "The CUDA kernels' source, lanes in lock step: for tests.");
    host.def("train", &host::train, py::call_guard<py::gil_scoped_release>());
    host.def("evaluate", &host::evaluate, py::call_guard<py::gil_scoped_release>());
    host.def("sample", &host::sample, py::call_guard<py::gil_scoped_release>());
}

}  // namespace toykern
