"""Addresses for native code: what has none, or one that means something else, is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import toykern
from toykern.native.address import address, address_of_array, storage_address


class Tagged(torch.Tensor):
    """A subclass that only adds to Tensor: its memory is what it seems."""


def freed() -> torch.Tensor:
    tensor = torch.zeros(8)[4:]
    tensor.untyped_storage().resize_(0)
    return tensor


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(3)


def transformed() -> list[torch.Tensor]:
    found = []
    torch.func.vmap(lambda row: found.append(row) or row)(torch.zeros(2, 3))
    torch.func.grad(lambda row: found.append(row) or row.sum())(torch.zeros(3))
    return found


REFUSED: dict[str, tuple[Any, str]] = {
    "meta": (torch.zeros(3, device="meta"), "'meta', which has no numbers"),
    "fake": (fake(), "FakeTensor, which has no memory"),
    "wrapper": (TwoTensor(torch.zeros(3), torch.zeros(3)), "TwoTensor, which has no memory"),
    "vmap": (transformed()[0], "transform"),
    "grad": (transformed()[1], "transform"),
    "coo": (torch.zeros(3).to_sparse(), "layout sparse_coo"),
    "dtype": (torch.zeros(3, dtype=torch.float64), r"float64 tensor of shape \[3\]"),
    "strides": (torch.zeros(3, 2).t(), r"strides \(1, 2\)"),
    "expanded": (torch.zeros(1).expand(3), r"strides \(0,\)"),
    "negative": (torch.zeros(1, dtype=torch.complex64).conj().imag, "negative"),
    "zero": (torch._efficientzerotensor((3,)), "freed"),
    "freed": (freed(), "freed"),
    "array": (np.zeros(3, np.float32), "float32 array"),
    "none": (None, "None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_kernels_could_not_read_is_a_type_error_by_name(case: str) -> None:
    given, reason = REFUSED[case]
    message = rf"^the_name must be a contiguous float32 tensor on 'cpu', not .*{reason}"
    with pytest.raises(TypeError, match=message):
        address("the_name", given, torch.float32)


def test_another_device_is_refused() -> None:
    with pytest.raises(TypeError, match=r"on 'cuda:0', not a float32 tensor of shape \[3\] on 'cpu'"):
        address("x", torch.zeros(3), torch.float32, torch.device("cuda:0"))


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_plain_tensors_have_the_address_of_their_first_entry(device: torch.device | None) -> None:
    base = torch.arange(6, dtype=torch.float32)
    first = np.asarray(base).__array_interface__["data"][0]
    kinds = (base, torch.nn.Parameter(base), base.as_subclass(Tagged), torch.nn.Buffer(base))
    assert {address("x", kind, torch.float32, device) for kind in kinds} == {first}
    assert address("x", base[2:], torch.float32, device) == first + 8
    assert storage_address(base[2:]) == first
    address("x", base[:0], torch.float32, device)  # nothing is read there, so any address will do


def test_arrays_are_held_to_the_same() -> None:
    array = np.arange(6, dtype=np.int64)
    assert address_of_array("ids", array, np.int64) == array.__array_interface__["data"][0]
    for wrong in (array.astype(np.int32), array[::2], array.tolist(), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(TypeError, match="^ids must be a contiguous int64 array, not"):
            address_of_array("ids", wrong, np.int64)


def test_no_other_place_of_the_package_takes_addresses() -> None:
    taking = re.compile(r"data_ptr\(|\.ctypes\b|__array_interface__")
    package = Path(toykern.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if taking.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"native/address.py"}
