"""The numbers of the kernels' enums by name, as the native module tells them (csrc/include/toykern)."""

from __future__ import annotations

from toykern import _native


def number(table: str, name: str) -> int:
    """The number of `name` in an enum: "activation", "loss", "target", "reduction", "optimizer", "magnitude",
    "purpose" or "joint". ValueError where the kernels have no such name.

    >>> number("target", "abs")
    1
    """
    known: dict[str, int] = _native.numbers[table]
    if name not in known:
        raise ValueError(f"{table} {name!r} has no kernels; there are {', '.join(known)}")
    return known[name]
