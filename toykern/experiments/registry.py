"""The experiments there are, in the order in which a reader meets them."""

from __future__ import annotations

from importlib import import_module

from toykern.experiments.experiment import Experiment

MODULES = ("intro_polygons", "toy_saes", "activations_saes", "hierarchy_absorption")
"""The modules of this room that hold an `EXPERIMENT`, whose name is the module's with hyphens."""


def names() -> list[str]:
    """The names of all experiments.

    >>> "intro-polygons" in names()
    True
    """
    return [module.replace("_", "-") for module in MODULES]


def get(name: str) -> Experiment:
    """The experiment of this name; ValueError, with the names there are, where there is none.

    >>> get("intro-polygons").quick.steps < get("intro-polygons").settings.steps
    True
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}, not {name!r:.60}")
    experiment: Experiment = import_module(f"toykern.experiments.{name.replace('-', '_')}").EXPERIMENT
    return experiment
