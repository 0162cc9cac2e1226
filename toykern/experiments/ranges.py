"""What settings of experiments may be: checked by their names, which mean the same in all experiments.

What a setting becomes further on (a probability, the size of an axis) has checks and a name of its own; an
error of those would not say which setting to change, and some come only when hours have been trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from toykern.arguments.errors import MAX_SIZE, check_int, check_number

_LARGEST_SEED = 2**31 - 1  # `own_seeds` puts it into the upper half of a signed word
_LARGEST_STEP = 2**32 - 1
_EXPONENT = 1000  # of a power of two in double precision, with room for a factor
_RATES = {"density", "densities", "small_densities", "bases_density", "trained_densities", "probability"}
_RATES |= {"parent", "children", "fractions", "curve_fraction"}
_SHARES = {"others", "noises", "share", "drop_fraction"}
_SIGNED = {"bias", "initial_bias", "initial_biases"}
_MAY_BE_NONE = {"burn_in", "factors"}
_MOST_SNAPSHOTS = 1_000_000
_PAIRED = {"n_hidden", "importance_decays"}  # lists that go with another list, and may repeat themselves


def check_ranges(settings: Any) -> None:
    """Raise a ValueError that names the first setting that is out of its range, or holds a value twice.

    Whole numbers count something and are at least 1, but for seeds, exponents, a burn-in and common factors;
    other numbers are finite and at least 0, but for biases; probabilities lie in (0, 1], shares in [0, 1].
    """
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        for part in value if isinstance(value, tuple) else (value,):
            _check(entry.name, part)
        if isinstance(value, tuple) and len(set(value)) < len(value) and entry.name not in _PAIRED:
            raise ValueError(f"{entry.name} must be different values, not {value}")


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool | str):
        return
    if isinstance(value, int):
        if name == "seed":
            check_int(name, value, 0, _LARGEST_SEED)
        elif name == "snapshots":
            check_int(name, value, 2, _MOST_SNAPSHOTS)
        elif "exponent" in name:
            check_int(name, value, -_EXPONENT, _EXPONENT)
        else:
            largest = _LARGEST_STEP if "steps" in name else MAX_SIZE
            check_int(name, value, 0 if name in _MAY_BE_NONE else 1, largest)
    elif name in _RATES:
        check_number(name, value, maximum=1.0)
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0 and at most 1, not {value!r}")
    elif name in _SHARES:
        check_number(name, value, 0.0, 1.0)
    else:
        check_number(name, value, None if name in _SIGNED else 0.0)
