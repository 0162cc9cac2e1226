// The binding of what all CUDA kernels share: devices and failures.
#include "toykern/cuda_devices.h"

#include "bind/bind.h"

namespace py = pybind11;

namespace toykern {

void bind_cuda_devices(py::module_& m) {
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
                py::gil_scoped_release release;
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
    m.def("cuda_synchronize", &cuda_synchronize, py::call_guard<py::gil_scoped_release>());
    m.def(
        "cuda_device",
        [](int device) {
            CudaDevice found;
            {
                py::gil_scoped_release release;
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
        "The properties of one GPU, sizes in bytes.");
    m.def(
        "cuda_probe",
        [](int device, int threads, int64_t shared_bytes) {
            py::gil_scoped_release release;
            return cuda_probe(device, threads, shared_bytes);
        },
        py::arg("device"), py::arg("threads") = 32, py::arg("shared_bytes") = 4096,
        "Launches a small kernel and waits for it; the arch whose code the GPU ran, such as 90.");
}

}  // namespace toykern
