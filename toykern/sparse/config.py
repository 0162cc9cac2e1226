"""Recipes as plain dictionaries, for stores: what made them, without their seed."""

from __future__ import annotations

import dataclasses
from typing import Any

from toykern.sparse.fan_in import ConstantFanIn
from toykern.sparse.gradual import GradualMagnitude
from toykern.sparse.grow import DenseGradient, MomentumGrowth, RandomGrowth, SampledGradient
from toykern.sparse.lottery import LotteryTicket
from toykern.sparse.named import GSE, SET, SNFS, RigL, SRigL, Static
from toykern.sparse.prune import Magnitude, RandomPrune, Sensitivity
from toykern.sparse.recipe import PruneAndGrow, Recipe

_RECIPES: dict[str, type[Recipe]] = {
    kind.__name__: kind
    for kind in (
        ConstantFanIn, GradualMagnitude, GSE, LotteryTicket, PruneAndGrow, RigL, SET, SNFS, SRigL, Static,
    )
}  # fmt: skip
_PARTS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        DenseGradient, Magnitude, MomentumGrowth, RandomGrowth, RandomPrune, SampledGradient, Sensitivity,
    )
}  # fmt: skip


def recipe_config(recipe: Recipe) -> dict[str, Any]:
    """A JSON-able description of a recipe without its seed.

    One with a class or a callable of one's own in it is described by its class alone, as "custom".

    >>> recipe_config(SET(interval=50))["prune"]
    {'name': 'Magnitude', 'by_sign': True}
    """
    fields = _fields_of(recipe, _RECIPES)
    if fields is None:
        return {"name": "custom", "class": type(recipe).__name__}
    return fields


def recipe_from_config(config: dict[str, Any], seed: Any = None) -> Recipe | None:
    """The recipe that `recipe_config` described, with this seed; None for a custom one.

    >>> recipe_from_config(recipe_config(RigL(end=100))) == RigL(end=100)
    True
    """
    if config["name"] == "custom":
        return None
    fields = {name: _part(value) for name, value in config.items() if name != "name"}
    return _RECIPES[config["name"]](**fields, seed=seed)


def _part(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return _PARTS[value["name"]](**{name: entry for name, entry in value.items() if name != "name"})


def _fields_of(thing: Any, known: dict[str, Any]) -> dict[str, Any] | None:
    """The name of its class and its fields; None if they cannot be written down."""
    if known.get(type(thing).__name__) is not type(thing):
        return None
    found: dict[str, Any] = {"name": type(thing).__name__}
    for field in dataclasses.fields(thing):
        if field.name == "seed":
            continue
        value = getattr(thing, field.name)
        if value is not None and not isinstance(value, bool | int | float | str):
            value = _fields_of(value, _PARTS)
            if value is None:
                return None
        found[field.name] = value
    return found
