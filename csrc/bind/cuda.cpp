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
              fill_tables(d, layout, n_models, reinterpret_cast<char*>(out), threads);
          });
    m.def("step_scales", [](const TrainParams& p, uintptr_t out) { step_scales(p, reinterpret_cast<double*>(out)); });

    py::class_<Launch> l(m, "Launch");
    l.def(py::init([] { return Launch{}; }))
        .def_readwrite("device", &Launch::device)
        .def_readwrite("layout", &Launch::layout)
        .def_readwrite("tables_stride", &Launch::tables_stride)
        .def_readwrite("workspace_bytes", &Launch::workspace_bytes);
    bind_pointer(l, "tables", &Launch::tables);
    bind_pointer(l, "step_scale", &Launch::step_scale);
    bind_pointer(l, "stream", &Launch::stream);
    bind_pointer(l, "workspace", &Launch::workspace);

    py::module_ host =
        m.def_submodule("device_source_on_host", "The CUDA kernels' source, lanes in lock step: for tests.");
    host.def("sample", [](const SampleParams& p, const Launch& launch, bool descending) {
        py::gil_scoped_release release;
        host::sample(p, launch, descending);
    });
}

}  // namespace toykern
