// The binding of the resident trainer and of the module as a whole; only the files of this folder see pybind11. Calls
// release the interpreter's lock.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind/bind.h"
#include "bind/checks.h"
#include "toykern/api.h"

#ifndef TOYKERN_COMMIT
#define TOYKERN_COMMIT "unknown"
#endif
#ifndef TOYKERN_VERSION
#define TOYKERN_VERSION "unknown"
#endif
#ifndef TOYKERN_CUDA_STATE
#define TOYKERN_CUDA_STATE "not built"
#endif
#ifndef TOYKERN_CUDA_ARCHS
#define TOYKERN_CUDA_ARCHS ""
#endif
#ifndef TOYKERN_CUDA_PTX
#define TOYKERN_CUDA_PTX ""
#endif

namespace py = pybind11;
using namespace toykern;

namespace {

// {name: number} of an enum.
template <class Names>
py::dict numbers_of(const Names& names) {
    py::dict found;
    for (int64_t number = 0; number <= last_number(names); ++number) found[names[number]] = number;
    return found;
}

// The place of a name in a table; ValueError tells what there is.
template <class Names>
int64_t number_of(const char* what, const Names& names, const std::string& name) {
    std::string known;
    for (int64_t number = 0; number <= last_number(names); ++number) {
        if (names[number] == nullptr) continue;
        if (names[number] == name) return number;
        known += (known.empty() ? "" : ", ") + std::string(names[number]);
    }
    throw std::invalid_argument(std::string(what) + " must be one of " + known + ", not " + name);
}

// A tensor comes by its role and its states by the optimiser's names for them, so that no order is known on both sides.
template <class Params>
void set_tensor(Params& p, const std::string& role, uintptr_t address, int64_t rows, int64_t columns, int64_t offset) {
    TensorView& view = p.tensors[number_of("role", kRoleNames, role)];
    view.data = pointer<float>(address);
    view.shape = {rows, columns, offset};
}
// A fixed tensor (an embedding), of each model or one for all.
template <class Params>
void set_fixed(Params& p, const std::string& role, uintptr_t address, int64_t rows, int64_t columns, bool shared) {
    set_tensor(p, role, address, rows, columns, 0);
    p.tensors[number_of("role", kRoleNames, role)].shared = shared;
}

void set_rate(TrainParams& p, const std::string& role, const std::string& rate, uintptr_t address) {
    constexpr const char* names[] = {"lr_scale", "weight_decay_scale", "shrink"};
    constexpr const double* TensorView::* fields[] = {&TensorView::lr_scale, &TensorView::weight_decay_scale,
                                                      &TensorView::shrink};
    p.tensors[number_of("role", kRoleNames, role)].*fields[number_of("rate", names, rate)] = pointer<double>(address);
}

void bind_structs(py::module_& m) {
    py::class_<Distribution> d(m, "Distribution");
    d.def(py::init([] { return Distribution{}; }))
        .def_readwrite("n_features", &Distribution::n_features)
        .def_readwrite("n_units", &Distribution::n_units)
        .def_readwrite("probability_stride", &Distribution::probability_stride)
        .def_readwrite("magnitude", &Distribution::magnitude)
        .def_readwrite("noise", &Distribution::noise)
        .def_readwrite("joint", &Distribution::joint)
        .def_readwrite("n_active", &Distribution::n_active)
        .def_readwrite("n_factors", &Distribution::n_factors);
    bind_pointer(d, "unit_start", &Distribution::unit_start);
    bind_pointer(d, "unit_member", &Distribution::unit_member);
    bind_pointer(d, "unit_kind", &Distribution::unit_kind);
    bind_pointer(d, "probability", &Distribution::probability);
    bind_pointer(d, "parent", &Distribution::parent);
    bind_pointer(d, "order", &Distribution::order);
    bind_pointer(d, "loading", &Distribution::loading);
    bind_pointer(d, "loading_end", &Distribution::loading_end);
    bind_pointer(d, "unique", &Distribution::unique);
    bind_pointer(d, "threshold", &Distribution::threshold);

    py::class_<FiniteData> f(m, "FiniteData");
    f.def(py::init([] { return FiniteData{}; }))
        .def_readwrite("rows", &FiniteData::rows)
        .def_readwrite("per_model", &FiniteData::per_model)
        .def_readwrite("target_per_model", &FiniteData::target_per_model)
        .def_readwrite("label_per_model", &FiniteData::label_per_model)
        .def_readwrite("full", &FiniteData::full);
    bind_pointer(f, "samples", &FiniteData::samples);
    bind_pointer(f, "input", &FiniteData::input);
    bind_pointer(f, "row_start", &FiniteData::row_start);
    bind_pointer(f, "feature", &FiniteData::feature);
    bind_pointer(f, "value", &FiniteData::value);
    bind_pointer(f, "target", &FiniteData::target);
    bind_pointer(f, "label", &FiniteData::label);

    py::class_<TargetProjection> j(m, "TargetProjection");
    j.def(py::init([] { return TargetProjection{}; })).def_readwrite("per_model", &TargetProjection::per_model);
    bind_pointer(j, "matrix", &TargetProjection::matrix);

    py::class_<SampleParams> s(m, "SampleParams");
    s.def(py::init([] { return SampleParams{}; }))
        .def_readwrite("data", &SampleParams::data)
        .def_readwrite("n_models", &SampleParams::n_models)
        .def_readwrite("batch_size", &SampleParams::batch_size)
        .def_readwrite("seed_stride", &SampleParams::seed_stride)
        .def_readwrite("step", &SampleParams::step)
        .def_readwrite("purpose", &SampleParams::purpose);
    bind_pointer(s, "seed", &SampleParams::seed);
    bind_pointer(s, "clean", &SampleParams::clean);
    bind_pointer(s, "noisy", &SampleParams::noisy);

    py::class_<Network>(m, "Network")
        .def(py::init([] { return Network{}; }))
        .def_readwrite("n_features", &Network::n_features)
        .def_readwrite("n_hidden", &Network::n_hidden)
        .def_readwrite("n_outputs", &Network::n_outputs)
        .def_readwrite("n_embedding", &Network::n_embedding)
        .def_readwrite("unembedded", &Network::unembedded)
        .def_readwrite("residual", &Network::residual)
        .def_readwrite("centered", &Network::centered)
        .def_readwrite("has_hidden_bias", &Network::has_hidden_bias)
        .def_readwrite("tied", &Network::tied)
        .def_readwrite("hidden_activation", &Network::hidden_activation)
        .def_readwrite("output_activation", &Network::output_activation)
        .def_readwrite("hidden_option", &Network::hidden_option)
        .def_readwrite("output_option", &Network::output_option)
        .def_readwrite("has_bias", &Network::has_bias)
        .def_readwrite("loss", &Network::loss)
        .def_readwrite("target", &Network::target)
        .def_readwrite("reduction", &Network::reduction)
        .def_readwrite("sparse", &Network::sparse);

    py::class_<TrainParams> t(m, "TrainParams");
    t.def(py::init([] { return TrainParams{}; }))
        .def_readwrite("network", &TrainParams::network)
        .def_readwrite("data", &TrainParams::data)
        .def_readwrite("finite", &TrainParams::finite)
        .def_readwrite("n_models", &TrainParams::n_models)
        .def_readwrite("batch_size", &TrainParams::batch_size)
        .def_readwrite("importance_stride", &TrainParams::importance_stride)
        .def_readwrite("projection", &TrainParams::projection)
        .def_readwrite("optimizer", &TrainParams::optimizer)
        .def_readwrite("beta1", &TrainParams::beta1)
        .def_readwrite("beta2", &TrainParams::beta2)
        .def_readwrite("eps", &TrainParams::eps)
        .def_readwrite("nesterov", &TrainParams::nesterov)
        .def_readwrite("norm_clamp", &TrainParams::norm_clamp)
        .def_readwrite("debias_step", &TrainParams::debias_step)
        .def_readwrite("debias_moments", &TrainParams::debias_moments)
        .def_readwrite("shrink_until", &TrainParams::shrink_until)
        .def_readwrite("remove_parallel", &TrainParams::remove_parallel)
        .def_readwrite("first_step", &TrainParams::first_step)
        .def_readwrite("steps", &TrainParams::steps)
        .def_readwrite("record_every", &TrainParams::record_every)
        .def_readwrite("n_records", &TrainParams::n_records)
        .def_readwrite("total_steps", &TrainParams::total_steps)
        .def_readwrite("threads", &TrainParams::threads)
        .def("set_tensor", &set_tensor<TrainParams>, py::arg("role"), py::arg("address"), py::arg("rows"),
             py::arg("columns"), py::arg("offset"), "A tensor of all models, [n_models, rows, columns].")
        .def("set_fixed", &set_fixed<TrainParams>, py::arg("role"), py::arg("address"), py::arg("rows"),
             py::arg("columns"), py::arg("shared"), "A tensor that is not trained, of each model or one for all.")
        .def(
            "set_frozen",
            [](TrainParams& p, const std::string& role) {
                p.tensors[number_of("role", kRoleNames, role)].frozen = true;
            },
            py::arg("role"), "Training leaves this tensor and its states as they are.")
        .def(
            "set_unit_norm",
            [](TrainParams& p, const std::string& role) {
                p.tensors[number_of("role", kRoleNames, role)].unit_norm = true;
            },
            py::arg("role"), "After every step each hidden unit's vector in this tensor is scaled to norm 1.")
        .def("set_rate", &set_rate, py::arg("role"), py::arg("rate"), py::arg("address"),
             "Numbers of this tensor's updates, float64 [n_models]: lr_scale, weight_decay_scale or shrink.")
        .def(
            "set_state",
            [](TrainParams& p, const std::string& role, const std::string& state, uintptr_t address) {
                check_range("optimizer", p.optimizer, 0, last_number(kOptimizerNames));
                const int64_t at = number_of("state", kStateNames[p.optimizer], state);
                p.tensors[number_of("role", kRoleNames, role)].state[at] = pointer<float>(address);
            },
            py::arg("role"), py::arg("state"), py::arg("address"),
            "What the optimizer, which is set before, keeps of this tensor under this name.");
    bind_pointer(t, "seed", &TrainParams::seed);
    bind_pointer(t, "importance", &TrainParams::importance);
    bind_pointer(t, "l1", &TrainParams::l1);
    bind_pointer(t, "connected", &TrainParams::connected);
    bind_pointer(t, "gradient", &TrainParams::gradient);
    bind_pointer(t, "lr", &TrainParams::lr);
    bind_pointer(t, "weight_decay", &TrainParams::weight_decay);
    bind_pointer(t, "clip_norm", &TrainParams::clip_norm);
    bind_pointer(t, "nbeta", &TrainParams::nbeta);
    bind_pointer(t, "localization", &TrainParams::localization);
    bind_pointer(t, "lr_factor", &TrainParams::lr_factor);
    bind_pointer(t, "loss_records", &TrainParams::loss_records);
    bind_pointer(t, "loss_carry", &TrainParams::loss_carry);
    bind_pointer(t, "diverged_at", &TrainParams::diverged_at);
    bind_pointer(t, "order", &TrainParams::order);

    py::class_<EvaluateParams> e(m, "EvaluateParams");
    e.def(py::init([] { return EvaluateParams{}; }))
        .def_readwrite("network", &EvaluateParams::network)
        .def_readwrite("data", &EvaluateParams::data)
        .def_readwrite("finite", &EvaluateParams::finite)
        .def_readwrite("n_models", &EvaluateParams::n_models)
        .def_readwrite("batch_size", &EvaluateParams::batch_size)
        .def_readwrite("batches", &EvaluateParams::batches)
        .def_readwrite("importance_stride", &EvaluateParams::importance_stride)
        .def_readwrite("projection", &EvaluateParams::projection)
        .def_readwrite("threads", &EvaluateParams::threads)
        .def("set_tensor", &set_tensor<EvaluateParams>, py::arg("role"), py::arg("address"), py::arg("rows"),
             py::arg("columns"), py::arg("offset"), "A tensor of all models, [n_models, rows, columns].")
        .def("set_fixed", &set_fixed<EvaluateParams>, py::arg("role"), py::arg("address"), py::arg("rows"),
             py::arg("columns"), py::arg("shared"), "A tensor that is not trained, of each model or one for all.");
    bind_pointer(e, "seed", &EvaluateParams::seed);
    bind_pointer(e, "importance", &EvaluateParams::importance);
    bind_pointer(e, "l1", &EvaluateParams::l1);
    bind_pointer(e, "loss", &EvaluateParams::loss);
}

// A vector handed to NumPy without a copy.
template <class T>
py::array_t<T> as_array(std::vector<T>&& values) {
    auto* kept = new std::vector<T>(std::move(values));
    py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

// Calls `work`, whose kernels ask p.stop; raises what a signal's handler raised meanwhile, as Ctrl-C's does.
template <class Params, class Work>
void until_signal(Params& p, const Work& work) {
    bool raised = false;
    {
        UnlockedUntilSignal release;
        p.stop = release.stop();
        work();
        raised = release.raised();
    }
    if (raised) throw py::error_already_set();
}

const char* compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of toykern. Use the Python API: only sizes are checked here.";
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const OutOfMemory& error) {
            PyErr_SetString(PyExc_MemoryError, error.what());
        } catch (const ForkedChild& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
    });
    py::dict numbers;
    numbers["activation"] = numbers_of(kActivationNames);
    numbers["loss"] = numbers_of(kLossNames);
    numbers["target"] = numbers_of(kTargetNames);
    numbers["reduction"] = numbers_of(kReductionNames);
    numbers["optimizer"] = numbers_of(kOptimizerNames);
    numbers["magnitude"] = numbers_of(kMagnitudeNames);
    numbers["purpose"] = numbers_of(kPurposeNames);
    numbers["joint"] = numbers_of(kJointNames);
    m.attr("numbers") = numbers;  // {enum: {name: number}}
    bind_structs(m);
    bind_sparse(m);
    bind_layer(m);
    bind_cuda(m);
    m.def("stream_version", [] { return kStreamVersion; });
    m.def("isa_level", [] { return std::string(level().name); });
    m.def("isa_levels", &available_levels, "Levels that this CPU can run, best first.");
    m.def("set_isa_level", &set_level);
    m.def("build_info", [] {
        py::dict d;
        d["version"] = TOYKERN_VERSION;
        d["commit"] = TOYKERN_COMMIT;
        d["compiler"] = compiler();
        d["isa_levels"] = built_levels();
        d["cuda"] = TOYKERN_CUDA_STATE;
        d["cuda_archs"] = TOYKERN_CUDA_ARCHS;
        d["cuda_ptx"] = TOYKERN_CUDA_PTX;
        return d;
    });
    m.def(
        "regime", [](const Network& n, bool finite, bool plain) { return std::string(train_regime(n, finite, plain)); },
        py::arg("network"), py::arg("finite") = false, py::arg("plain") = true);
    m.def(
        "train_form",
        [](const Network& n, const Distribution& d, int64_t n_models, int64_t batch_size, int64_t model,
           int64_t connections) {
            check(d, true);
            check(n, d, n_models, batch_size);
            check_range("model", model, 0, n_models - 1);
            check_range("connections", connections, -1, n.n_features * n.n_hidden);
            return std::string(kFormNames[(int32_t)train_form(n, d, batch_size, model, connections)]);
        },
        py::arg("network"), py::arg("data"), py::arg("n_models"), py::arg("batch_size"), py::arg("model"),
        py::arg("connections") = -1);
    m.def(
        "force_form", [](const std::string& name) { force_form((Form)number_of("form", kFormNames, name)); },
        py::arg("name"),
        "The form that the CPU's trainer takes wherever it can, instead of the cheapest: to compare them. 'any': "
        "none.");
    m.def("train", [](const TrainParams& p) {
        check(p, true);
        const Unlocked release;
        train(p);
    });
    m.def("evaluate", [](EvaluateParams p) {
        check(p, true);
        until_signal(p, [&] { evaluate(p); });
    });
    m.def("sample", [](SampleParams p, int threads) {
        check(p, true, true);
        until_signal(p, [&] { sample(p, threads); });
    });
    m.def("sample_entries", [](SampleParams p) {
        check(p, true, false);
        Entries e;
        until_signal(p, [&] { e = sample_entries(p); });
        return py::make_tuple(as_array(std::move(e.model_start)), as_array(std::move(e.sample)),
                              as_array(std::move(e.feature)), as_array(std::move(e.value)));
    });
    m.def(
        "measure_fma_peak",
        [](int threads) {
            const Unlocked release;
            return 2.0 * measure_fma(threads);
        },
        "Floating-point operations a second (a multiply-add is two) on `threads` cores at the level in use.");
    m.def(
        "measure_random_words",
        [](int threads) {
            const Unlocked release;
            return measure_words(threads);
        },
        "Philox words a second on `threads` cores at the level in use.");
}
