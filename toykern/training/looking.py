"""What models make of a whole dataset, beside the loss: their accuracy, and which hidden units are dead.

Outputs and codes are computed in float64 by batched products, some models and rows at a time. The last bits
of such products depend on what stands beside a model, on the threads and on the device. What is counted here
does not, but for networks that make a rounding error 10⁶ times as large: a sample whose answer hangs on less
than `_CLEAR` is done again, in sums whose order follows from the shape of one model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from toykern.data.dataset import Dataset
from toykern.data.sources import Source
from toykern.metrics.stacks import total
from toykern.network.losses import EMBEDDED
from toykern.network.specification import NetworkSpec
from toykern.nn.functions import activated
from toykern.nn.two_layer import Tensors, codes_of, embedded, outputs_of

_BLOCK_BYTES = 1 << 25
"""What is worked on at a time."""

_CLEAR = 1e-9
"""Relative to 1 and to the number itself: far above what the order of a float64 sum can change."""


def why_no_classes(data: Source, network: NetworkSpec) -> str | None:
    """Why an accuracy cannot be had of `data`; None if its targets are classes.

    >>> why_no_classes(Dataset(torch.eye(3)), NetworkSpec(n_features=3, n_hidden=2))
    >>> why_no_classes(Dataset(torch.ones(2, 3)), NetworkSpec(n_features=3, n_hidden=2))
    'targets that are classes: labels, or a single 1 among zeros in every sample, which sample 0 has not'
    """
    if not isinstance(data, Dataset):
        return "a finite Dataset, whose samples are all looked at; here is a stream"
    classes = "targets that are classes: labels, or a single 1 among zeros in every sample"
    if data.label is not None:
        return None
    if network.target == EMBEDDED:
        return f"{classes}, not target={network.target!r}"
    if data.target is None and data.entries is not None:
        single = (data.entries.row_start.diff() == 1).view(data.entries.n_models, -1)
        if bool(single.all()):
            single = (data.entries.value == 1).view_as(single)
    else:
        held = data.input if data.target is None else data.target
        assert held is not None
        single = ((held != 0).sum(dim=2) == 1) & ((held == 1).sum(dim=2) == 1)
    if data.samples is not None:
        single = single | ~_present(data, slice(0, None), slice(0, data.rows))
    if bool(single.all()):
        return None
    model, sample = (~single).nonzero()[0].tolist()
    of_model = f" of model {model}" if len(single) > 1 else ""
    return f"{classes}, which sample {sample}{of_model} has not"


def can_be_idle(network: NetworkSpec) -> bool:
    """Whether a hidden unit of this network can be exactly 0 on a set of samples, other than by chance."""
    leaks = network.hidden_activation == "leaky_relu" and network.negative_slope == 0
    return leaks or network.hidden_activation in ("relu", "topk")


@torch.no_grad()
def accuracy(tensors: Tensors, network: NetworkSpec, data: Dataset) -> torch.Tensor:
    """The share of a dataset's samples whose class has the largest output, float64 `[models]` on the CPU; of
    equal outputs the first counts.

    `tensors` has the network's parameters and fixed matrices by name, `[models, …]`, on one device;
    `why_no_classes` has nothing against `data`. What is found of a model that is not finite says nothing.
    """
    models = _models_of(tensors, network)
    classes = _classes(data)
    right = torch.zeros(models, dtype=torch.int64, device="cpu")
    for block in _blocks(tensors, network, data):
        whole = classes[block.own(classes)][:, block.rows].to(block.x.device)
        output = block.output(network)
        wanted = whole.expand(len(output), -1)
        lead, clear = _lead(output, wanted)
        hit = lead > 0
        for part in block.pairs(~clear & block.present):
            own = wanted[part.model, part.row][:, None]
            hit[part.model, part.row] = _is_first(part.output(network), own)[:, 0]
        right[block.models] += (hit & block.present).sum(dim=1).cpu()
    return right.double() / _samples(data)


@torch.no_grad()
def dead_units(tensors: Tensors, network: NetworkSpec, data: Dataset) -> torch.Tensor:
    """The share of hidden units that are 0 on every sample of a dataset, float64 `[models]` on the CPU;
    arguments as for `accuracy`."""
    alive = torch.zeros(_models_of(tensors, network), network.n_hidden, dtype=torch.bool, device="cpu")
    linear = dataclasses.replace(network, hidden_activation="none", top_k=0)
    # A sum of two products, which float64 has exactly, is the same in any order.
    in_any_order = not network.n_embedding and not network.centered
    for block in _blocks(tensors, network, data):
        before = block.codes(linear)
        found = alive[block.models].to(before.device)
        if network.hidden_activation != "topk" and _all_clear(before, block.present, found):
            alive[block.models] = found.cpu()
            continue
        active, idle = _activity(before, network)
        if in_any_order:
            exact = ((block.x != 0).sum(dim=2) <= 2).unsqueeze(2)
            fires = activated(before, network.hidden_activation, network) != 0
            active, idle = torch.where(exact, fires, active), torch.where(exact, ~fires, idle)
        there = block.present.unsqueeze(2)
        found |= (active & there).any(dim=1)
        open_ones = (~active & ~idle & there & ~found.unsqueeze(1)).any(dim=2)
        for part in block.pairs(open_ones & ~before.isnan().any(dim=2)):
            fires = (part.codes(network) != 0)[:, 0]
            found |= torch.zeros_like(found, dtype=torch.float32).index_add(0, part.model, fires.float()) > 0
        alive[block.models] = found.cpu()
    return (~alive).double().mean(dim=1)


def _lead(output: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much the outputs `[models, rows, n_outputs]` of the classes `[models, rows]` are larger than all
    others, and whether that is clear, `[models, rows]`; `output` is used up."""
    wanted = wanted.unsqueeze(2)
    own = output.gather(2, wanted)
    lead = own.sub(output.scatter_(2, wanted, -torch.inf).amax(dim=2, keepdim=True)).squeeze(2)
    return lead, (lead.abs() > _CLEAR * (1 + own.squeeze(2).abs())) | lead.isnan()


