"""The border of the CUDA backend: bound functions take what Python has, integers for streams and pointers.

On every machine, GPU or not: the entries are called for a device that no machine has, so that the right
answer is the error of the build or of the driver, and nothing is launched. Arguments are made from the
signatures that pybind11 wrote, so that a new entry is called without being named here.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from toykern import _native

NO_DEVICE = 99
HOST = -1  # which a constructor that asks the device for its limits takes, too
SOME = 2  # every other integer: sizes, kinds, the address of a stream
PURE = {"cuda_status", "regime", "train_workspace", "evaluate_workspace"}  # which ask no device
ENTRIES = {
    **{name: getattr(_native, name) for name in dir(_native) if name.startswith("cuda_")},
    **{name: getattr(_native.cuda, name) for name in dir(_native.cuda) if not name.startswith("_")},
}
CLASSES = {name: value for name, value in vars(_native).items() if isinstance(value, type)}
MADE_BY_NATIVE_CODE = {"TablesLayout", "LargestStream"}  # or with nothing that could be set


def parameters(function: Any) -> list[tuple[str, str]]:
    """The (name, type) of every parameter without a default."""
    (listed,) = re.match(r"\w+\((.*)\) -> ", function.__doc__).groups()
    found = [part.partition(": ")[::2] for part in listed.split(", ") if part]
    return [(n, k.removeprefix("toykern._native.")) for n, k in found if n != "self" and " = " not in k]


def argument(name: str, kind: str, device: int = NO_DEVICE) -> Any:
    """What Python passes for a parameter of this type; having nothing for it is the fault looked for."""
    if kind.startswith("typing.SupportsInt"):
        return device if name == "device" else SOME
    if kind in ("bool", "str"):
        return {"bool": True, "str": "waiting"}[kind]
    assert kind in CLASSES, f"{name} is of the type {kind}, which Python has no value for"
    made = CLASSES[kind](*arguments(CLASSES[kind].__init__, device))
    sizes = {"device": device, "n_features": 5, "n_hidden": 2, "batch_size": 32}
    for struct in (made, getattr(made, "network", None)):
        for field in sizes.keys() & set(dir(struct)):
            setattr(struct, field, sizes[field])
    return made


def arguments(function: Any, device: int = NO_DEVICE) -> list[Any]:
    """Of a call of a bound function or a constructor."""
    return [argument(name, kind, device) for name, kind in parameters(function)]


def test_the_entries_are_found():
    names = "cuda_synchronize layer_tile layer_sums layer_stacked train evaluate sample sparse_scatter"
    assert set(names.split()) | PURE < ENTRIES.keys()


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - PURE))
def test_every_entry_takes_integers_and_answers_with_the_error_of_the_driver(name):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        ENTRIES[name](*arguments(ENTRIES[name]))
    if isinstance(caught.value, ValueError):  # the border refuses sizes of 0 before a device is asked
        assert name in ("train", "evaluate", "sample") and " must be " in str(caught.value)
        return
    says = rf"this build has no CUDA kernels|driver|no CUDA-capable device|CUDA device {NO_DEVICE}\b"
    assert re.search(says, str(caught.value)), caught.value


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_asks_no_device_answers_everywhere(name):
    assert isinstance(ENTRIES[name](*arguments(ENTRIES[name])), dict | str | int)


@pytest.mark.parametrize("kind", sorted(CLASSES.keys() - MADE_BY_NATIVE_CODE))
def test_every_field_that_can_be_set_takes_what_it_gave(kind):
    """A pointer is an integer, as `data_ptr()` and `cuda_stream` are, in both directions."""
    structs, made = tuple(CLASSES.values()), argument(kind, kind, HOST)
    for field, found in vars(CLASSES[kind]).items():
        if isinstance(found, property) and found.fset is not None:
            before = getattr(made, field)
            assert isinstance(before, (bool, int, float, *structs)), f"{field} gave {before!r}"
            setattr(made, field, before)
            assert isinstance(before, structs) or getattr(made, field) == before
