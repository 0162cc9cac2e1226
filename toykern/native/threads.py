"""How many threads the kernels may use."""

from __future__ import annotations

import os

import torch

_in_forked_child = False


def _note_fork() -> None:
    global _in_forked_child
    _in_forked_child = True


os.register_at_fork(after_in_child=_note_fork)


def kernel_threads() -> int:
    """What `torch.set_num_threads` said; 1 in a forked child.

    If the parent ran anything on several threads, PyTorch's own operations among it, the pool of those
    threads is gone in the child, and a kernel that waits for them would hang. (Where it was toykern's kernels
    that ran on them, the child is refused altogether.)
    """
    return 1 if _in_forked_child else torch.get_num_threads()
