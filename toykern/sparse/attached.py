"""A recipe at work: counts steps, asks the recipe for changes, applies them to layers and optimisers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.utils.parametrize import is_parametrized

from toykern.arguments.errors import check_choice, check_flag, describe
from toykern.data.philox import half_normal
from toykern.ops.sparse_topology import explore
from toykern.ops.sparse_topology import move as move_together
from toykern.sparse import rewind
from toykern.sparse.change import Change
from toykern.sparse.distributed import Ranks, fingerprint
from toykern.sparse.draws import words64
from toykern.sparse.groups import GroupedLayer
from toykern.sparse.history import History
from toykern.sparse.layer import AttachedLayer, is_sparse_layer
from toykern.sparse.optimizer_state import as_optimizers, beginnings_of, check_held, state_of
from toykern.sparse.optimizer_watch import OptimizerWatch
from toykern.sparse.report import QUANTITIES, LayerReport, Update, plot_history, report_of, unchanged_report
from toykern.sparse.rules import Rules
from toykern.sparse.topology import Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATE_VERSION = 2
_STATE_VERSIONS = (1, 2)  # 1 had a list of updates for a history
_STATE_KEYS = ("recipe", "layers", "steps", "updates", "history", "memory", "fingerprint")


class AttachedTopology:
    """A recipe attached to a model and its optimiser; made by `recipe.attach(model, optimizer)`.

    Call `step()` once after every `optimizer.step()`, before the gradients are zeroed.

    Attributes:
        recipe: what it follows.
        steps: how often `step` was called; updates: how often the topology changed.
        history: an `Update` for each change, in order; of more than 1,000 every second, fourth, … and the
            newest (`toykern.sparse.history.History`).
        layers: the sparse layers, by name.
    """

    def __init__(
        self,
        recipe: Rules,
        model: nn.Module,
        optimizer: Any,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {describe(model)}")
        self.model = model
        self.optimizers = as_optimizers(optimizer)
        ranks = Ranks(process_group)
        found = [(name, module) for name, module in model.named_modules() if is_sparse_layer(module)]
        if not found:
            raise ValueError(
                f"model has no sparse layer: {type(model).__name__} holds no tk.SparseLinear; "
                "tk.sparsify(model, density) makes them of its Linears"
            )
        for name, module in found:
            if isinstance(module, nn.Module) and is_parametrized(module, "values"):
                raise ValueError(
                    f"the values of the sparse layer {name!r} are parametrised, so what an optimizer keeps "
                    "for them cannot follow their connections; attach recipes to layers that are not"
                )
        layers = [
            (GroupedLayer if getattr(module, "group", 1) > 1 else AttachedLayer)(
                name, number, module, recipe.seed, recipe.track_explored, ranks.average
            )
            for number, (name, module) in enumerate(found)
        ]
        self._check_held([layer for layer in layers if not layer.frozen])
        recipe.check([layer for layer in layers if not layer.frozen])
        ranks.check_same([layer.topology for layer in layers], "when the recipe is attached")
        self._begin(recipe, layers, ranks)

    def _begin(self, recipe: Rules, layers: list[AttachedLayer], ranks: Ranks) -> None:
        """Start counting; model, optimisers and layers have been checked."""
        self.recipe = recipe
        self._ranks = ranks
        self._layers = layers
        self.steps = 0
        self.updates = 0
        self.history = History(
            {
                layer.name: layer.topology.in_features * layer.topology.out_features * layer.group
                for layer in layers
            }
        )
        self.memory: dict[str, Any] = {}  # what recipes keep for the model as a whole
        self._expected: int | None = None  # fingerprint of the topology that belongs to a loaded state
        self._said_skipped = False
        self._watch = OptimizerWatch(self.optimizers, layers)
        layers[-1].is_last = True
        frozen = [layer.name for layer in layers if layer.frozen]
        if frozen:
            warnings.warn(
                f"{type(recipe).__name__} leaves the connections of {frozen} as they are, whose values do "
                "not require a gradient; they change when that is set again",
                UserWarning,
                stacklevel=4,
            )
        self._set_capture()
        recipe.attached_to(self)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The sparse layers by name."""
        return {layer.name: layer.module for layer in self._layers}

    @property
    def attached_layers(self) -> list[AttachedLayer]:
        """The sparse layers with what is kept beside them."""
        return self._layers

    def step(self) -> Update | None:
        """Count a step, and change the topology if it is time; the `Update`, or None.

        Layers whose values do not require a gradient keep their connections, and so do models whose gradients
        are not finite (`Update.skipped`, and a warning the first time).

        RuntimeError where gradients are needed and there are none, or another optimiser took over since the
        recipe was attached; ValueError where an optimiser keeps something that cannot follow its connections.
        Nothing is changed then, not even the count.
        """
        self._check_loaded()
        self._watch.check()
        step, number = self.steps + 1, self.updates + 1
        is_update = self.recipe.is_update(step)
        memories = [layer.memory for layer in self._layers]
        try:
            active = []
            for layer in self._layers:
                layer.memory = {} if layer.frozen else dict(layer.memory)
                layer.forget_not_finite()
                if not layer.frozen:
                    active.append(layer)
            if self.recipe.observes(step):
                for layer in active:
                    self.recipe.observe(layer, step, number)
            update = None
            if is_update:
                self._check_held(active)
                changes = self.recipe.plan(active, step, number) if active else []
                skipped, alone = self._skipped(active), self._left_alone()
                leave = _either(skipped, alone)
                prepared = {
                    layer.name: self._prepare(layer, _without(layer, change, leave))
                    for layer, change in zip(active, changes, strict=True)
                }
        except BaseException:
            for layer, memory in zip(self._layers, memories, strict=True):
                layer.memory = memory
            raise
        self.steps = step
        self._watch.forget()
        if is_update:
            reports = {
                layer.name: prepared[layer.name]() if layer.name in prepared else unchanged_report(layer)
                for layer in self._layers
            }
            self.updates = number
            rewound_to = self.recipe.finished(self, step, True)
            if skipped is not None and alone is not None:
                skipped &= ~alone  # what has gone wrong with these was said elsewhere
            which = () if skipped is None else tuple(skipped.nonzero()[:, 0].tolist())
            update = Update(step, number, self.recipe.fraction(step), reports, rewound_to, which)
            self.history.append(update)
            self._say_skipped(update)
            self._ranks.check_same(
                [layer.topology for layer in self._layers], f"after the update at step {step}"
            )
        else:
            self.recipe.finished(self, step, False)
        self._set_capture()
        return update

    def plot(self, quantity: str = "explored", ax: Axes | None = None) -> Axes:
        """Draw a quantity of `LayerReport` against the step, a line for each layer (the mean of its models).

        `quantity` is "explored", "density", "active_neurons", "active_inputs", "dropped", "grown" or
        "connections"; `ax` a matplotlib Axes, None for a new figure.
        """
        check_choice("quantity", quantity, QUANTITIES)
        return plot_history(self.history, quantity, ax)

    # --- for recipes that go back to earlier weights ------------------------------------------------------

    def keep_weights(self) -> None:
        """Remember all weights and the optimisers' state as they are now."""
        self.memory |= rewind.keep_weights(self.model, self.optimizers, self._layers)

    def put_weights_back(self, with_optimizer: bool) -> None:
        """Go back to what `keep_weights` remembered, as far as there still are connections."""
        with_optimizer = check_flag("with_optimizer", with_optimizer)
        rewind.put_weights_back(self.memory, self.model, self.optimizers, self._layers, with_optimizer)

    # --- checkpoints --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model's and the optimiser's own: counts, what the criteria
        have gathered, what was explored, the history. Random choices are a function of the seed and the
        number of the update, so they need no state. Tensors are copies."""
        return {
            "version": _STATE_VERSION,
            "recipe": type(self.recipe).__name__,
            "steps": self.steps,
            "updates": self.updates,
            "fingerprint": fingerprint([layer.topology for layer in self._layers]),
            "layers": {layer.name: _layer_state(layer) for layer in self._layers},
            "history": self.history.state(),
            "memory": _copied(self.memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Load the model's and the optimiser's state too, in any order.

        ValueError if the state is of another recipe or other layers; this object is left as it was. At the
        next `step()`, RuntimeError if the model's topology is not the one that the state belongs to.
        """
        if not isinstance(state, dict) or state.get("version") not in _STATE_VERSIONS:
            raise ValueError(
                f"state must come from state_dict() of an attached recipe, not {describe(state)}"
            )
        missing = [key for key in _STATE_KEYS if key not in state]
        if missing:
            raise ValueError(f"state lacks {', '.join(missing)}: it is no whole state_dict() of a recipe")
        if state["recipe"] != type(self.recipe).__name__:
            raise ValueError(
                f"state is of {state['recipe']}, and this recipe is {type(self.recipe).__name__}"
            )
        names = [layer.name for layer in self._layers]
        if list(state["layers"]) != names:
            raise ValueError(f"state is of the layers {list(state['layers'])}, and the model has {names}")
        for layer in self._layers:
            _check_layer_state(layer, state["layers"][layer.name])
        steps, updates, expected = int(state["steps"]), int(state["updates"]), int(state["fingerprint"])
        history = self.history.load(state["history"])
        for layer in self._layers:
            saved = _copied(state["layers"][layer.name])
            layer.budget, layer.explored = saved["budget"], saved["explored"]
            layer.memory, layer.slot_memory = saved["memory"], saved["slot_memory"]
            layer.move_to(layer.topology.device)
        self.steps, self.updates, self._expected = steps, updates, expected
        self.history = history
        self.memory = _copied(state["memory"])
        self._set_capture()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.recipe!r}, layers={len(self._layers)}, steps={self.steps}, "
            f"updates={self.updates})"
        )

    # --- the change ---------------------------------------------------------------------------------------

    def _prepare(self, layer: AttachedLayer, change: Change) -> Callable[[], LayerReport]:
        """All of a layer's change that can fail; the result applies it and reports on it."""
        new = layer.with_changes(change)
        states = state_of(self.optimizers, layer.module.values, layer.name)
        beginnings = beginnings_of(self.optimizers, layer.module.values)
        values = self._grown_values(layer, new.topology)

        def apply() -> LayerReport:
            move_together([*states, *layer.slot_memory.values()], new.old_slot)
            for state, beginning in zip(states, beginnings, strict=True):
                if beginning:
                    state.masked_fill_(new.old_slot < 0, beginning)
            layer.module.set_topology(new.topology, new.old_slot, values)
            marked = None
            if layer.explored is not None:
                marked = explore(layer.explored, new.fresh, layer.topology.n_models)
            return report_of(layer, new, marked)

        return apply

    def _grown_values(self, layer: AttachedLayer, new: Topology) -> torch.Tensor | float:
        """What grown connections start from: 0, or normal draws for every slot (0 in the slack)."""
        if self.recipe.grown_std == 0:
            return 0.0
        words = words64(
            layer.seeds,
            np.zeros(new.n_models, dtype=np.int64),
            new.capacity,
            purpose="value",
            layer=layer.number,
            step=self.updates + 1,
        )
        upper = (words >> np.uint64(32)).astype(np.uint32)
        size = half_normal(upper) * np.float32(self.recipe.grown_std)
        draws = np.where(upper & np.uint32(1), -size, size).reshape(-1)
        values = torch.from_numpy(draws).to(layer.module.values)
        return torch.where(new.occupied(), values, 0)

    def _check_held(self, active: list[AttachedLayer]) -> None:
        """ValueError unless the optimisers hold the values of these layers."""
        for layer in active:
            check_held(self.optimizers, layer.module.values, layer.name)

    def _skipped(self, active: list[AttachedLayer]) -> torch.Tensor | None:
        """The models whose gradients are not finite in any layer, on the CPU, bool `[n_models]`; None: none.

        Layers that are stacks of different sizes have no models in common: there all are skipped.
        """
        marks = [layer.not_finite.cpu() for layer in active]
        if not any(bool(mark.any()) for mark in marks):
            return None
        if len({len(mark) for mark in marks}) > 1:
            return torch.ones(max(len(mark) for mark in marks), dtype=torch.bool, device="cpu")
        return torch.stack(marks).any(dim=0)

    def _left_alone(self) -> torch.Tensor | None:
        """Models that no update may change, bool `[n_models]` on the CPU; None: no model."""
        return None

    def _say_skipped(self, update: Update) -> None:
        if update.skipped and not self._said_skipped:
            self._said_skipped = True
            of_models = f" of {len(update.skipped)} models" if update.skipped != (0,) else ""
            warnings.warn(
                f"the gradient{of_models} is not finite at step {update.step}: no connection changes there "
                "(Update.skipped says which models; this is said once)",
                RuntimeWarning,
                stacklevel=3,
            )

    def _set_capture(self) -> None:
        needed = self.recipe.observes(self.steps + 1)
        for layer in self._layers:
            layer.module.capture_gradient(needed)

    def _check_loaded(self) -> None:
        if self._expected is None:
            return
        if fingerprint([layer.topology for layer in self._layers]) != self._expected:
            raise RuntimeError(
                "the model's topology is not the one that the loaded state belongs to: load the model's "
                "state_dict of the same checkpoint too"
            )
        self._expected = None


