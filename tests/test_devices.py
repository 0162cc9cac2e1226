"""`device=`: what this machine cannot give is said, by name. Machines that are not here are faked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import toykern as tk
from toykern import _native
from toykern.native import devices
from toykern.native.devices import (
    check_device,
    check_kernels,
    check_same_device,
    explained_out_of_memory,
    runs_on,
)

STATE = "built: nvcc 13.0 for sm_80, sm_90 and PTX of compute_90"


class Machine:
    """What torch and the native module say on some machine; a GPU that everything works on unless changed."""

    def __init__(self):
        self.torch_built = self.torch_finds_gpu = True
        self.torch_cuda: str | None = "13.0"
        self.torch_says = ""
        self.gpus = [("NVIDIA H200", (9, 0))]
        self.state, self.archs, self.ptx = STATE, "80;90", "90"
        self.runtime = self.driver = 13000
        self.problem = ""

    def status(self):
        built = self.state.startswith("built")
        count = len(self.gpus) if built and not self.problem else 0
        versions = {"runtime": self.runtime, "driver": self.driver} if built else {"runtime": 0, "driver": 0}
        return {"built": built, "devices": count, "problem": self.problem, **versions}

    def init(self):
        if self.torch_says:
            raise RuntimeError(self.torch_says)


@pytest.fixture
def machine(monkeypatch):
    m = Machine()
    native = SimpleNamespace(
        cuda_status=m.status,
        build_info=lambda: {"cuda": m.state, "cuda_archs": m.archs, "cuda_ptx": m.ptx},
    )
    monkeypatch.setattr(devices, "_native", native)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: m.torch_built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: m.torch_finds_gpu)
    monkeypatch.setattr(torch.cuda, "init", m.init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(m.gpus))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: len(m.gpus) - 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: m.gpus[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: m.gpus[index][1])
    monkeypatch.setattr(torch.version, "cuda", m.torch_cuda)
    return m


# --- tensors ----------------------------------------------------------------------------------------------


def test_the_cpu_is_a_device():
    assert tk.TiedAutoencoder(3, 2, device="cpu").weight.device.type == "cpu"
    assert check_device(None) is None
    assert check_kernels("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match=r"device is 'cuda'.*use device='cpu'"):
        tk.TiedAutoencoder(3, 2, device="cuda")
    with pytest.raises(RuntimeError, match=r"device is 'cuda'.*use device='cpu'"):
        check_kernels("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", 3.5, True])
def test_what_is_no_device_is_refused_by_name(device):
    with pytest.raises((ValueError, TypeError), match="device must be"):
        tk.TiedAutoencoder(3, 2, device=device)


def test_fit_refuses_other_devices_by_name():
    model = tk.TiedAutoencoder(3, 2).to("meta")
    with pytest.raises(RuntimeError, match="model is on the device 'meta', where fit cannot run"):
        tk.fit(model, tk.SparseFeatures(3, 0.1), 3)


def test_a_torch_without_cuda(machine):
    machine.torch_built = machine.torch_finds_gpu = False
    with pytest.raises(RuntimeError, match=r"'cuda', but this torch \(.*\) is built without CUDA"):
        check_device("cuda")


def test_no_driver(machine):
    machine.torch_finds_gpu, machine.driver, machine.problem = False, 0, "there is no NVIDIA driver"
    with pytest.raises(
        RuntimeError, match=r"device is 'cuda:0', but there is no NVIDIA driver on this machine"
    ):
        check_device("cuda:0")


def test_no_gpu_in_the_words_of_torch(machine):
    machine.torch_finds_gpu, machine.torch_says = False, "No CUDA GPUs are available\nand more"
    with pytest.raises(RuntimeError, match=r"finds no usable GPU: No CUDA GPUs are available; use"):
        check_device("cuda")


@pytest.mark.parametrize(("count", "says"), [(1, "there is one GPU"), (2, "there are 2 GPUs")])
def test_a_gpu_too_many(machine, count, says):
    machine.gpus *= count
    assert check_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)
    with pytest.raises(RuntimeError, match=f"device is 'cuda:{count}', but {says}"):
        check_device(f"cuda:{count}")


# --- kernels ----------------------------------------------------------------------------------------------


def test_a_gpu_that_everything_works_on(machine):
    machine.gpus *= 3
    assert check_kernels("cuda") == torch.device("cuda:2")  # torch's current one
    assert check_kernels(torch.device("cuda:1")) == torch.device("cuda:1")


def test_other_kinds_of_devices_have_no_kernels():
    with pytest.raises(RuntimeError, match=r"device is 'meta', but toykern has kernels for 'cpu' and 'cuda'"):
        check_kernels("meta")


def test_a_build_without_cuda_kernels(machine):
    machine.state, machine.archs = "not built: nvcc is not found", ""
    assert check_device("cuda") == torch.device("cuda")  # tensors can be there
    with pytest.raises(
        RuntimeError, match=r"'cuda:0', but toykern's CUDA kernels are not built: nvcc is not"
    ):
        check_kernels("cuda")


def test_a_torch_for_other_gpus(machine, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="is not built for NVIDIA's GPUs"):
        check_kernels("cuda")


def test_a_driver_too_old_for_the_kernels(machine):
    machine.driver, machine.problem = 12040, "CUDA driver version is insufficient"
    with pytest.raises(RuntimeError, match=r"driver serves CUDA 12\.4 at most.*built with CUDA 13\.0"):
        check_kernels("cuda")


def test_a_gpu_that_the_kernels_runtime_does_not_find(machine):
    machine.problem = "system not yet initialized (cudaErrorSystemNotReady)"
    with pytest.raises(RuntimeError, match=r"finds no usable GPU: system not yet initialized"):
        check_kernels("cuda")


def test_a_gpu_too_old(machine):
    machine.gpus = [("Tesla V100", (7, 0))]
    with pytest.raises(RuntimeError, match="Tesla V100 is sm_70, and .* need sm_75 or newer"):
        check_kernels("cuda")


def test_a_gpu_that_there_is_no_code_for(machine):
    machine.gpus, machine.archs = [("NVIDIA A100", (8, 0))], "90"
    with pytest.raises(RuntimeError, match=r"NVIDIA A100 is sm_80, and .*TOYKERN_CUDA_ARCHS=80"):
        check_kernels("cuda")


@pytest.mark.parametrize(
    ("archs", "ptx", "capability", "runs"),
    [
        ((75, 80, 90, 100, 120), 100, (7, 5), True),
        ((75, 80, 90), 90, (7, 0), False),
        ((80, 90, 100, 120), 100, (7, 5), False),
        ((80, 90, 100, 120), 100, (8, 0), True),
        ((80, 90, 100, 120), 100, (8, 9), True),  # machine code of its major version
        ((80, 90, 100, 120), 100, (10, 3), True),
        ((80, 90, 100, 120), 100, (12, 1), True),
        ((80, 90, 100, 120), 100, (11, 0), True),  # PTX
        ((80, 90, 100, 120), 100, (13, 0), True),
        ((80, 100), 100, (9, 0), False),  # neither machine code, nor PTX as old
        ((86,), 86, (8, 0), False),
        ((80, 90), 90, (10, 0), True),
        ((90,), 90, (8, 9), False),
        ((), None, (9, 0), False),
    ],
)
def test_which_gpus_a_build_serves(archs, ptx, capability, runs):
    assert runs_on(archs, ptx, capability) is runs


def test_the_archs_of_this_build_are_those_of_its_sentence():
    state, ptx = _native.build_info()["cuda"], devices.built_ptx()
    assert all(f"sm_{arch}" in state for arch in devices.built_archs())
    assert (f" and PTX of compute_{ptx}" in state) == (ptx is not None) == bool(devices.built_archs())
    assert bool(devices.built_archs()) == state.startswith("built: ") == _native.cuda_status()["built"]


# --- what can go wrong in a call --------------------------------------------------------------------------


def test_tensors_on_different_devices_are_named():
    check_same_device(torch.device("cpu"), importance=torch.ones(2), seed=None)
    with pytest.raises(ValueError, match=r"importance is on the device 'meta', the model on 'cpu'"):
        check_same_device(torch.device("cpu"), seed=None, importance=torch.ones(2, device="meta"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nmore"), MemoryError("full")])
def test_out_of_memory_says_how_much_and_what_to_do(monkeypatch, error):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 30)
    says = (
        r"training 1,000 models needs 8 GiB on 'cuda:0', which has 4 GiB of 80 GiB free; at most 450 models"
    )
    with (
        pytest.raises(MemoryError, match=says),
        explained_out_of_memory(torch.device("cuda:0"), 8 << 30, 1000, "training"),
    ):
        raise error
    with (
        pytest.raises(ZeroDivisionError),
        explained_out_of_memory(torch.device("cuda:0"), 8 << 30, 1000, "training"),
    ):
        raise ZeroDivisionError


@pytest.mark.skipif(_native.cuda_status()["devices"] > 0, reason="there is a GPU here")
def test_native_calls_without_a_gpu_raise_and_say_why():
    status = _native.cuda_status()
    assert status["problem"]
    for call in (lambda: _native.cuda_device(0), lambda: _native.cuda_probe(0)):
        with pytest.raises(RuntimeError, match="no CUDA kernels|driver|no CUDA-capable device"):
            call()
    assert _native.cuda_status() == status  # and again


# --- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_kernel_runs_with_the_code_made_for_this_gpu():
    assert check_kernels("cuda").type == "cuda"
    for index in range(torch.cuda.device_count()):
        found = _native.cuda_device(index)
        assert tuple(found["capability"]) == torch.cuda.get_device_capability(index)
        assert found["name"] == torch.cuda.get_device_name(index)
        own = 10 * found["capability"][0] + found["capability"][1]
        # What the source was told: the arch, or that of the PTX that its machine code is made from.
        served = {arch for arch in (*devices.built_archs(), devices.built_ptx()) if arch and arch <= own}
        assert _native.cuda_probe(index, threads=96) in served
        assert _native.cuda_probe(index, 1024, found["shared_per_block"]) in served
        assert found["shared_per_block"] > found["shared_static"] == 48 << 10


@pytest.mark.gpu
def test_a_launch_that_fails_names_the_kernel_and_harms_nothing():
    most = _native.cuda_device(0)["shared_per_block"]
    with pytest.raises(RuntimeError, match=rf"kernel probe needs {most + 1} bytes .* grants {most}"):
        _native.cuda_probe(0, 32, most + 1)
    with pytest.raises(RuntimeError, match="kernel probe failed: 1025 threads"):
        _native.cuda_probe(0, 1025, 8192)
    with pytest.raises(RuntimeError, match=r"device 99 failed: .*\(cudaErrorInvalidDevice\)"):
        _native.cuda_probe(99)
    assert torch.cuda.current_device() == 0
    assert _native.cuda_probe(0) >= 80
    assert torch.ones(3, device="cuda").sum().item() == 3
