"""Which optimisers step on the values of sparse layers: one that a recipe does not know is noticed.

A recipe moves the state of the optimisers it was attached with. If another one takes over in the middle of a
run, its moments would stay with slots while connections come and go, and nothing in the model would show it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from toykern.sparse.layer import AttachedLayer


class OptimizerWatch:
    """Sees every step of every torch optimiser in the process, as long as it lives.

    Args:
        optimizers: those that the recipe knows.
        layers: the layers whose values are watched.
    """

    def __init__(self, optimizers: Sequence[Optimizer], layers: Sequence[AttachedLayer]) -> None:
        self._optimizers = tuple(optimizers)
        self._layers = list(layers)
        self.forget()
        _begin_to_watch(self)

    def forget(self) -> None:
        """Begin anew: no step was seen."""
        self._stepped: set[int] = set()  # which of the known ones
        self._strangers: dict[str, tuple[str, bool]] = {}  # by layer: who stepped, and whether it keeps state

    def see(self, optimizer: Optimizer) -> None:
        """An optimiser made a step."""
        for i, known in enumerate(self._optimizers):
            if optimizer is known or optimizer.state is known.state:  # or what a wrapper wraps
                self._stepped.add(i)
                return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for layer in self._layers:
            values = layer.module.values
            if id(values) in held:
                kept = optimizer.state.get(values, {}).values()
                keeps = any(isinstance(entry, torch.Tensor) and entry.shape == values.shape for entry in kept)
                self._strangers[layer.name] = (type(optimizer).__name__, keeps)

    def check(self) -> None:
        """RuntimeError where an unknown optimiser updated a layer's values, and either keeps state for them
        or stands in for a known one that did not step since."""
        for layer in self._layers:
            stranger = self._strangers.get(layer.name)
            if stranger is None:
                continue
            name, keeps = stranger
            knows = [type(known).__name__ for known in self._optimizers]
            if keeps or not self._stepped:
                raise RuntimeError(
                    f"the values of the sparse layer {layer.name!r} were updated by another optimizer "
                    f"({name}) than the recipe was attached with ({', '.join(knows)}), whose state would "
                    "not follow its connections: attach the recipe to the one in use, "
                    "recipe.attach(model, optimizer), and load_state_dict(topology.state_dict()) into that"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _begin_to_watch(self)


_watches: weakref.WeakSet[OptimizerWatch] = weakref.WeakSet()
_hooked = False


def _begin_to_watch(watch: OptimizerWatch) -> None:
    """One hook serves all; it is there from the first recipe on."""
    global _hooked
    if not _hooked:
        register_optimizer_step_post_hook(_after_step)
        _hooked = True
    _watches.add(watch)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for watch in list(_watches):
        watch.see(optimizer)