def _either(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """Models in one or in the other."""
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _without(layer: AttachedLayer, change: Change, models: torch.Tensor | None) -> Change:
    """The change but for some models, bool `[n_models]`, which stay as they are."""
    if models is None:
        return change
    topology = layer.topology
    models = models[: topology.n_models].to(topology.device)
    drop = layer.per_model(change.drop) & ~models[:, None]
    model = change.grow // (topology.in_features * topology.out_features)
    return Change(drop.reshape(-1), change.grow[~models[model]])


def _layer_state(layer: AttachedLayer) -> dict[str, Any]:
    state: dict[str, Any] = {
        "budget": layer.budget,
        "memory": layer.memory,
        "slot_memory": layer.slot_memory,
        "explored": layer.explored,
    }
    return _copied(state)


def _check_layer_state(layer: AttachedLayer, saved: dict[str, Any]) -> None:
    """ValueError unless the saved state is of a layer of this shape."""
    topology = layer.topology
    positions = topology.n_models * topology.in_features * topology.out_features
    if saved["budget"].shape != layer.budget.shape:
        raise ValueError(
            f"state of {layer.name!r} is of {len(saved['budget'])} models, not {topology.n_models}"
        )
    if (saved["explored"] is None) != (layer.explored is None):
        raise ValueError("state and recipe differ in track_explored")
    if saved["explored"] is not None and saved["explored"].numel() != positions:
        raise ValueError(
            f"state of {layer.name!r} is of {saved['explored'].numel()} positions, not {positions}"
        )


def _copied(value: Any) -> Any:
    """Nested dicts and lists with their tensors copied."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value
