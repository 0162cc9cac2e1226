"""What `fit(record=…)` may name: of each record what it is, what it needs, its shape, how it is measured.

`Settings.check` refuses by it, the loop measures by it, runs and stores name dimensions by it. A new record
is a row of `RECORDS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from toykern import metrics
from toykern.arguments.errors import check_choice, describe
from toykern.data.dataset import Dataset
from toykern.data.sources import Source
from toykern.metrics.stacks import total
from toykern.network.specification import NetworkSpec
from toykern.nn.kinds import AnyModel
from toykern.training.looking import accuracy, can_be_idle, dead_units, why_no_classes
from toykern.training.resident_topology import DenseLayer, ResidentTopology


@dataclass(frozen=True, eq=False)
class Asked:
    """A run to be, as far as it matters for what can be recorded of it.

    Attributes:
        network: what each model is, and is trained for.
        kind: the name of the models' class.
        data, test: what they are trained and looked at on.
        tracks_explored: whether a recipe at work does.
    """

    network: NetworkSpec
    kind: str
    data: Source
    test: Dataset | None
    tracks_explored: bool


@dataclass(frozen=True, eq=False)
class Moment:
    """Models in training, at the end of a record.

    Attributes:
        model: the module; what it holds may be older than `tensors`.
        network: what each model is, and is trained for.
        tensors: the parameters by name as they are being trained, `[models, …]`, on the models' device.
        data, test: what they are trained and looked at on.
        test_loss: what computes each model's loss on `test`.
        layer, topology: of sparse models; of those with a recipe.
    """

    model: AnyModel
    network: NetworkSpec
    tensors: dict[str, torch.Tensor]
    data: Source
    test: Dataset | None
    test_loss: Callable[[], torch.Tensor]
    layer: DenseLayer | None
    topology: ResidentTopology | None

    @functools.cached_property
    def feature_weight(self) -> torch.Tensor:
        """What leads from features to hidden units, `[models, n_hidden, n_features]`."""
        return self.model.feature_weight(self.tensors)

    @functools.cached_property
    def whole(self) -> dict[str, torch.Tensor]:
        """The parameters, and the fixed tensors of the network."""
        return self.tensors | self.model.fixed_tensors()

    @functools.cached_property
    def finite(self) -> torch.Tensor:
        """Of which models all parameters are finite, bool `[models]`, on the CPU."""
        found = [torch.isfinite(tensor).flatten(1).all(dim=1).cpu() for tensor in self.tensors.values()]
        return torch.stack(found).all(dim=0)


@dataclass(frozen=True)
class Record:
    """One name of `record`.

    Attributes:
        name: as users write it, runs and stores have it.
        meaning: in a few words.
        measure: each model's number at a moment, `[models, *dims]`; None: kernels sum it up in each step.
        dims: the dimensions after the models' and the records'.
        lacks: what a run to be would need for it and has not, to be read after "needs"; None if nothing.
        of_test: whether it is measured on `fit(test=…)`.
    """

    name: str
    meaning: str
    measure: Callable[[Moment], torch.Tensor] | None
    dims: tuple[str, ...] = ()
    lacks: Callable[[Asked], str | None] = lambda asked: None
    of_test: bool = False

    def check(self, asked: Asked) -> None:
        """ValueError that says why it cannot be recorded of a run."""
        lacking = "test=, a Dataset to look at" if self.of_test and asked.test is None else self.lacks(asked)
        if lacking is not None:
            raise ValueError(f"record: {self.name!r} needs {lacking}")


def _geometry(measured: Callable[[Any], torch.Tensor]) -> Callable[[Moment], torch.Tensor]:
    return lambda moment: measured(moment.feature_weight)


def _no_connections(asked: Asked) -> str | None:
    return None if asked.network.sparse else f"sparse models; {asked.kind} has all connections"


def _not_tracked(asked: Asked) -> str | None:
    return None if asked.tracks_explored else "topology=, a recipe with track_explored=True"


def _no_classes(asked: Asked) -> str | None:
    return why_no_classes(asked.data, asked.network)


def _no_test_classes(asked: Asked) -> str | None:
    assert asked.test is not None
    lacking = why_no_classes(asked.test, asked.network)
    return None if lacking is None else f"in test {lacking}"


def _never_idle(asked: Asked) -> str | None:
    if can_be_idle(asked.network):
        return None
    given = asked.network.hidden_activation
    return (
        "codes that can be exactly 0 (hidden_activation 'relu', 'topk', or 'leaky_relu' with "
        f"negative_slope=0), not hidden_activation={given!r}"
    )


def _density(moment: Moment) -> torch.Tensor:
    assert moment.layer is not None
    return moment.layer.topology.density


def _explored(moment: Moment) -> torch.Tensor:
    assert moment.topology is not None
    return moment.topology.explored


def _accuracy(moment: Moment) -> torch.Tensor:
    assert isinstance(moment.data, Dataset)
    return accuracy(moment.whole, moment.network, moment.data)


def _test_accuracy(moment: Moment) -> torch.Tensor:
    assert moment.test is not None
    return accuracy(moment.whole, moment.network, moment.test)


def _dead_units(moment: Moment) -> torch.Tensor:
    assert moment.test is not None
    return dead_units(moment.whole, moment.network, moment.test)


def _test_loss(moment: Moment) -> torch.Tensor:
    return moment.test_loss()


def _norm_of(name: str) -> Callable[[Moment], torch.Tensor]:
    def measure(moment: Moment) -> torch.Tensor:
        entries = moment.tensors[name].double().flatten(1).movedim(0, -1).contiguous()
        return total(entries.square()).sqrt()

    return measure


RECORDS = {
    row.name: row
    for row in (
        Record("loss", "the mean of the batch losses of a record's steps, each before its update", None),
        Record(
            "features_per_dimension",
            "‖W‖²_F / n_hidden of what leads from features to hidden units",
            _geometry(metrics.features_per_dimension),
        ),
        Record(
            "feature_dimensionality",
            "the share of a hidden dimension that each feature has",
            _geometry(metrics.feature_dimensionality),
            dims=("feature",),
        ),
        Record(
            "superposition",
            "how far each feature's direction is shared by others",
            _geometry(metrics.superposition),
            dims=("feature",),
        ),
        Record(
            "density",
            "of sparse models, the fraction of connections there are",
            _density,
            lacks=_no_connections,
        ),
        Record(
            "explored",
            "of sparse models, the fraction of positions that ever had a connection",
            _explored,
            lacks=_not_tracked,
        ),
        Record("test_loss", "the loss on all of `test`", _test_loss, of_test=True),
        Record(
            "accuracy", "the share of the training dataset's samples that are classed right", _accuracy,
            lacks=_no_classes,
        ),
        Record(
            "test_accuracy", "the same of `test`", _test_accuracy, lacks=_no_test_classes, of_test=True
        ),
        Record(
            "dead_units",
            "the share of hidden units that are 0 on every sample of `test`",
            _dead_units,
            lacks=_never_idle,
            of_test=True,
        ),
    )
}  # fmt: skip
"""Those that do not depend on what tensors the models have."""

NORMS = "norms"
"""Stands for all of `norms_of`."""


@functools.lru_cache(maxsize=256)
def norms_of(network: NetworkSpec) -> Mapping[str, Record]:
    """The Frobenius norms of what is trained, one record for each tensor, by name.

    >>> list(norms_of(NetworkSpec(n_features=5, n_hidden=2, tied=False)))
    ['encoder_norm', 'decoder_norm', 'bias_norm']
    """
    rows = [
        Record(f"{tensor.name}_norm", f"the Frobenius norm of {tensor.name}", _norm_of(tensor.name))
        for tensor in network.parameters
    ]
    return MappingProxyType({row.name: row for row in rows})


@functools.lru_cache(maxsize=256)
def records_of(network: NetworkSpec) -> Mapping[str, Record]:
    """All that `record` may name for models of this network."""
    return MappingProxyType({**RECORDS, **norms_of(network)})


def check_record(record: Any, network: NetworkSpec) -> tuple[str, ...]:
    """The names of what to record, "loss" first and each once, "norms" as all that it stands for; TypeError
    or ValueError for others.

    >>> check_record(["norms"], NetworkSpec(n_features=5, n_hidden=2))
    ('loss', 'weight_norm', 'bias_norm')
    """
    if isinstance(record, str) or not isinstance(record, Iterable):
        raise TypeError(f"record must be a sequence of names such as ('loss',), not {describe(record)}")
    known, norms = records_of(network), norms_of(network)
    names = ["loss"]
    for name in record:
        chosen = check_choice("record", name, [*known, NORMS])
        names += norms if chosen == NORMS else [chosen]
    return tuple(dict.fromkeys(names))


def check_records(names: tuple[str, ...], asked: Asked) -> None:
    """ValueError for a name that this run cannot record, and for a test set that nothing looks at."""
    known = records_of(asked.network)
    for name in names:
        known[name].check(asked)
    if asked.test is not None and not any(known[name].of_test for name in names):
        looking = ", ".join(repr(row.name) for row in known.values() if row.of_test)
        raise ValueError(f"test is given, but record names nothing that looks at it ({looking})")


def values_per_model(names: Iterable[str], network: NetworkSpec) -> int:
    """How many numbers of a model one moment's records are."""
    known, sizes = records_of(network), network.sizes
    return sum(int(torch.Size([sizes[dim] for dim in known[name].dims]).numel()) for name in names)
