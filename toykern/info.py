"""What is installed, what the native module was built for, and what it uses on this machine.

`python -m toykern.info` (or `toykern info`) prints it; `info()` returns it as a dict for a program or a
bug report.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from toykern.terminal import say

PACKAGES = ("toykern", "torch", "numpy", "xarray", "zarr", "matplotlib", "jax", "optax")


def info() -> dict[str, Any]:
    """Collects the versions and settings that a result can depend on.

    Returns:
        A JSON-able dict of dicts:

        - `versions`: Python, toykern and the packages it uses; `"not installed"` for those that are absent.
        - `machine`: processor, architecture and operating system.
        - `native`: `loaded`, and if so `version`, `commit`, `compiler`, `isa_levels` (built), `isa_level` (in
          use on this machine, or forced by `TOYKERN_ISA`) and `stream_version`; if not, `why`.
        - `threads`: `torch` (what a kernel would use now; `torch.set_num_threads` sets it) and `cpus`.
        - `cuda`: `kernels` (are there CUDA kernels in this build), `why` (the build's own sentence) and
          `archs` (the GPUs it has code for); `torch` (does torch see a CUDA device); the CUDA versions of
          torch (`torch_cuda`), of the kernels (`runtime`) and of the driver (`driver`); `devices`, the GPUs,
          and `problem`, why there are none.

    Example:
        >>> from toykern.info import info
        >>> info()["versions"]["toykern"]
        '0.1.0'
    """
    native, cuda = _native_facts()
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    versions["torch"] = str(torch.__version__)  # with its local suffix: which CUDA it was built for, or none
    if native["loaded"]:  # true of the code at work also where a checkout is used without installing it
        versions["toykern"] = native["version"]
    return {
        "versions": versions,
        "machine": {
            "processor": _processor(),
            "architecture": platform.machine(),
            "system": platform.platform(terse=True),
        },
        "native": native,
        "threads": {"torch": torch.get_num_threads(), "cpus": os.cpu_count()},
        "cuda": cuda,
    }


def format_info(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays the result of `info()` out as text, one fact to a line.

    Example:
        >>> print(format_info({"threads": {"torch": 2, "cpus": 4}}))
        threads
          torch            2
          cpus             4
    """
    lines = []
    for section, entries in facts.items():
        lines.append(section)
        lines += [f"  {name:<16} {_plain(value)}" for name, value in entries.items()]
    return "\n".join(lines)


def main() -> int:
    """Prints the facts; the exit status is 1 if the native module cannot be loaded."""
    facts = info()
    say(format_info(facts))
    return 0 if facts["native"]["loaded"] else 1


def _native_facts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The `native` and the `cuda` section."""
    cuda = {
        "kernels": False,
        "why": "not known: the native module could not be loaded",
        "archs": [],
        "torch": torch.cuda.is_available(),
        "torch_cuda": torch.version.cuda or "none",
    }
    try:
        native = _load_native()
    except ImportError as error:
        why = f"{error}; build it with `pip install -e .` in the checkout"
        return {"loaded": False, "why": why}, cuda
    build = native.build_info()
    facts = {
        "loaded": True,
        "version": build["version"],
        "commit": build["commit"],
        "compiler": build["compiler"],
        "isa_levels": list(build["isa_levels"]),
        "isa_level": native.isa_level(),
        "stream_version": native.stream_version(),
    }
    return facts, cuda | _cuda_facts(native)


def _cuda_facts(native: ModuleType) -> dict[str, Any]:
    """What the native module knows of CUDA and the GPUs."""
    from toykern.native.devices import built_archs, version_text  # needs the native module

    status = native.cuda_status()
    devices = [native.cuda_device(index) for index in range(status["devices"])]
    return {
        "kernels": status["built"],
        "why": native.build_info()["cuda"],
        "archs": [f"sm_{arch}" for arch in built_archs()],
        "runtime": version_text(status["runtime"]),
        "driver": version_text(status["driver"]),
        "devices": [_device_text(index, device) for index, device in enumerate(devices)],
        "problem": status["problem"] or "none",
    }


def _device_text(index: int, device: Mapping[str, Any]) -> str:
    major, minor = device["capability"]
    size = f"{device['memory'] / 2**30:.1f} GiB"
    return f"cuda:{index} {device['name']} (sm_{major}{minor}, {device['multiprocessors']} SMs, {size})"


def _load_native() -> ModuleType:
    from toykern import _native  # after torch, whose OpenMP threads it shares

    return _native


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's own name where Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
