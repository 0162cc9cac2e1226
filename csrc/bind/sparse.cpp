// The binding of the sparse layers' kernels.
#include "bind/bind.h"
#include "toykern/api.h"

namespace py = pybind11;

namespace toykern {
namespace {

// Fields of the topology are set on the parameters themselves.
template <class Class, class T>
void bind_topology(Class& c, const char* name, T* SparseTopology::* field) {
    c.def_property(
        name, [field](const SparseLinearParams& p) { return reinterpret_cast<uintptr_t>(p.topology.*field); },
        [field](SparseLinearParams& p, uintptr_t address) { p.topology.*field = reinterpret_cast<T*>(address); });
}

}  // namespace

void bind_sparse(py::module_& m) {
    py::class_<SparseLinearParams> s(m, "SparseLinearParams");
    s.def(py::init([](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, int64_t batch_size,
                      int scalar, int threads) {
        if (scalar < 0 || scalar > 2) throw std::out_of_range("scalar");
        SparseLinearParams p = {};
        p.topology.n_models = n_models;
        p.topology.out_features = out_features;
        p.topology.in_features = in_features;
        p.topology.capacity = capacity;
        p.batch_size = batch_size;
        p.scalar = scalar;
        p.threads = threads;
        return p;
    }));
    s.def_readwrite("x_model_stride", &SparseLinearParams::x_model_stride);
    s.def_readwrite("relu", &SparseLinearParams::relu);
    bind_topology(s, "row_start", &SparseTopology::row_start);
    bind_topology(s, "column", &SparseTopology::column);
    bind_topology(s, "column_start", &SparseTopology::column_start);
    bind_topology(s, "row", &SparseTopology::row);
    bind_topology(s, "slot", &SparseTopology::slot);
    bind_pointer(s, "x", &SparseLinearParams::x);
    bind_pointer(s, "values", &SparseLinearParams::values);
    bind_pointer(s, "bias", &SparseLinearParams::bias);
    bind_pointer(s, "y", &SparseLinearParams::y);
    bind_pointer(s, "dy", &SparseLinearParams::dy);
    bind_pointer(s, "dx", &SparseLinearParams::dx);
    bind_pointer(s, "dvalues", &SparseLinearParams::dvalues);
    bind_pointer(s, "dbias", &SparseLinearParams::dbias);
    m.def("sparse_linear_forward", [](const SparseLinearParams& p) {
        py::gil_scoped_release release;
        sparse_linear_forward(p);
    });
    m.def("sparse_linear_backward", [](const SparseLinearParams& p) {
        py::gil_scoped_release release;
        sparse_linear_backward(p);
    });
    m.def("sparse_transpose",
          [](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, uintptr_t row_start,
             uintptr_t column, uintptr_t column_start, uintptr_t row, uintptr_t slot, int threads) {
              const SparseTransposeParams p = {n_models,
                                               out_features,
                                               in_features,
                                               capacity,
                                               reinterpret_cast<const int64_t*>(row_start),
                                               reinterpret_cast<const int32_t*>(column),
                                               reinterpret_cast<int64_t*>(column_start),
                                               reinterpret_cast<int32_t*>(row),
                                               reinterpret_cast<int32_t*>(slot),
                                               threads};
              py::gil_scoped_release release;
              sparse_transpose(p);
          });
}

}  // namespace toykern
