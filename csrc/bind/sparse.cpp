// The binding of the sparse layers' kernels.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>

#include "bind/bind.h"
#include "bind/checks.h"
#include "toykern/api.h"
#include "toykern/sparse_topology.h"

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

// A vector handed to NumPy without a copy.
template <class T>
py::array_t<T> as_array(std::vector<T>&& values) {
    auto* kept = new std::vector<T>(std::move(values));
    py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

// Sizes of stacked layers that can be counted with.
void check_shape(int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity) {
    check_elements("n_models, out_features, in_features", n_models, out_features, in_features);
    check_range("capacity", capacity, 0, kMostElements / n_models);
}
void check_count(const char* name, int64_t value) { check_range(name, value, 0, kMostElements); }

// How ties are decided, as toykern.ops.sparse_ties.Ties says it: (address of seeds or 0, size, first, tag, step).
using TieArguments = std::tuple<uintptr_t, int64_t, int64_t, uint32_t, uint32_t>;

TieSequences tie_sequences(const TieArguments& ties) {
    const auto& [seeds, size, first, tag, step] = ties;
    check_range("ties: size", size, 1, kMostElements);
    check_range("ties: first", first, 0, kMostElements);
    return {pointer<const int64_t>(seeds), size, first, tag, step};
}

void bind_topology_updates(py::module_& m) {
    m.def(
        "sparse_largest",
        [](uintptr_t score, uintptr_t counts, uintptr_t taken, int64_t n_taken, int64_t groups, int64_t size,
           bool is_double, bool absolute, const TieArguments& ties, int threads) {
            for (const int64_t count : {n_taken, groups, size}) check_count("n_taken, groups, size", count);
            const LargestParams p = {pointer<const void>(score),
                                     pointer<const int64_t>(counts),
                                     pointer<const int64_t>(taken),
                                     n_taken,
                                     groups,
                                     size,
                                     is_double,
                                     absolute,
                                     tie_sequences(ties),
                                     threads};
            std::vector<int64_t> chosen;
            {
                const Unlocked release;
                chosen = sparse_largest(p);
            }
            return as_array(std::move(chosen));
        },
        py::arg("score"), py::arg("counts"), py::arg("taken"), py::arg("n_taken"), py::arg("groups"), py::arg("size"),
        py::arg("is_double"), py::arg("absolute"), py::arg("ties"), py::arg("threads"));
    py::class_<LargestStream>(m, "LargestStream")
        .def(py::init([](int64_t count, bool absolute, const TieArguments& ties, int64_t first) {
                 return new LargestStream(count, absolute, tie_sequences(ties).of(first));
             }),
             py::arg("count"), py::arg("absolute"), py::arg("ties"), py::arg("first"))
        .def(
            "add",
            [](LargestStream& stream, uintptr_t score, int64_t first, int64_t n, uintptr_t taken, int64_t n_taken,
               int threads) {
                const Unlocked release;
                stream.add(pointer<const float>(score), first, n, pointer<const int64_t>(taken), n_taken, threads);
            },
            py::arg("score"), py::arg("first"), py::arg("n"), py::arg("taken"), py::arg("n_taken"), py::arg("threads"))
        .def("finish", [](LargestStream& stream) {
            std::vector<int64_t> place;
            std::vector<float> score;
            stream.finish(place, score);
            return py::make_tuple(as_array(std::move(place)), as_array(std::move(score)));
        });
    m.def(
        "sparse_random_places",
        [](uintptr_t taken, int64_t n_taken, uintptr_t counts, uintptr_t seeds, uintptr_t ids, int64_t groups,
           int64_t size, uint32_t tag, uint32_t step, int threads) {
            for (const int64_t count : {n_taken, groups, size}) check_count("n_taken, groups, size", count);
            const RandomPlacesParams p = {pointer<const int64_t>(taken),
                                          pointer<const int64_t>(counts),
                                          pointer<const int64_t>(seeds),
                                          pointer<const int64_t>(ids),
                                          n_taken,
                                          groups,
                                          size,
                                          tag,
                                          step,
                                          threads};
            std::vector<int64_t> chosen;
            {
                const Unlocked release;
                chosen = sparse_random_places(p);
            }
            return as_array(std::move(chosen));
        },
        py::arg("taken"), py::arg("n_taken"), py::arg("counts"), py::arg("seeds"), py::arg("ids"), py::arg("groups"),
        py::arg("size"), py::arg("tag"), py::arg("step"), py::arg("threads"));
    m.def(
        "sparse_lowest",
        [](uintptr_t score, uintptr_t sign, uintptr_t allowed, uintptr_t counts, uintptr_t row_start, double fraction,
           int64_t n_models, int64_t out_features, int64_t capacity, bool is_double, const TieArguments& ties,
           uintptr_t drop, uintptr_t dropped, int threads) {
            check_shape(n_models, out_features, 1, capacity);
            const LowestParams p = {pointer<const void>(score),
                                    pointer<const void>(sign),
                                    pointer<const uint8_t>(allowed),
                                    pointer<const int64_t>(counts),
                                    pointer<const int64_t>(row_start),
                                    fraction,
                                    n_models,
                                    out_features,
                                    capacity,
                                    is_double,
                                    tie_sequences(ties),
                                    pointer<uint8_t>(drop),
                                    pointer<int64_t>(dropped),
                                    threads};
            const Unlocked release;
            sparse_lowest(p);
        },
        py::arg("score"), py::arg("sign"), py::arg("allowed"), py::arg("counts"), py::arg("row_start"),
        py::arg("fraction"), py::arg("n_models"), py::arg("out_features"), py::arg("capacity"), py::arg("is_double"),
        py::arg("ties"), py::arg("drop"), py::arg("dropped"), py::arg("threads"));
    m.def(
        "sparse_merge",
        [](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, uintptr_t row_start,
           uintptr_t column, uintptr_t drop, uintptr_t grown, int64_t n_grown, bool keep_returning,
           uintptr_t new_row_start, uintptr_t new_column, uintptr_t old_slot, uintptr_t fresh, uintptr_t dropped,
           uintptr_t came, uintptr_t active_rows, uintptr_t active_columns, int threads) {
            check_shape(n_models, out_features, in_features, capacity);
            check_count("n_grown", n_grown);
            const MergeParams p = {n_models,
                                   out_features,
                                   in_features,
                                   capacity,
                                   n_grown,
                                   pointer<const int64_t>(row_start),
                                   pointer<const int32_t>(column),
                                   pointer<const uint8_t>(drop),
                                   pointer<const int64_t>(grown),
                                   keep_returning,
                                   pointer<int64_t>(new_row_start),
                                   pointer<int32_t>(new_column),
                                   pointer<int64_t>(old_slot),
                                   pointer<int64_t>(fresh),
                                   pointer<int64_t>(dropped),
                                   pointer<int64_t>(came),
                                   pointer<int64_t>(active_rows),
                                   pointer<int64_t>(active_columns),
                                   threads};
            const Unlocked release;
            return sparse_merge(p);
        },
        py::arg("n_models"), py::arg("out_features"), py::arg("in_features"), py::arg("capacity"), py::arg("row_start"),
        py::arg("column"), py::arg("drop"), py::arg("grown"), py::arg("n_grown"), py::arg("keep_returning"),
        py::arg("new_row_start"), py::arg("new_column"), py::arg("old_slot"), py::arg("fresh"), py::arg("dropped"),
        py::arg("came"), py::arg("active_rows"), py::arg("active_columns"), py::arg("threads"));
    m.def(
        "sparse_keys",
        [](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, int64_t room,
           uintptr_t row_start, uintptr_t column, uintptr_t drop, uintptr_t keys, int threads) {
            check_shape(n_models, out_features, in_features, capacity);
            check_count("room", room);
            const KeysParams p = {n_models,
                                  out_features,
                                  in_features,
                                  capacity,
                                  room,
                                  pointer<const int64_t>(row_start),
                                  pointer<const int32_t>(column),
                                  pointer<const uint8_t>(drop),
                                  pointer<int64_t>(keys),
                                  threads};
            const Unlocked release;
            return sparse_keys(p);
        },
        py::arg("n_models"), py::arg("out_features"), py::arg("in_features"), py::arg("capacity"), py::arg("room"),
        py::arg("row_start"), py::arg("column"), py::arg("drop"), py::arg("keys"), py::arg("threads"));
    m.def(
        "sparse_move",
        [](const std::vector<std::pair<uintptr_t, int32_t>>& tensors, uintptr_t old_slot, int64_t count, int threads) {
            std::vector<void*> data;
            std::vector<int32_t> bytes;
            for (const auto& [address, size] : tensors) {
                if (size != 2 && size != 4 && size != 8)
                    throw std::invalid_argument("elements must have 2, 4 or 8 bytes, not " + std::to_string(size));
                data.push_back(pointer<void>(address));
                bytes.push_back(size);
            }
            check_count("count", count);
            const MoveParams p = {data.data(),          bytes.data(), pointer<const int64_t>(old_slot),
                                  (int64_t)data.size(), count,        threads};
            const Unlocked release;
            sparse_move(p);
        },
        py::arg("tensors"), py::arg("old_slot"), py::arg("count"), py::arg("threads"));
    m.def(
        "sparse_explore",
        [](uintptr_t explored, uintptr_t keys, int64_t n_keys, int64_t n_models, int64_t positions, uintptr_t counts,
           int threads) {
            for (const int64_t count : {n_keys, n_models, positions}) check_count("n_keys, n_models, positions", count);
            const ExploreParams p = {pointer<uint8_t>(explored),
                                     pointer<const int64_t>(keys),
                                     n_keys,
                                     n_models,
                                     positions,
                                     pointer<int64_t>(counts),
                                     threads};
            const Unlocked release;
            sparse_explore(p);
        },
        py::arg("explored"), py::arg("keys"), py::arg("n_keys"), py::arg("n_models"), py::arg("positions"),
        py::arg("counts"), py::arg("threads"));
}

}  // namespace

