"""What runs and stores keep of an optimiser and the way back: descriptions, and rates in them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from toykern.arguments.errors import check_choice, describe
from toykern.training.optim.rates import PER_MODEL, SCALES

Described = TypeVar("Described")


def rate_names(config: Any) -> list[str]:
    """The names of `rates()` of the optimiser that a `config()` describes; "lr" and "weight_decay" whatever
    it is.

    >>> rate_names({"name": "SGD", "clip_norm": 1.0, "lr_scale": {"bias": "per_model"}})
    ['lr', 'weight_decay', 'lr_scale/bias', 'clip_norm']
    """
    found = ["lr", "weight_decay"]
    if not isinstance(config, Mapping):
        return found
    found += [name for name in ("nbeta", "localization") if name in config]
    for name in SCALES:
        if isinstance(config.get(name), Mapping):
            found += [f"{name}/{tensor}" for tensor in config[name]]
    found += ["clip_norm"] if "clip_norm" in config else []
    return found + (["bias_decay"] if isinstance(config.get("bias_decay"), Mapping) else [])


def told_rate(config: Mapping[str, Any], name: str) -> Any:
    """What a description says of a rate by its name in `rates()`; None where it says nothing.

    >>> told_rate({"lr_scale": {"bias": 0.5}}, "lr_scale/bias")
    0.5
    """
    first, _, tensor = name.partition("/")
    told = config.get(first)
    if first in SCALES:
        return told.get(tensor) if isinstance(told, Mapping) else None
    if first == "bias_decay" and isinstance(told, Mapping):
        return told.get("rate")
    return told


def with_rates(config: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a description with these rates in place of what it says of them."""
    changed = dict(config)
    for name, rate in rates.items():
        first, _, tensor = name.partition("/")
        if first in SCALES:
            changed[first] = {**changed.get(first, {}), tensor: rate}
        elif first == "bias_decay":
            changed[first] = {**changed.get(first, {}), "rate": rate}
        else:
            changed[first] = rate
    return changed


def without_rates(config: Mapping[str, Any]) -> dict[str, Any]:
    """A description in which nothing is said of rates but that they are there: what two optimisers have in
    common whose rates are compared as arrays."""
    return with_rates(config, dict.fromkeys(rate_names(config), PER_MODEL))


def from_config(kinds: Mapping[str, type[Described]], config: Any, rates: Mapping[str, Any]) -> Described:
    """See `toykern.training.optim.optimizer_from_config`."""
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"the optimizer's config must be a dict with the key 'name', not {describe(config)}")
    kind = kinds[check_choice("the optimizer's name", config["name"], kinds)]
    given = {name: rate for name, rate in rates.items() if rate is not None}
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted({name.partition("/")[0] for name in (*config, *given)} - known - {"name"}):
        raise ValueError(
            f"the config of {kind.__name__} has unknown keys {unknown}; known are {sorted(known)}"
        )
    for name in rate_names(config):
        if name not in given and told_rate(config, name) == PER_MODEL:
            raise ValueError(f"{name} was given per model: pass it, [models], to optimizer_from_config")
    arguments = with_rates({key: value for key, value in config.items() if key != "name"}, given)
    if isinstance(arguments.get("betas"), list):
        arguments["betas"] = tuple(arguments["betas"])
    return kind(**arguments)
