"""Prune and grow with the same number of inputs at every active output, and outputs that may die (SRigL)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toykern.arguments.errors import check_flag, check_number
from toykern.sparse.change import Change
from toykern.sparse.layer import AttachedLayer
from toykern.sparse.prune import fractions, lowest_of_layer
from toykern.sparse.recipe import PruneAndGrow
from toykern.sparse.selection import largest, largest_of_groups


@dataclass(frozen=True, kw_only=True)
class ConstantFanIn(PruneAndGrow):
    """`PruneAndGrow` that gives all active outputs of a model the same fan-in (Lasby et al. 2024, §3).

    In each layer and model, with B connections when attached, fan-in k and a fraction to drop of K in all:

    1. The K worst connections by the prune criterion are to go.
    2. An output's salient weights are those that stay, and those of the K best free places by the grow
       criterion.
    3. Outputs with fewer salient weights than max(1, ablation · k) are ablated: they lose all inputs. At
       least B / in_features outputs, those with most salient weights, stay, so that B connections find a
       place.
    4. The fan-in becomes k' = floor(B / active outputs), at most in_features. An output with more that stay
       loses the worst; one with fewer grows the best free places of its row, until it has k'.

    Args:
        ablation: γ_sal, in [0, 1]; 0 never ablates.
        ablate_last: ablate outputs of the model's last sparse
            layer too; it usually is the output of the network.

    The other arguments are those of `PruneAndGrow`, with scope="layer", no redistribution, no minimum_fan_in
    (the fan-in is the minimum) and no minimum_fan_out, and a grow criterion that fills any row (random,
    dense or momentum). An ablated output comes back when its free places are among the best again. The
    authors' code counts the K largest gradients over all positions in step 2; here those of free ones count,
    as connections that stay are counted already.
    """

    ablation: float = 0.3
    ablate_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ablation", self.ablation, minimum=0.0, maximum=1.0)
        check_flag("ablate_last", self.ablate_last)
        if self.moves_between_layers or self.minimum_fan_in or self.minimum_fan_out:
            raise ValueError(
                "constant fan-in goes with scope='layer', redistribution=None, minimum_fan_in=0 and "
                f"minimum_fan_out=0, not {self.scope!r}, {self.redistribution!r}, {self.minimum_fan_in} and "
                f"{self.minimum_fan_out}"
            )
        if not self.grow.grows_dropped:
            raise ValueError(
                f"constant fan-in needs a grow criterion that can fill any row, not {self.grow!r}"
            )

    @property
    def looks_once(self) -> bool:
        """No, where outputs may be ablated: salience and growth both look at the gradient."""
        return super().looks_once and self.ablation == 0

    def plan(self, layers: list[AttachedLayer], step: int, number: int) -> list[Change]:
        """The four steps above for every layer."""
        fraction = self.fraction(step)
        self.mark_not_finite(layers)
        return [
            self._plan_layer(
                layer, fraction, number, 0.0 if layer.is_last and not self.ablate_last else self.ablation
            )
            for layer in layers
        ]

    def _plan_layer(self, layer: AttachedLayer, fraction: float, number: int, ablation: float) -> Change:
        topology = layer.topology
        shape = (topology.n_models, topology.out_features)
        score = self.prune.score(layer, number)
        occupied = topology.occupied()
        counts = fractions(fraction, topology.n_connections)
        drop, _ = lowest_of_layer(layer, score, None, number, counts=counts)
        slot = (occupied & ~drop).nonzero()[:, 0]
        row = slot // max(1, topology.capacity) * topology.out_features + topology.row[slot]
        key = row * topology.in_features + topology.column[slot]
        salient = torch.bincount(row, minlength=shape[0] * shape[1])
        if ablation:
            best, _ = self.proposed(layer, key, counts, False, number)
            salient = salient + torch.bincount(best // topology.in_features, minlength=len(salient))
        active = self._active(layer, salient.reshape(shape), ablation, number)
        fan_in = (layer.budget // active.sum(dim=1).clamp(min=1)).clamp(max=topology.in_features)
        wanted = (active * fan_in[:, None]).reshape(-1)
        ties = layer.ties_of_slots(number)
        keep = largest_of_groups(
            score[slot].nan_to_num(nan=-torch.inf), row, wanted, lambda entry: ties.words(slot[entry])
        )
        missing = wanted - torch.bincount(row[keep], minlength=len(wanted))
        drop = occupied.clone()
        drop[slot[keep]] = False
        grow, _ = self.proposed(layer, key[keep], missing, True, number)
        return Change(drop, grow)

    def _active(
        self, layer: AttachedLayer, salient: torch.Tensor, ablation: float, number: int
    ) -> torch.Tensor:
        """The outputs that stay, bool `[n_models, out_features]`."""
        topology = layer.topology
        if ablation == 0:
            return torch.ones_like(salient, dtype=torch.bool)
        least = (ablation * topology.fan_in.amax(dim=1).double()).clamp(min=1.0)
        active = salient >= least[:, None]
        needed = (layer.budget + topology.in_features - 1) // topology.in_features
        enough = active.sum(dim=1) >= needed
        best = largest(salient.double(), needed, layer.ties_of_outputs(number))
        return torch.where(enough[:, None], active, best)
