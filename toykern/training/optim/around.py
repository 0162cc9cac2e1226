"""What an optimiser may do to single tensors after its step: shrink a bias, keep vectors at norm 1."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from toykern.arguments.errors import check_flag, check_non_negative_int, describe
from toykern.training.optim.rates import Rate, check_rate, described, shown


@dataclass(frozen=True, eq=False, repr=False)
class BiasDecay:
    """A bias that shrinks in the first part of training (Jermyn, Schiefer & Hubinger 2022).

    After each of the steps 0 … until − 1 the bias is multiplied by 1 − rate · lr, lr being its learning rate
    in that step (schedule and `lr_scale` included).

    Args:
        rate: ≥ 0, a number or `[models]`.
        until: the first step that does not do it; None: all steps do.
        tensor: the name of the bias, "hidden_bias" or "bias".

    >>> BiasDecay(0.01, until=1000)
    BiasDecay(rate=0.01, until=1000, tensor='hidden_bias')
    """

    rate: Rate
    until: int | None = None
    tensor: str = "hidden_bias"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", check_rate("rate", self.rate))
        if self.until is not None:
            object.__setattr__(self, "until", check_non_negative_int("until", self.until))
        _check_name(self.tensor)

    def config(self) -> dict[str, Any]:
        """JSON-able; a rate per model appears as "per_model"."""
        return {"rate": described(self.rate), "until": self.until, "tensor": self.tensor}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BiasDecay):
            return NotImplemented
        ours, theirs = (torch.as_tensor(b.rate, device="cpu") for b in (self, other))
        return self.config() == other.config() and torch.equal(ours, theirs)

    def __hash__(self) -> int:
        return hash(repr(self.config()))

    def __repr__(self) -> str:
        parts = (f"{field.name}={shown(getattr(self, field.name))}" for field in fields(self))
        return f"BiasDecay({', '.join(parts)})"


@dataclass(frozen=True)
class UnitNorm:
    """Each hidden unit's vector has norm 1 after every step, as in sparse autoencoders (Bricken et al. 2023).

    The vectors are the columns of a decoder (`[n_outputs, n_hidden]`), or the rows of a tied "weight" or of
    an "encoder" (`[n_hidden, n_features]`). A vector of zeros stays one. They are scaled after the first step
    for the first time.

    Args:
        tensor: the name of the matrix.
        remove_parallel: what of the gradient is parallel to the vector is removed before the step (and before
            the gradient is clipped), so that moments and direction keep to the sphere.

    >>> UnitNorm("decoder", remove_parallel=True)
    UnitNorm(tensor='decoder', remove_parallel=True)
    """

    tensor: str = "decoder"
    remove_parallel: bool = False

    def __post_init__(self) -> None:
        _check_name(self.tensor)
        flag = check_flag("remove_parallel", self.remove_parallel)
        object.__setattr__(self, "remove_parallel", flag)

    def config(self) -> dict[str, Any]:
        """JSON-able."""
        return {"tensor": self.tensor, "remove_parallel": self.remove_parallel}


def bias_decay_of(value: Any) -> BiasDecay | None:
    """What `bias_decay=` says, or a description of it."""
    if isinstance(value, dict):
        return BiasDecay(**_known("bias_decay", value, BiasDecay))
    if value is not None and not isinstance(value, BiasDecay):
        raise TypeError(f"bias_decay must be a toykern BiasDecay, not {describe(value)}")
    return value


def unit_norm_of(value: Any) -> UnitNorm | None:
    """What `unit_norm=` says: a name stands for `UnitNorm` of that name."""
    if isinstance(value, dict):
        return UnitNorm(**_known("unit_norm", value, UnitNorm))
    if isinstance(value, str):
        if not value.isidentifier():
            raise ValueError(f"unit_norm must name a tensor, not {describe(value)}")
        return UnitNorm(value)
    if value is not None and not isinstance(value, UnitNorm):
        raise TypeError(
            f"unit_norm must be the name of a tensor or a toykern UnitNorm, not {describe(value)}"
        )
    return value


def _known(name: str, value: dict[str, Any], kind: type) -> dict[str, Any]:
    known = [field.name for field in fields(kind)]
    if sorted(value) != sorted(known):
        raise ValueError(f"{name} must have the entries {known}, not {describe(value)}")
    return value


def _check_name(tensor: Any) -> None:
    if not isinstance(tensor, str):
        raise TypeError(f"tensor must be the name of a tensor, not {describe(tensor)}")
    if not tensor.isidentifier():
        raise ValueError(f"tensor must be the name of a tensor, not {describe(tensor)}")
