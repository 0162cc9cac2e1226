"""Argument checks of the whole package: a message names the argument, what was given and what is allowed."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

MAX_SIZE = 2**31 - 1
"""The largest size of anything: products of two of them fit in 64 bits."""


def describe(value: Any) -> str:
    """A short description of what was given, fit for an error message.

    >>> describe(torch.zeros(2, 3))
    'a float32 tensor of shape [2, 3]'
    >>> describe("abc")
    "'abc'"
    """
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if value.ndim == 0 and value.device.type == "cpu":
            return f"{value.item()!r} (a 0-d {dtype} tensor)"
        return f"a {dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {list(value.shape)}"
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than some thousand digits
        text = f"an integer of {value.bit_length():,} bits" if isinstance(value, int) else "something"
    if len(text) > 80:
        text = text[:77] + "..."
    if isinstance(value, str | int | float | bool | None):
        return text
    return f"{text} (a {type(value).__name__})"


def check_dense_tensor(name: str, value: Any) -> torch.Tensor:
    """`value` if it is a tensor with values side by side: no sparse layout, not on meta; else a TypeError."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {describe(value)}")
    if value.layout != torch.strided or value.device.type == "meta":
        kind = "on the meta device" if value.device.type == "meta" else f"of the layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor with values, not {describe(value)} {kind}")
    return value


def is_int(value: Any) -> bool:
    """True for Python and NumPy integers, not for bool."""
    return type(value) is int or isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """True for Python and NumPy real numbers, not for bool."""
    if type(value) is float or type(value) is int:  # at once: a call of `fit` asks for dozens
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def check_int(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """`value` as an int; TypeError if it is none, ValueError outside [minimum, maximum] or 64 bits."""
    if not is_int(value):
        raise TypeError(f"{name} must be an integer, not {describe(value)}")
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        raise ValueError(
            f"{name} must be {_range_text(minimum, maximum, 'an integer')}, not {describe(value)}"
        )
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit in 64 bits, not {describe(value)}")
    return int(value)


def check_size(name: str, value: Any) -> int:
    """`value` as a number of things that lie in memory: an int, 1 … 2³¹ − 1."""
    number = check_int(name, value, minimum=1)
    if number > MAX_SIZE:
        raise ValueError(f"{name} must be at most {MAX_SIZE}, not {describe(value)}")
    return number


def check_positive_int(name: str, value: Any) -> int:
    """`value` as an int ≥ 1.

    >>> check_positive_int("n_features", 5)
    5
    """
    return check_int(name, value, minimum=1)


def check_non_negative_int(name: str, value: Any) -> int:
    """`value` as an int ≥ 0."""
    return check_int(name, value, minimum=0)


def check_number(
    name: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a finite float in [minimum, maximum], and less than `below` where that is given.

    TypeError if it is not a real number, ValueError if it is NaN, infinite or out of range.
    """
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {describe(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a finite number, not {describe(value)}") from None
    inside = (minimum is None or number >= minimum) and (maximum is None or number <= maximum)
    if not math.isfinite(number) or not inside or (below is not None and not number < below):
        raise ValueError(
            f"{name} must be {_range_text(minimum, maximum, 'a finite number', below)}, not {number}"
        )
    return number


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value` if it is one of the strings `allowed`; else TypeError or ValueError with all of them listed."""
    choices = list(allowed)
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(map(repr, choices))}, not {describe(value)}")
    return value


def check_function(name: str, value: Any, arguments: tuple[str, ...]) -> None:
    """TypeError unless `value` is a function that can be called with that many arguments."""
    wanted = f"{name} must be a function of ({', '.join(arguments)})"
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{wanted}, not {describe(value)}")
    try:
        inspect.signature(value).bind(*arguments)
    except ValueError:  # a function of C that does not say what it takes
        return
    except TypeError as error:
        raise TypeError(f"{wanted}: {describe(value)} has {error}") from None


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool; TypeError if it is not True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {describe(value)}")
    return bool(value)


def _range_text(minimum: float | None, maximum: float | None, kind: str, below: float | None = None) -> str:
    if minimum is not None and maximum is not None:
        return f"{kind} from {minimum} to {maximum}"
    parts = []
    if minimum is not None:
        parts.append(f"at least {minimum}")
    if maximum is not None:
        parts.append(f"at most {maximum}")
    if below is not None:
        parts.append(f"below {below}")
    return f"{kind} {' and '.join(parts)}".strip()
