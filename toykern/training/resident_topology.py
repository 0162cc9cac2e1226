"""A topology recipe at work inside the resident trainer, between its native calls.

The kernels are handed a dense W with zeros where there is no connection, and marks of those there are; what
they make of it inside is theirs (csrc/cpu/resident/connections.inl). What changes a topology, a
`toykern.sparse` recipe, works on layers with one value for each connection; `DenseLayer` is that view of the
dense arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from toykern.arguments.errors import describe
from toykern.nn.sparse_tied_autoencoder import SparseTiedAutoencoder
from toykern.sparse.attached import AttachedTopology
from toykern.sparse.distributed import Ranks, fingerprint
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.lottery import LotteryTicket
from toykern.sparse.recipe import Recipe
from toykern.sparse.report import LayerReport, Update, share_of_true
from toykern.sparse.topology import Topology


def check_recipe(recipe: Any) -> Recipe:
    """`recipe` if `fit` can follow it; TypeError or ValueError that says why not."""
    if isinstance(recipe, Topology):
        raise TypeError(
            "topology must be a recipe, such as tk.RigL(end=…), not a set of connections; those go to "
            "tk.SparseTiedAutoencoder(topology=…)"
        )
    if not isinstance(recipe, Recipe):
        raise TypeError(f"topology must be a recipe, such as tk.RigL(end=…), not {describe(recipe)}")
    known = LotteryTicket if isinstance(recipe, LotteryTicket) else Recipe
    if getattr(getattr(recipe, "grow", None), "distribution", "uniform") != "uniform":
        raise ValueError(
            "topology draws candidates by the passes of a layer (distribution), which fit does not keep: use "
            'distribution="uniform", or attach it to the model in a loop of your own'
        )
    for name in ("attached_to", "finished"):
        if getattr(type(recipe), name) is not getattr(known, name):
            raise ValueError(
                f"topology={type(recipe).__name__}(…) has a method {name} of its own, for which there is no "
                "place in fit: attach it to the model in a loop of your own, recipe.attach(model, optimizer)"
            )
    if isinstance(recipe, LotteryTicket) and not recipe.rewind_optimizer:
        raise ValueError(
            "topology=LotteryTicket(rewind_optimizer=False) is for loops of your own: in fit the optimiser's "
            "count of steps is that of the data, which goes back"
        )
    return recipe


class DenseLayer:
    """The sparse W of a stack as the kernels train it, with the interface of a sparse layer.

    Attributes:
        weight: float32 `[models, n_hidden, n_features]`, 0 where there is no connection.
        states: the optimiser's tensors for it, of the same shape and with the same zeros.
        connected: uint8 of the same shape, 1 where there is a connection.
        gradient: float32 of the same shape, what the kernels last said ∂loss/∂W is at all positions.
        topology: the connections; never changed in place.
    """

    def __init__(self, model: SparseTiedAutoencoder, states: list[torch.Tensor]) -> None:
        self.topology = model.topology
        with torch.no_grad():
            self.weight = model.to_dense().contiguous()
        self.states = states
        self.connected = self.topology.to_mask().to(torch.uint8)
        self.gradient = torch.zeros_like(self.weight)
        for state in states:
            if bool(((state != 0) & (self.connected == 0)).any()):
                raise ValueError(
                    "model has other connections than the optimiser's state of the run to resume; it was "
                    "changed since"
                )

    @property
    def values(self) -> torch.Tensor:
        """The weights at the connections, `[models · capacity]`, 0 in the slack."""
        return self._at_connections(self.weight)

    def value_gradient(self) -> torch.Tensor:
        """The gradient at the connections, likewise."""
        return self._at_connections(self.gradient)

    def set_topology(self, topology: Topology, old_slot: torch.Tensor, grown: Any = 0.0) -> None:
        """Weights and moments stay with their connections; new ones start from `grown` and from 0."""
        slot, key = topology.occupied_slots(), topology.keys()
        source = old_slot[slot]
        new = source < 0
        leaves = self.topology.occupied()
        leaves[source[~new]] = False
        gone = self.topology.keys()[leaves[self.topology.occupied_slots()]]
        for tensor in (self.weight, *self.states, self.connected):
            tensor.view(-1)[gone] = 0
        came = key[new]
        self.connected.view(-1)[came] = 1
        self.weight.view(-1)[came] = grown[slot[new]] if isinstance(grown, torch.Tensor) else grown
        self.topology = topology

    def capture_gradient(self, enabled: bool) -> None:
        """Nothing: the trainer asks the kernels for the gradient of the steps that need it."""

    def dense_gradient(self) -> torch.Tensor:
        """∂loss/∂W of the step just made at all positions (a copy)."""
        return self.gradient.clone()

    def gradient_at(self, model: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """The same at some positions."""
        return self.gradient[model, row, column]

    def write_to(self, module: SparseTiedAutoencoder) -> None:
        """Bring the module's connections and values up to date."""
        values = self._at_connections(self.weight)
        if self.topology == module.topology:
            with torch.no_grad():
                module.values.copy_(values)
        else:
            module.set_topology(self.topology, torch.full_like(values, -1, dtype=torch.int64), values)

    def _at_connections(self, dense: torch.Tensor) -> torch.Tensor:
        found = dense.view(-1)[self.topology.keys()]
        if len(found) == len(self.topology.column):  # no slack, the usual case
            return found
        values = dense.new_zeros(len(self.topology.column))
        values[self.topology.occupied_slots()] = found
        return values


