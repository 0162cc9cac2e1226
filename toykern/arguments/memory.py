"""How much memory is free, and a word before more than that is asked for.

Linux hands out memory that it does not have and ends the process when it is written to; so what is large is
compared with what is free before anything is allocated.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

_WORTH_ASKING = 256 << 20  # bytes below which the question would cost more than it could save
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device; for the CPU those of the machine, or of the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_of_the_machine(), _free_of_the_container())


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


def _free_of_the_container() -> int:
    """What a control group leaves of its limit, its cached files not counted; a huge number without one."""
    unlimited = 1 << 62
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return unlimited
    cached = int(fields.get("inactive_file", 0))
    return unlimited if limit == "max" else max(0, int(limit) - used + cached)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
