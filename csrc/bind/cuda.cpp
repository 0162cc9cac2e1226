// The binding of the CUDA backend: devices and failures, the resident trainer, sparse layers, the autoencoder layer. In
// one file, since pybind11's headers take longer to compile than all of it.
//
// Submodule `cuda` has the kernels on a device, `device_source_on_host` the same source run on the host, lanes in lock
// step, for tests.
#include "toykern/cuda.h"
#include "bind/bind.h"
#include "bind/checks.h"
#include "toykern/cuda_devices.h"
#include "toykern/layer_cuda.h"
#include "toykern/sparse_device.h"

namespace py = pybind11;

namespace toykern {
namespace {

void bind_devices(py::module_& m) {
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const CudaOutOfMemory& error) {
            PyErr_SetString(PyExc_MemoryError, error.what());
        } catch (const CudaError& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
    });
    m.def(
        "cuda_status",
        [] {
            CudaStatus status;
            {
                const Unlocked release;
                status = cuda_status();
            }
            py::dict d;
            d["built"] = status.built;
            d["runtime"] = status.runtime;
            d["driver"] = status.driver;
            d["devices"] = status.devices;
            d["problem"] = status.problem;
            return d;
        },
        "What this build and this machine have of CUDA; versions as 1000 · major + 10 · minor, 0 for none.");
    m.def(
        "cuda_synchronize",
        [](int device, uintptr_t stream, const std::string& doing) {
            const Unlocked release;
            cuda_synchronize(device, pointer<void>(stream), doing);
        },
        py::arg("device"), py::arg("stream"), py::arg("doing"),
        "Waits for all work of a stream; `doing` names it where it failed.");
    m.def(
        "cuda_device",
        [](int device) {
            CudaDevice found;
            {
                const Unlocked release;
                found = cuda_device(device);
            }
            py::dict d;
            d["name"] = found.name;
            d["capability"] = py::make_tuple(found.major, found.minor);
            d["multiprocessors"] = found.multiprocessors;
            d["clock_khz"] = found.clock_khz;
            d["threads_per_sm"] = found.threads_per_sm;
            d["registers_per_sm"] = found.registers_per_sm;
            d["shared_per_sm"] = found.shared_per_sm;
            d["shared_static"] = found.shared_static;
            d["shared_per_block"] = found.shared_per_block;
            d["memory"] = found.memory;
            d["l2"] = found.l2;
            d["cooperative"] = found.cooperative;
            return d;
        },
        py::arg("device"), "The properties of one GPU, sizes in bytes.");
    m.def("cuda_shared_limit", &cuda_shared_limit, py::arg("device"),
          "Bytes of shared memory that kernels may take of a block; of device -1: on the host.");
    m.def(
        "cuda_probe",
        [](int device, int threads, int64_t shared_bytes) {
            const Unlocked release;
            return cuda_probe(device, threads, shared_bytes);
        },
        py::arg("device"), py::arg("threads") = 32, py::arg("shared_bytes") = 4096,
        "Launches a small kernel and waits for it; the arch whose code the GPU ran, such as 90.");
}