class ResidentLayer(AttachedLayer):
    """An attached layer whose module is a `DenseLayer` while `fit` trains."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._trained = self.module

    @property
    def frozen(self) -> bool:
        """Whether the model's values do not require a gradient."""
        return not self._trained.values.requires_grad

    def _gradient_of_values(self) -> torch.Tensor | None:
        if not isinstance(self.module, DenseLayer):
            return super()._gradient_of_values()
        return self.module.value_gradient()

    def gradient_tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """One: the kernels hold the gradient at all positions anyway, and without ranks it stays as it is."""
        yield 0, self.module.gradient.view(-1)


class ResidentTopology(AttachedTopology):
    """A recipe at work on the models of a `toykern.Run`: `run.topology`.

    `history`, `plot`, `steps`, `updates` and `state_dict` are those of
    `toykern.sparse.AttachedTopology`; the one layer is called "weight". `fit` makes the steps. Models that
    have diverged keep their connections, and stay as they are.

    `steps` counts all steps that were made. A lottery ticket puts the weights back to an earlier step of the
    run, whose own count goes back too: it is `steps` less `steps_gone_back`.

    Args:
        recipe: one without need of a torch optimiser (`check_recipe`).
        model: the models.
        seeds: of the random choices, an int or `[models]`; None means 0 … models−1.
    """

    recipe: Recipe

    def __init__(self, recipe: Recipe, model: SparseTiedAutoencoder, seeds: Any) -> None:
        self.model = self._models = model
        self.optimizers = ()
        self._diverged: torch.Tensor | None = None
        self._arrays: dict[str, torch.Tensor] = {}
        layer = ResidentLayer("weight", 0, model, seeds, recipe.track_explored, _as_it_is)
        self._begin(recipe, [layer], Ranks.alone())

    @classmethod
    def fresh(cls, recipe: Recipe, model: SparseTiedAutoencoder, seeds: Any, steps: int) -> ResidentTopology:
        """At the start of a run of `steps` steps; ValueError if the recipe does not fit it or the models."""
        if isinstance(recipe, LotteryTicket) and recipe.round_steps > steps:
            raise ValueError(
                f"topology: round_steps must be at most the steps of the run ({steps}), not "
                f"{recipe.round_steps}: no round would end"
            )
        topology = cls(recipe, model, seeds)
        recipe.check(topology.attached_layers)
        return topology

    @classmethod
    def restored(
        cls, recipe: Recipe, model: SparseTiedAutoencoder, seeds: Any, state: dict[str, Any]
    ) -> ResidentTopology:
        """As it was when `state_dict()` was taken."""
        topology = cls(recipe, model, seeds)
        topology.load_state_dict(state)
        return topology

    @property
    def seeds(self) -> torch.Tensor:
        """Of the random choices, int64 `[models]`."""
        return torch.from_numpy(self._layers[0].seeds)

    @property
    def explored(self) -> torch.Tensor:
        """The fraction of positions that ever had a connection, float64 `[models]`; ValueError without."""
        explored = self._layers[0].explored
        if explored is None:
            raise ValueError("explored was not tracked: the recipe has track_explored=False")
        return share_of_true(explored.reshape(self._layers[0].topology.n_models, -1))

    @property
    def steps_gone_back(self) -> int:
        """By how many steps the weights were put back so far, in all."""
        return self.recipe.steps_gone_back(self.updates)

    def summary(self) -> str:
        """One line for people: the recipe, its updates, what there is and was."""
        parts = [f"{type(self.recipe).__name__}, {self.updates:,} updates"]
        parts.append(f"density {float(self._layers[0].topology.density.mean()):.3g}")
        if self._layers[0].explored is not None:
            parts.append(f"explored {float(self.explored.mean()):.3g}")
        return ", ".join(parts)

    def begin(self, layer: DenseLayer, arrays: dict[str, torch.Tensor], step: int) -> None:
        """Work on the arrays of the kernels from now on; they are at step `step` of the run.

        `arrays`, `[models, …]` each, are all that training changes: "parameters/…", "state/…" of the
        optimiser, and sums of records begun, "carry/…".
        """
        if self.steps - self.steps_gone_back != step:
            raise RuntimeError(
                f"the run cannot go on: it was broken off inside the topology's update after step {step}"
            )
        self._check_loaded()
        self._layers[0].module = layer
        self._layers[0].move_to(layer.weight.device)  # the model may have moved since
        self._arrays = arrays
        if self.steps == 0:
            self.recipe.attached_to(self)  # there was nothing to keep when the recipe was attached

    def end(self) -> None:
        """The module is up to date; go back to it."""
        self._layers[0].module = self._models
        self._arrays = {}
        self._expected = fingerprint([self._models.topology])

    def next_stop(self, step: int, limit: int) -> int:
        """The first step after `step` after which there is something to do here; `limit` if none before."""
        gone = self.steps_gone_back
        return self.recipe.next_stop(step + gone, limit + gone) - gone

    def needs_gradient(self, step: int) -> bool:
        """Whether the gradient at all positions of step `step`, counted from 1, is looked at."""
        made = step + self.steps_gone_back
        return self.recipe.observes(made) or self.recipe.is_update(made)

    def advance(self, step: int, diverged: torch.Tensor) -> Update | None:
        """Count the steps up to `step`, and do what is to be done after it.

        `diverged` is bool `[models]`. No step before may be one of `next_stop`. Where the update's
        `rewound_to` is not None, the arrays are again those of that step.
        """
        self.steps = step + self.steps_gone_back - 1
        self._diverged = diverged.to(self._layers[0].topology.device) if bool(diverged.any()) else None
        return self.step()

    def keep_weights(self) -> None:
        """Remember all that training changes, as it is now."""
        self.memory = {name: tensor.clone() for name, tensor in self._arrays.items()}

    def put_weights_back(self, with_optimizer: bool) -> None:
        """Go back to what `keep_weights` remembered, as far as there still are connections; models that have
        diverged stay as they are."""
        connected = self._layers[0].module.connected.bool()
        for name, tensor in self._arrays.items():
            kept = self.memory[name].to(tensor.device)
            if "weight" in name.split("/"):
                kept = kept.where(connected, 0.0)
            if self._diverged is not None:
                kept = tensor.where(self._diverged.view(-1, *[1] * (tensor.ndim - 1)), kept)
            tensor.copy_(kept)

    def _check_held(self, active: list[AttachedLayer]) -> None:
        """Nothing: the arrays of the optimiser are the trainer's own."""

    def _left_alone(self) -> torch.Tensor | None:
        """Models that have diverged."""
        return None if self._diverged is None else self._diverged.cpu()

    def _set_capture(self) -> None:
        """Nothing: see `DenseLayer.capture_gradient`."""


