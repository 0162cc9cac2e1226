"""How much memory is free, and a word before more than that is asked for.

Linux hands out memory that it does not have and ends the process when it is written to; so what is large is
compared with what is free before anything is allocated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

_WORTH_ASKING = 256 << 20  # bytes below which the question would cost more than it could save
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 62


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device; for the CPU the least of what the machine has free, and what the
    control groups of this process and its SLURM job leave of their limits."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_of_the_machine(), _free_of_the_groups(), _free_of_the_job(os.environ))


def check_free_memory(what: str, needed: int, advice: str) -> None:
    """MemoryError if `needed` bytes are more than the CPU's memory has free.

    `what` is what they are for, as in "the records of the run"; `advice` says what needs less.
    """
    if needed < _WORTH_ASKING:
        return
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise MemoryError(f"{what} would take {_gib(needed)}, and {_gib(free)} are free; {advice}")


def _free_of_the_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_of_the_groups() -> int:
    """The least that the control groups of this process, each within the next, leave of their limits."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    # "0::/slurm/job_7" is of version 2; "4:memory:/slurm/job_7" of the memory's hierarchy in version 1.
    free = [_free_of_a_group(_CGROUP, "memory.max", "memory.current", "inactive_file")]
    for line in lines:
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0" or "memory" in kinds.split(","):
            root = _CGROUP if number == "0" else _CGROUP / "memory"
            names = ("memory.max", "memory.current", "inactive_file")
            if number != "0":
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                free.append(_free_of_a_group(root.joinpath(*parts[:depth]), *names))
    return min(free)


def _free_of_a_group(group: Path, limit: str, usage: str, cache: str) -> int:
    """What a control group leaves of its limit, its cached files not counted; a huge number without one."""
    try:
        most = (group / limit).read_text().strip()
        used = int((group / usage).read_text())
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(fields.get(cache, 0))
        return _UNLIMITED if most == "max" else max(0, int(most) - used + cached)
    except (OSError, ValueError):
        return _UNLIMITED


def _free_of_the_job(environment: Mapping[str, str]) -> int:
    """What a SLURM job may have on this machine, less what this process has; a huge number outside of one."""

    def megabytes(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() and text.isascii() else 0

    granted = megabytes("SLURM_MEM_PER_NODE")
    granted = granted or megabytes("SLURM_MEM_PER_CPU") * megabytes("SLURM_CPUS_ON_NODE")
    if not granted:  # 0 is all of the machine's
        return _UNLIMITED
    try:
        used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        used = 0
    return max(0, (granted << 20) - used)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