def _is_first(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Which of the classes `[models, rows]` have the largest output, before others as large; bool."""
    number = torch.arange(output.shape[2], dtype=torch.int64, device=output.device)
    wanted = wanted.unsqueeze(2)
    own = output.gather(2, wanted)
    return ~((output > own) | ((output == own) & (number < wanted))).any(dim=2)


def _all_clear(before: torch.Tensor, present: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether the largest codes before a ReLU leave no question; units that are active are added to `found`,
    bool `[models, n_hidden]`. The quick way, which most blocks go."""
    most = torch.where(present.unsqueeze(2), before, -torch.inf).amax(dim=1)
    found |= most > _CLEAR
    return not bool((~found & (most >= -_CLEAR)).any())


def _activity(before: torch.Tensor, network: NetworkSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Of codes before their activation, `[models, rows, n_hidden]`: which are clearly not 0 after it, and
    which clearly are."""
    if network.hidden_activation != "topk":
        return before > _CLEAR, before < -_CLEAR
    margin = _CLEAR * (1 + before.abs())
    ordered = before.sort(dim=2, descending=True).values
    least = ordered[:, :, network.top_k - 1, None]
    if network.top_k == network.n_hidden:
        chosen = torch.ones_like(before, dtype=torch.bool)
    else:
        chosen = before - ordered[:, :, network.top_k, None] > margin
    return chosen & (before.abs() > margin), least - before > margin


@dataclass(frozen=True)
class _Part:
    """Some models on some rows: inputs float64 `[models or 1, rows, n_features]`, tensors of them."""

    x: torch.Tensor
    tensors: Tensors

    def codes(self, network: NetworkSpec) -> torch.Tensor:
        """`[models, rows, n_hidden]`."""
        return codes_of(embedded(self.x, self.tensors, self._product), self.tensors, network, self._product)

    def output(self, network: NetworkSpec) -> torch.Tensor:
        """`[models, rows, n_outputs]`."""
        seen = embedded(self.x, self.tensors, self._product)
        codes = codes_of(seen, self.tensors, network, self._product)
        return outputs_of(codes, seen, self.tensors, network, self._product)

    @staticmethod
    def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ right


@dataclass(frozen=True)
class _Pairs(_Part):
    """Single samples, each with its model: `[pairs, 1, n_features]`. Sums have an order of their own.

    Attributes:
        model, row: where they are in the block, int64 `[pairs]`.
    """

    model: torch.Tensor
    row: torch.Tensor

    @staticmethod
    def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return total((left.mT * right).movedim(1, 0)).unsqueeze(1)


@dataclass(frozen=True)
class _Block(_Part):
    """Neighbouring models on neighbouring rows.

    Attributes:
        models, rows: which.
        present: bool `[models or 1, rows]`, which samples a model has.
    """

    models: slice
    rows: slice
    present: torch.Tensor

    def own(self, held: torch.Tensor) -> slice:
        """Where in something `[models or 1, …]` theirs is."""
        return self.models if len(held) > 1 else slice(0, 1)

    def pairs(self, chosen: torch.Tensor) -> Iterator[_Pairs]:
        """The samples that are chosen, bool `[models, rows]`, so many at a time as there is memory for."""
        model, row = chosen.nonzero(as_tuple=True)
        size = sum(t.numel() // len(t) for t in self.tensors.values()) + self.x.shape[2]
        at_once = max(1, _BLOCK_BYTES // (16 * size))
        for some_models, some_rows in zip(model.split(at_once), row.split(at_once), strict=True):
            if not len(some_models):
                continue
            x = self.x[some_models * (len(self.x) > 1), some_rows].unsqueeze(1)
            own = {name: held[some_models * (len(held) > 1)] for name, held in self.tensors.items()}
            yield _Pairs(x, own, some_models, some_rows)


def _blocks(tensors: Tensors, network: NetworkSpec, data: Dataset) -> Iterator[_Block]:
    """All models on all rows of a dataset, each once."""
    models = _models_of(tensors, network)
    device = next(iter(tensors.values())).device
    widths = network.n_features + network.n_embedding + 4 * network.n_hidden + 5 * network.n_outputs
    weights = sum(t.numel() // len(t) for t in tensors.values())
    rows_at_once = min(data.rows, max(1, _BLOCK_BYTES // (8 * widths)))
    models_at_once = min(models, max(1, _BLOCK_BYTES // (8 * (widths * rows_at_once + weights))))
    own_inputs = data.config()["models"] > 1
    for first in range(0, models, models_at_once):
        some = slice(first, min(first + models_at_once, models))
        own = {name: held[some if len(held) > 1 else slice(0, 1)].double() for name, held in tensors.items()}
        for start in range(0, data.rows, rows_at_once):
            rows = slice(start, min(start + rows_at_once, data.rows))
            x = data.dense_rows(some if own_inputs else slice(0, 1), rows).to(device, torch.float64)
            yield _Block(x, own, some, rows, _present(data, some, rows).to(device))


def _present(data: Dataset, models: slice, rows: slice) -> torch.Tensor:
    """Which samples a model has, bool `[models or 1, rows]`."""
    number = torch.arange(rows.start, rows.stop, dtype=torch.int64, device="cpu")
    held = _samples(data)
    return number < held[models if len(held) > 1 else slice(0, 1), None]


def _samples(data: Dataset) -> torch.Tensor:
    """How many samples a model has, int64 `[1 or models]`."""
    if data.samples is not None:
        return data.samples
    return torch.full((1,), data.rows, dtype=torch.int64, device="cpu")


def _classes(data: Dataset) -> torch.Tensor:
    """The class of each sample, int64 `[1 or models, T]`; of samples that a model does not have, any."""
    if data.label is not None:
        return data.label.long()
    if data.target is None and data.entries is not None:
        start = data.entries.row_start[:-1].view(data.entries.n_models, -1)
        return data.entries.feature[start.clamp(max=len(data.entries.feature) - 1)].long()
    held = data.input if data.target is None else data.target
    assert held is not None
    return held.argmax(dim=2)


def _models_of(tensors: Tensors, network: NetworkSpec) -> int:
    """How many models these tensors are of; the fixed ones may be one for all."""
    return len(tensors[network.parameters[0].name])
