"""Devices: what can be asked for, and a clear answer where it cannot be had."""

from __future__ import annotations

from typing import Any

import torch

from toykern.errors import describe


def check_device(device: Any) -> torch.device | None:
    """`device` as a torch.device (None stays None); ValueError if it is none, RuntimeError if it is not here.

    >>> check_device("cpu")
    device(type='cpu')
    """
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a device such as 'cpu' or 'cuda', not {describe(device)}") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        built = "finds no usable GPU" if torch.backends.cuda.is_built() else "is built without CUDA"
        raise RuntimeError(
            f"device is {str(wanted)!r}, but this torch ({torch.__version__}) {built}; use device='cpu'"
        )
    return wanted