def stored_state(topology: ResidentTopology) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state of a recipe at work for a store: what is JSON-able, and tensors by a path; ValueError if a
    recipe of one's own keeps what is neither."""
    state = topology.state_dict()
    layer = state["layers"]["weight"]
    strange = sorted(name for name, kept in state["memory"].items() if not isinstance(kept, torch.Tensor))
    if strange:
        raise ValueError(f"{state['recipe']} keeps {strange}, which a store cannot hold")
    tensors = {"budget": layer["budget"]}
    tensors |= {f"of_the_run/{name}": kept for name, kept in state["memory"].items()}
    if layer["explored"] is not None:
        tensors["explored"] = layer["explored"]
    for kind in ("memory", "slot_memory"):
        tensors |= {f"{kind}/{name}": tensor for name, tensor in layer[kind].items()}
    tensors |= {f"history/{name}": tensor for name, tensor in _history_arrays(topology.history).items()}
    plain = {name: state[name] for name in ("version", "recipe", "steps", "updates", "fingerprint")}
    plain["history"] = [
        {name: getattr(update, name) for name in ("step", "number", "drop_fraction", "rewound_to", "skipped")}
        for update in topology.history
    ]
    return plain, tensors


def state_from_store(plain: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The inverse of `stored_state`, for `load_state_dict`."""

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    layer = {
        "budget": tensors["budget"],
        "explored": tensors.get("explored"),
        "memory": below("memory/"),
        "slot_memory": below("slot_memory/"),
    }
    history = [update.state() for update in _history_from(plain["history"], below("history/"))]
    return {**plain, "layers": {"weight": layer}, "history": history, "memory": below("of_the_run/")}


def _history_arrays(history: Sequence[Update]) -> dict[str, torch.Tensor]:
    """What every update said of every model, by name: `[models, updates]` each."""
    if not history:
        return {}
    reports = [update.layers["weight"] for update in history]
    return {
        name: torch.stack([getattr(report, name) for report in reports], dim=1)
        for name in vars(reports[0])
        if getattr(reports[0], name) is not None
    }


def _history_from(updates: list[dict[str, Any]], arrays: dict[str, torch.Tensor]) -> list[Update]:
    """The inverse of `_history_arrays`; `updates` says the rest of each update."""
    names = ("dropped", "grown", "connections", "density", "explored", "active_neurons", "active_inputs")

    def of_update(name: str, at: int) -> Any:
        return arrays[name][:, at].clone() if name in arrays else None

    return [
        Update(
            layers={"weight": LayerReport(**{name: of_update(name, at) for name in names})},
            **update,
        )
        for at, update in enumerate(updates)
    ]


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
