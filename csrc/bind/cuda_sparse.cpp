// The binding of the sparse layers' kernels on a device, and of their source on the host.
#include "bind/bind.h"
#include "toykern/sparse_device.h"

namespace py = pybind11;

namespace toykern {

void bind_cuda_sparse(py::module_& m) {
    py::class_<SparseDense> d(m, "SparseDense");
    d.def(py::init([](int64_t n_models, int64_t out_features, int64_t width, int64_t capacity, int32_t element_bytes) {
        SparseDense t = {};
        t.n_models = n_models;
        t.out_features = out_features;
        t.width = width;
        t.capacity = capacity;
        t.element_bytes = element_bytes;
        return t;
    }));
    bind_pointer(d, "row_start", &SparseDense::row_start);
    bind_pointer(d, "column", &SparseDense::column);
    bind_pointer(d, "source", &SparseDense::from);
    bind_pointer(d, "target", &SparseDense::to);

    py::class_<SparseGroups> g(m, "SparseGroups");
    g.def(py::init([](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, int64_t batch_size,
                      int64_t group, int64_t width, int32_t scalar) {
        SparseGroups t = {};
        t.n_models = n_models;
        t.out_features = out_features;
        t.in_features = in_features;
        t.capacity = capacity;
        t.batch_size = batch_size;
        t.group = group;
        t.width = width;
        t.scalar = scalar;
        return t;
    }));
    g.def_readwrite("x_model_stride", &SparseGroups::x_model_stride);
    bind_pointer(g, "row_start", &SparseGroups::row_start);
    bind_pointer(g, "column", &SparseGroups::column);
    bind_pointer(g, "source", &SparseGroups::from);
    bind_pointer(g, "target", &SparseGroups::to);

    py::class_<SparseLaunch> l(m, "SparseLaunch");
    l.def(py::init([](int device, uintptr_t stream) {
        SparseLaunch launch;
        launch.device = device;
        launch.stream = reinterpret_cast<void*>(stream);
        return launch;
    }));
    bind_pointer(l, "workspace", &SparseLaunch::workspace);
    m.def("sparse_slots_workspace", &sparse_slots_workspace);

    const auto release = py::call_guard<py::gil_scoped_release>();
    py::module_ c = m.attr("cuda").cast<py::module_>(), host = m.attr("device_source_on_host").cast<py::module_>();
    c.def("sparse_scatter", &cuda::sparse_scatter, release);
    c.def("sparse_gather", &cuda::sparse_gather, release);
    c.def("sparse_group_inputs", &cuda::sparse_group_inputs, release);
    c.def("sparse_group_inputs_gradient", &cuda::sparse_group_inputs_gradient, release);
    c.def("sparse_slots_forward", &cuda::sparse_slots_forward, release);
    c.def("sparse_slots_input_gradient", &cuda::sparse_slots_input_gradient, release);
    c.def("sparse_slots_values_gradient", &cuda::sparse_slots_values_gradient, release);
    host.def("sparse_scatter", &host::sparse_scatter, release);
    host.def("sparse_gather", &host::sparse_gather, release);
    host.def("sparse_group_inputs", &host::sparse_group_inputs, release);
    host.def("sparse_group_inputs_gradient", &host::sparse_group_inputs_gradient, release);
    host.def("sparse_slots_forward", &host::sparse_slots_forward, release);
    host.def("sparse_slots_input_gradient", &host::sparse_slots_input_gradient, release);
    host.def("sparse_slots_values_gradient", &host::sparse_slots_values_gradient, release);
}

}  // namespace toykern
