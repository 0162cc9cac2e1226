"""Devices: what can be asked for, and a clear answer where it cannot be had.

`check_device` asks whether tensors can live there, `check_kernels` whether toykern's own kernels run there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toykern import _native
from toykern.arguments.errors import describe, is_int

OLDEST_CAPABILITY = (7, 5)
"""Compute capability of the oldest GPUs that the CUDA kernels are written for (T4)."""


def check_device(device: Any) -> torch.device | None:
    """`device` as a torch.device (None stays None).

    TypeError or ValueError if it is none, RuntimeError if it is not here.

    >>> check_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return None
    if not isinstance(device, str | torch.device) and not is_int(device):
        raise TypeError(f"device must be a device such as 'cpu' or 'cuda', not {describe(device)}")
    try:
        wanted = torch.device(device)
    except (RuntimeError, ValueError, OverflowError):
        raise ValueError(f"device must be a device such as 'cpu' or 'cuda', not {describe(device)}") from None
    if wanted.type == "cuda":
        problem = _tensors_problem(wanted)
        if problem:
            raise RuntimeError(f"device is {str(wanted)!r}, but {problem}; use device='cpu'")
    return wanted


def check_kernels(device: Any) -> torch.device:
    """`device` with its index if toykern's kernels run there; else a RuntimeError that says why not.

    The CPU always will do. For a CUDA device without an index, that of torch's current device is filled in.

    Raises:
        ValueError: `device` is no device.
        RuntimeError: a torch without CUDA, no driver, no such GPU; a build without CUDA kernels, a driver too
            old for them, a GPU older than compute capability 7.5, or one that they were not built for.

    >>> check_kernels("cpu")
    device(type='cpu')
    """
    wanted = check_device(device)
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        raise RuntimeError(f"device is {str(wanted)!r}, but toykern has kernels for 'cpu' and 'cuda' only")
    if wanted.type == "cuda":
        index = torch.cuda.current_device() if wanted.index is None else wanted.index
        wanted = torch.device("cuda", index)
        problem = _kernels_problem(index)
        if problem:
            raise RuntimeError(f"device is {str(wanted)!r}, but {problem}; use device='cpu'")
    return wanted


def check_same_device(device: torch.device, **tensors: torch.Tensor | None) -> None:
    """ValueError with the name of the first tensor that is not on `device`; None stands for no tensor.

    >>> check_same_device(torch.device("cpu"), importance=torch.ones(3), seed=None)
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} is on the device {str(tensor.device)!r}, the model on {str(device)!r}; "
                f"move one of them with .to({str(device)!r})"
            )


@contextmanager
def explained_out_of_memory(device: torch.device, needed: int, n_models: int, action: str) -> Iterator[None]:
    """Turns running out of the GPU's memory into a MemoryError that says how much was needed and what to do.

    Args:
        device: a CUDA device.
        needed: bytes to be allocated for `n_models` models.
        n_models: how many models are dealt with at once.
        action: what is done with them, as in "training".

    Example:
        >>> with explained_out_of_memory(torch.device("cuda:0"), 2**33, 10**6, "training"):  # doctest: +SKIP
        ...     weights = torch.empty(2**31, device="cuda:0")
    """
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by torch, unused
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        fit = int(n_models * 0.9 * free / max(needed, 1))
        advice = f"; at most {fit:,} models fit at a time" if 0 < fit < n_models else ""
        raise MemoryError(
            f"{action} {n_models:,} models needs {_gib(needed)} on {str(device)!r}, which has {_gib(free)} "
            f"of {_gib(total)} free{advice} ({_first_line(error)})"
        ) from error


def runs_on(archs: tuple[int, ...], ptx: int | None, capability: tuple[int, int]) -> bool:
    """Whether machine code for `archs`, with PTX of compute capability `ptx`, runs on a GPU of that one.

    Machine code runs within its major version from its own minor version on; PTX on everything newer.

    >>> runs_on((80, 90), 90, (8, 6)), runs_on((90, 100), 90, (8, 0)), runs_on((80, 90), 90, (12, 0))
    (True, False, True)
    """
    own = 10 * capability[0] + capability[1]
    return any(arch // 10 == capability[0] and arch <= own for arch in archs) or (
        ptx is not None and own >= ptx
    )


def shared_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block of a kernel on `device` may take, which decides how work is cut.

    99 KiB on every GPU of compute capability 8.0 or newer, 64 KiB on 7.5; for the CPU, where tests run the
    kernels' source, as on a newer one.

    >>> shared_limit(torch.device("cpu"))
    101376
    """
    return int(_native.cuda_shared_limit((device.index or 0) if device.type == "cuda" else -1))


def built_archs() -> tuple[int, ...]:
    """The archs that this build has CUDA kernels for, rising; none where it has no CUDA kernels."""
    return tuple(int(arch) for arch in _native.build_info()["cuda_archs"].split(";") if arch)


def built_ptx() -> int | None:
    """What the PTX is for that this build brings along for GPUs without machine code of their own."""
    text = _native.build_info()["cuda_ptx"]
    return int(text) if text else None


def arch_of(device: torch.device) -> str:
    """What decides the bits of a result there: the CPU's instruction-set level in use, or a GPU's arch.

    >>> arch_of(torch.device("cpu")) == _native.isa_level()
    True
    """
    if device.type != "cuda":
        return _native.isa_level()
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def version_text(version: int) -> str:
    """CUDA's number for a version in the usual form.

    >>> version_text(12040), version_text(0)
    ('12.4', 'none')
    """
    return f"{version // 1000}.{version % 1000 // 10}" if version else "none"


def _tensors_problem(device: torch.device) -> str:
    """Why torch cannot have tensors on that CUDA device, or ''."""
    if not torch.backends.cuda.is_built():
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        status = _native.cuda_status()
        if status["built"] and status["driver"] == 0:
            return "there is no NVIDIA driver on this machine"
        return f"this torch ({torch.__version__}) finds no usable GPU{_reason_of_torch()}"
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        return (
            "there is one GPU, 'cuda:0'" if count == 1 else f"there are {count} GPUs, 'cuda:0' and following"
        )
    return ""


def _kernels_problem(index: int) -> str:
    """Why the kernels do not run on that GPU, which torch can use, or ''."""
    status = _native.cuda_status()
    if not status["built"]:
        return f"toykern's CUDA kernels are {_native.build_info()['cuda']}"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is not built for NVIDIA's GPUs"
    if 0 < status["driver"] < status["runtime"] and status["devices"] == 0:
        driver, runtime = version_text(status["driver"]), version_text(status["runtime"])
        return (
            f"this machine's driver serves CUDA {driver} at most and toykern's kernels are built with CUDA "
            f"{runtime}: update the driver, or build with an older nvcc"
        )
    if status["devices"] == 0:
        return f"toykern finds no usable GPU: {status['problem']}"
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    arch = f"sm_{capability[0]}{capability[1]}"
    if capability < OLDEST_CAPABILITY:
        return f"{name} is {arch}, and toykern's CUDA kernels need sm_75 or newer"
    if not runs_on(built_archs(), built_ptx(), capability):
        return (
            f"{name} is {arch}, and toykern's CUDA kernels are {_native.build_info()['cuda']}: build them "
            f"with TOYKERN_CUDA_ARCHS={arch[3:]}"
        )
    return ""


def _reason_of_torch() -> str:
    """torch's own words on why there is no GPU."""
    try:
        torch.cuda.init()
    except Exception as error:  # whatever it is, it is the reason
        return f": {_first_line(error)}"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
