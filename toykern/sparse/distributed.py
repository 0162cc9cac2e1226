"""One topology on all ranks: scores are averaged, choices are seeded, and the results compared."""

from __future__ import annotations

import zlib

import torch
from torch import distributed

from toykern.sparse.topology import Topology


class Ranks:
    """All ranks of a process group, or this process alone where torch.distributed is not in use.

    `group` None is the default group. The averages are the same bits on every rank, as all-reduce gives them.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        active = distributed.is_available() and distributed.is_initialized()
        self.group = group
        self.size = distributed.get_world_size(group) if active else 1

    @classmethod
    def alone(cls) -> Ranks:
        """This process by itself, also where torch.distributed is in use."""
        ranks = cls.__new__(cls)
        ranks.group, ranks.size = None, 1
        return ranks

    def average(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over ranks; `tensor` itself is overwritten where there is more than one."""
        if self.size == 1:
            return tensor
        distributed.all_reduce(tensor, group=self.group)
        return tensor.div_(self.size)

    def check_same(self, topologies: list[Topology], where: str) -> None:
        """RuntimeError on every rank if the topologies are not the same on all of them."""
        if self.size == 1:
            return
        here = fingerprint(topologies)
        device = topologies[0].device
        ends = torch.tensor([here, -here], dtype=torch.int64, device=device)
        distributed.all_reduce(ends, op=distributed.ReduceOp.MAX, group=self.group)
        if int(ends[0]) != -int(ends[1]):
            raise RuntimeError(
                f"the ranks have different topologies {where}: build the model with the same seeds on every "
                "rank, and call topology.step() on all of them"
            )


def fingerprint(topologies: list[Topology]) -> int:
    """32 bits that tell one set of connections from another."""
    value = 0
    for topology in topologies:
        for array in (topology.row_start, topology.column):
            value = zlib.crc32(array.cpu().contiguous().numpy().tobytes(), value)
    return value