void bind_trainer(py::module_& m, py::module_& c, py::module_& host) {
    py::class_<TablesLayout>(m, "TablesLayout", "Where the stream's tables of one model lie.")
        .def_readonly("bytes", &TablesLayout::bytes);
    m.def("tables_layout", &tables_layout, "Of a distribution whose pointers are on the host.");
    m.def("fill_tables",
          [](const Distribution& d, const TablesLayout& layout, int64_t n_models, uintptr_t out, int threads) {
              const Unlocked release;
              return fill_tables(d, layout, n_models, pointer<char>(out), threads);
          });
    m.def("step_scales", [](const TrainParams& p, uintptr_t out) { step_scales(p, pointer<double>(out)); });

    py::class_<Launch> l(m, "Launch");
    l.def(py::init([] { return Launch{}; }))
        .def_readwrite("device", &Launch::device)
        .def_readwrite("layout", &Launch::layout)
        .def_readwrite("tables_stride", &Launch::tables_stride)
        .def_readwrite("mixed", &Launch::mixed)
        .def_readwrite("regime", &Launch::regime)
        .def_readwrite("shared_limit", &Launch::shared_limit)
        .def_readwrite("workspace_bytes", &Launch::workspace_bytes);
    bind_pointer(l, "tables", &Launch::tables);
    bind_pointer(l, "step_scale", &Launch::step_scale);
    bind_pointer(l, "stream", &Launch::stream);
    bind_pointer(l, "workspace", &Launch::workspace);

    c.def(
        "regime",
        [](const Network& network, int64_t batch_size, int64_t shared_limit) {
            return std::string(cuda::train_regime(network, batch_size, shared_limit));
        },
        py::arg("network"), py::arg("batch_size"), py::arg("shared_limit") = kSharedLimit);
    c.def("train_workspace", &cuda::train_workspace, "Bytes that train needs; the pointers are not read.");
    c.def("evaluate_workspace", &cuda::evaluate_workspace);
    c.def("train", [](const TrainParams& p, const Launch& launch) {
        check(p, false);
        const Unlocked release;
        cuda::train(p, launch);
    });
    c.def("evaluate", [](const EvaluateParams& p, const Launch& launch) {
        check(p, false);
        const Unlocked release;
        cuda::evaluate(p, launch);
    });
    c.def("sample", [](const SampleParams& p, const Launch& launch) {
        check(p, false, true);
        const Unlocked release;
        cuda::sample(p, launch);
    });

    host.def("train", [](const TrainParams& p, const Launch& launch, bool descending) {
        check(p, false);
        const Unlocked release;
        host::train(p, launch, descending);
    });
    host.def("evaluate", [](const EvaluateParams& p, const Launch& launch, bool descending) {
        check(p, false);
        const Unlocked release;
        host::evaluate(p, launch, descending);
    });
    host.def("sample", [](const SampleParams& p, const Launch& launch, bool descending) {
        check(p, false, true);
        const Unlocked release;
        host::sample(p, launch, descending);
    });
}

void bind_sparse_layers(py::module_& m, py::module_& c, py::module_& host) {
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
              launch.stream = pointer<void>(stream);
              launch.shared_limit = cuda_shared_limit(device);
              return launch;
          }),
          py::arg("device"), py::arg("stream"), "Of device -1: the source on the host.");
    l.def_readwrite("shared_limit", &SparseLaunch::shared_limit);
    bind_pointer(l, "workspace", &SparseLaunch::workspace);
    m.def("sparse_slots_workspace", &sparse_slots_workspace);

    const auto release = py::call_guard<Unlocked>();
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

void bind_autoencoder_layer(py::module_& m, py::module_& c, py::module_& host) {
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
    bind_pointer(t, "slopes", &LayerTileParams::slopes);
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
          py::arg("given") = true, py::arg("direct") = true, py::arg("hidden_activation") = 0,
          py::arg("shared_limit") = kSharedLimit, "Whether a network runs within a block's shared memory.");
    m.def("stacked_partial_floats", &stacked_partial_floats, "Scratch of one model; the pointers are not read.");
    const auto unlocked = py::call_guard<Unlocked>();
    c.def("layer_stacked", &cuda::layer_stacked, unlocked);
    c.def(
        "layer_tile",
        [](const LayerTileParams& tile, int kernel, int device, uintptr_t stream) {
            cuda::layer_tile(tile, kernel, device, pointer<void>(stream));
        },
        unlocked, py::arg("tile"), py::arg("kernel"), py::arg("device"), py::arg("stream"));
    c.def(
        "layer_sums",
        [](const LayerSums& sums, int device, uintptr_t stream) {
            cuda::layer_sums(sums, device, pointer<void>(stream));
        },
        unlocked, py::arg("sums"), py::arg("device"), py::arg("stream"));
    host.def("layer_stacked", &host::layer_stacked, unlocked);
    host.def("layer_tile", &host::layer_tile, unlocked);
    host.def("layer_sums", &host::layer_sums, unlocked);
}

}  // namespace

void bind_cuda(py::module_& m) {
    bind_devices(m);
    py::module_ c = m.def_submodule("cuda", "The kernels on a device: every pointer is device memory.");
    py::module_ host =
        m.def_submodule("device_source_on_host", "The CUDA kernels' source, lanes in lock step: for tests.");
    bind_trainer(m, c, host);
    bind_sparse_layers(m, c, host);
    bind_autoencoder_layer(m, c, host);
}

}  // namespace toykern