void bind_sparse(py::module_& m) {
    bind_topology_updates(m);
    py::class_<SparseLinearParams> s(m, "SparseLinearParams");
    s.def(py::init([](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, int64_t batch_size,
                      int scalar, int threads) {
        if (scalar < 0 || scalar > 2) throw std::out_of_range("scalar");
        check_shape(n_models, out_features, in_features, capacity);
        check_range("batch_size", batch_size, 0, kMostElements / std::max(in_features, out_features) / n_models);
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
        const Unlocked release;
        sparse_linear_forward(p);
    });
    m.def("sparse_linear_backward", [](const SparseLinearParams& p) {
        const Unlocked release;
        sparse_linear_backward(p);
    });
    m.def("sparse_check_index", [](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity,
                                   uintptr_t row_start, uintptr_t column) {
        check_shape(n_models, out_features, in_features, capacity);
        const SparseTransposeParams p = {n_models,
                                         out_features,
                                         in_features,
                                         capacity,
                                         pointer<const int64_t>(row_start),
                                         pointer<const int32_t>(column),
                                         nullptr,
                                         nullptr,
                                         nullptr,
                                         1};
        const Unlocked release;
        sparse_check_index(p);
    });
    m.def("sparse_transpose",
          [](int64_t n_models, int64_t out_features, int64_t in_features, int64_t capacity, uintptr_t row_start,
             uintptr_t column, uintptr_t column_start, uintptr_t row, uintptr_t slot, int threads) {
              check_shape(n_models, out_features, in_features, capacity);
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
              const Unlocked release;
              sparse_transpose(p);
          });
}

}  // namespace toykern
