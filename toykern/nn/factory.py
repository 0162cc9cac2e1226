"""Where parameters are made and in which dtype: one rule for all layers and models.

`dtype=` and `device=` say so; without them it is torch's default dtype and default device, as for the layers
of torch.nn (`torch.set_default_dtype`, `torch.set_default_device`, `with torch.device(…)`). What `sample`,
`fit`, `evaluate` and stores give does not depend on either.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.arguments.errors import describe
from toykern.native.devices import check_device
from toykern.ops.gate import FLOAT_DTYPES


def factory_dtype(dtype: Any) -> torch.dtype:
    """The dtype of new parameters; TypeError if it is none, ValueError where there are no kernels for it.

    >>> factory_dtype(torch.bfloat16), factory_dtype(None)
    (torch.bfloat16, torch.float32)
    """
    chosen = torch.get_default_dtype() if dtype is None else dtype
    allowed = ", ".join(str(allowed).removeprefix("torch.") for allowed in FLOAT_DTYPES)
    if not isinstance(chosen, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, one of {allowed}, not {describe(dtype)}")
    if chosen not in FLOAT_DTYPES:
        whose = ", torch's default dtype" if dtype is None else ""
        raise ValueError(f"dtype must be one of {allowed}, not {describe(chosen)}{whose}")
    return chosen


def factory_device(device: Any) -> torch.device:
    """The device of new parameters; ValueError or RuntimeError as `toykern.native.devices.check_device`.

    >>> factory_device("cpu"), factory_device(None)
    (device(type='cpu'), device(type='cpu'))
    """
    return check_device(device) or torch.get_default_device()


def factory_device_of_connections(device: Any) -> torch.device:
    """The same for sparse layers, whose connections are drawn as they are made: ValueError for "meta"."""
    chosen = factory_device(device)
    if chosen.type == "meta":
        raise ValueError(
            "device must be one with memory for a sparse layer, whose connections are numbers that are drawn "
            "when it is made, not 'meta': make it with device='cpu', or on the GPU"
        )
    return chosen
