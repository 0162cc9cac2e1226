"""Sizes that Python says by mistake are refused where native code takes them, before a kernel sees one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import toykern as tk
from toykern import _native
from toykern.arguments.broadcast import broadcast_importance
from toykern.data.dependence import Copula, Hierarchy
from toykern.data.features import MAGNITUDES, PURPOSES
from toykern.native.numbers import number
from toykern.network.activations import ACTIVATIONS
from toykern.network.losses import GIVEN, LOSSES, PROJECTED, REDUCTIONS, TARGETS
from toykern.training import kernels as resident
from toykern.training.optim import OPTIMIZERS

MODELS, N, M, STEPS, EVERY = 3, 5, 2, 10, 4


class Params:
    """Those of a good call, and what their addresses lead to."""

    def __init__(self) -> None:
        self.data = tk.SparseFeatures(N, 0.3)
        model = tk.TiedAutoencoder(N, M, MODELS)
        self.kept = {
            "seed": torch.arange(MODELS, dtype=torch.int64),
            "importance": broadcast_importance(1.0, MODELS, N),
            "lr": torch.full((MODELS,), 0.1, dtype=torch.float64),
            "weight_decay": torch.zeros(MODELS, dtype=torch.float64),
            "lr_factor": torch.ones(STEPS, dtype=torch.float64),
            "loss_records": torch.zeros(MODELS, 3, dtype=torch.float32),
            "loss_carry": torch.zeros(MODELS, dtype=torch.float64),
            "diverged_at": torch.full((MODELS,), -1, dtype=torch.int64),
            "loss": torch.zeros(MODELS, dtype=torch.float64),
            "clean": torch.zeros(MODELS, 8, N, dtype=torch.float32),
            "order": torch.arange(MODELS, dtype=torch.int64),
        }
        self.tensors = {"encoder": model.weight.detach(), "bias": model.bias.detach()}
        self.views = model.network.views()
        network = resident.network_params(model.network)
        self.train = self._filled(_native.TrainParams(), network=network, steps=STEPS, total_steps=STEPS)
        self.train.record_every, self.train.n_records, self.train.threads = EVERY, 3, 1
        self.evaluate = self._filled(_native.EvaluateParams(), network=network, batches=2, threads=1)
        self.sample = self._filled(_native.SampleParams(), seed_stride=1)

    def _filled(self, params: Any, **values: Any) -> Any:
        values = {"data": self.data.native(), "n_models": MODELS, "batch_size": 8, **values}
        values |= {name: t.data_ptr() for name, t in self.kept.items() if hasattr(params, name)}
        for name, value in values.items():
            setattr(params, name, value)
        if hasattr(params, "set_tensor"):
            for role, tensor in self.tensors.items():
                params.set_tensor(role, tensor.data_ptr(), *self.views[role])
        return params


CALLS: dict[str, Callable[[Params], Any]] = {
    "train": lambda p: _native.train(p.train),
    "evaluate": lambda p: _native.evaluate(p.evaluate),
    "sample": lambda p: _native.sample(p.sample, 1),
    "sample_entries": lambda p: _native.sample_entries(p.sample),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_good_call_passes(call):
    CALLS[call](Params())


# Which parameters, the field (of data or network where there is a dot) and a value that it must not have.
BAD = [
    ("train", "n_records", 2),
    ("train", "n_records", 4),
    ("train", "record_every", 0),
    ("train", "record_every", -3),
    ("train", "record_every", 1),
    ("train", "total_steps", 2000),
    ("train", "total_steps", 9),
    ("train", "steps", 11),
    ("train", "steps", -1),
    ("train", "first_step", 1),
    ("train", "first_step", -1),
    ("train", "optimizer", 5),
    ("train", "optimizer", -1),
    ("train", "order", "an order beyond the models"),
    ("train", "lr", 0),
    ("train", "weight_decay", 0),
    ("train", "lr_factor", 0),
    ("train", "loss_carry", 0),
    ("train", "diverged_at", 0),
    ("train", "connected", 64),
    ("train", "network.sparse", True),
    ("evaluate", "batches", 0),
    ("evaluate", "batches", 2**32),
    ("evaluate", "loss", 0),
    ("sample", "clean", 0),
    ("sample", "purpose", 2),
    ("sample", "seed_stride", 2),
    ("sample", "seed_stride", -1),
]
for call in ("train", "evaluate", "sample"):
    BAD += [(call, "n_models", value) for value in (0, -1, 2**60)]
    BAD += [(call, "batch_size", value) for value in (0, -1, 2**31, 2**40)]
    BAD += [
        (call, "seed", 0),
        (call, "data.n_features", 0),
        (call, "data.n_features", 6),
        (call, "data.n_units", 0),
    ]
    BAD += [(call, "data.n_units", 6), (call, "data.n_units", 4), (call, "data.magnitude", 6)]
    BAD += [(call, "data.joint", joint) for joint in (-1, 1, 2, 3, 4)]
    BAD += [(call, "data.magnitude", -1), (call, "data.noise", -1.0), (call, "data.noise", float("nan"))]
    BAD += [(call, "data.probability", 0), (call, "data.probability_stride", 3), (call, "data.unit_start", 0)]
for call in ("train", "evaluate"):
    BAD += [(call, "network.n_features", 6), (call, "network.n_hidden", 0), (call, "network.n_hidden", 2**60)]
    BAD += [
        (call, f"network.{layer}_activation", number)
        for layer in ("hidden", "output")
        for number in (-1, 2, len(ACTIVATIONS))
    ]
    BAD += [(call, "network.target", value) for value in (-1, 2)]  # 2: the layer's
    BAD += [(call, f"network.{name}", value) for name in ("loss", "reduction") for value in (-1, 2)]
    BAD += [(call, "network.loss", 1), (call, "network.tied", False), (call, "network.has_bias", False)]
    # (address, rows, columns, offset)
    BAD += [
        (call, "decoder", (64, N, M, 0)),
        (call, "bias", (0, 1, N, N * M)),
        (call, "encoder", (0, M, N, 0)),
    ]
    BAD += [(call, "encoder", (64, *shape)) for shape in ((N, M, 0), (M, N + 1, 0), (M, N, 1))]
    BAD += [(call, "bias", (64, *shape)) for shape in ((N, 1, N * M), (1, N, 0))]
    BAD += [(call, "importance", 0), (call, "importance_stride", 1)]


@pytest.mark.parametrize(("call", "field", "value"), BAD)
def test_what_would_leave_its_memory_is_a_value_error(call, field, value):
    good = Params()
    before = {name: tensor.clone() for name, tensor in good.kept.items()}
    if field == "order":
        good.kept["order"][1] = MODELS
        before["order"][1] = MODELS
    else:
        params, *inner = [getattr(good, call), *field.split(".")[:-1]]
        if isinstance(value, tuple):
            params.set_tensor(field, *value)
        elif inner:  # structs come as copies
            part = getattr(params, inner[0])
            setattr(part, field.split(".")[1], value)
            setattr(params, inner[0], part)
        else:
            setattr(params, field, value)
    calls = [call, "sample_entries"] if call == "sample" and field != "clean" else [call]
    for name in calls:
        with pytest.raises(ValueError, match="must"):
            CALLS[name](good)
    assert all(torch.equal(tensor, before[name]) for name, tensor in good.kept.items())


def _dataset(p: Params) -> Any:
    """The call's samples as entries of a dataset, whose arrays it keeps."""
    p.dataset = tk.Dataset(tk.SparseBatch.from_dense(torch.eye(N)), samples=[1, 2, 3])
    finite = p.dataset.native(full=True)
    p.train.batch_size = p.evaluate.batch_size = N
    return finite


@pytest.mark.parametrize("call", ["train", "evaluate"])
def test_a_good_call_on_a_dataset_passes(call):
    p = Params()
    getattr(p, call).finite = _dataset(p)
    CALLS[call](p)


@pytest.mark.parametrize("call", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", N - 1),  # of a full batch, which is then longer
        ("rows", 2**31),
        ("samples", torch.tensor([1, 2, N + 1])),
        ("samples", torch.tensor([0, 2, 3])),
        ("row_start", torch.arange(N + 1) + 1),
        ("row_start", torch.tensor([0, 2, 1, 3, 4, 5])),
        ("row_start", torch.tensor([0, N + 1, N + 1, N + 1, N + 1, N + 1])),
        ("feature", torch.tensor([0, 1, N, 3, 4], dtype=torch.int32)),
        ("feature", torch.tensor([0, 1, -1, 3, 4], dtype=torch.int32)),
        ("row_start", 0),
        ("feature", 0),
        ("value", 0),
    ],
)
def test_a_dataset_that_would_leave_its_memory_is_a_value_error(call, field, value):
    p = Params()
    finite = _dataset(p)
    setattr(finite, field, value.data_ptr() if isinstance(value, torch.Tensor) else value)
    getattr(p, call).finite = finite
    with pytest.raises(ValueError, match="rows|batch_size|samples|row_start|feature|value"):
        CALLS[call](p)


def _labelled(p: Params, call: str, labels: list[int], targets: bool = False) -> None:
    _dataset(p)
    p.labels = torch.tensor(labels, dtype=torch.int32)
    p.targets = torch.zeros(N, N)
    finite = p.dataset.native(full=True)
    finite.label, finite.label_per_model = p.labels.data_ptr(), len(labels) > N
    finite.target = p.targets.data_ptr() if targets else 0
    getattr(p, call).finite = finite


def _projected(p: Params, call: str, matrix: bool, named: bool) -> None:
    params = getattr(p, call)
    p.projection = tk.SparseFeatures(N, 0.1, projection=torch.eye(N)).projection
    if matrix:
        params.projection = p.projection.native()
    network = params.network
    network.target = number("target", "projection" if named else "identity")
    params.network = network


@pytest.mark.parametrize("call", ["train", "evaluate"])
def test_labels_and_projections_are_looked_at(call):
    for labels in ([0, 1, 2, 3, N - 1], [0] * N + [N - 1] * N + [1] * N):
        p = Params()
        _labelled(p, call, labels)
        CALLS[call](p)
    for labels in ([0, 1, N, 3, 4], [0, 1, -1, 3, 4], [0] * (3 * N - 1) + [N]):
        p = Params()
        _labelled(p, call, labels)
        with pytest.raises(ValueError, match="label must be from 0 to 4"):
            CALLS[call](p)
    p = Params()
    _labelled(p, call, [0] * N, targets=True)
    with pytest.raises(ValueError, match="targets or labels, not both"):
        CALLS[call](p)
    p = Params()
    _projected(p, call, matrix=True, named=True)
    CALLS[call](p)
    for there in (True, False):
        p = Params()
        _projected(p, call, matrix=there, named=not there)
        with pytest.raises(ValueError, match="projection must have"):
            CALLS[call](p)
    p = Params()
    _labelled(p, call, [0] * N)
    _projected(p, call, matrix=True, named=True)
    with pytest.raises(ValueError, match="a dataset's own targets are not projected"):
        CALLS[call](p)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clip_norm", [1.0, 1.0, 0.0], "clip_norm must be finite and above 0.*model 2"),
        ("clip_norm", [1.0, float("nan"), 1.0], "clip_norm must be finite and above 0.*model 1"),
        ("lr_scale", [1.0, -1.0, 1.0], "encoder's lr_scale must be finite and at least 0.*model 1"),
        ("weight_decay_scale", [float("inf"), 1.0, 1.0], "weight_decay_scale must be finite"),
        ("shrink", [0.1, 0.1, -0.1], "encoder's shrink must be finite"),
        ("nbeta", [1.0, 1.0, 1.0], "nbeta must have none"),
        ("localization", [1.0, 1.0, 1.0], "localization must have none"),
        ("shrink_until", -1, "shrink_until must be from 0"),
        ("unit_norm", "bias", "bias's unit_norm must be false"),
        ("state", None, "bias's state must have an address"),
        ("optimizer", "LAMB", "norm_clamp must be above 0"),
        ("optimizer", "SGLD", "nbeta must have an address"),
        ("debias", True, "debias_step and debias_moments"),
    ],
)
def test_a_general_update_that_is_none_is_a_value_error(field, value, message):
    """One that takes part, with what is wrong beside it; the good one passes first."""
    p = Params()
    kept = [torch.zeros_like(p.tensors[role]) for role in ("encoder", "bias") for _ in range(2)]
    p.train.optimizer = number("optimizer", "Adam")
    p.train.beta1, p.train.beta2, p.train.eps = 0.9, 0.999, 1e-8
    for at, role in enumerate(("encoder", "bias")):
        p.train.set_state(role, "exp_avg", kept[2 * at].data_ptr())
        p.train.set_state(role, "exp_avg_sq", kept[2 * at + 1].data_ptr())
    p.train.clip_norm = (clip := torch.ones(MODELS, dtype=torch.float64)).data_ptr()
    _native.train(p.train)
    assert clip.tolist() == [1.0] * MODELS and all(bool(state.any()) for state in kept)
    rates = torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else None
    if field in ("lr_scale", "weight_decay_scale", "shrink"):
        p.train.set_rate("encoder", field, rates.data_ptr())
    elif rates is not None:
        setattr(p.train, field, rates.data_ptr())
    elif field == "unit_norm":
        p.train.set_unit_norm(value)
    elif field == "state":
        p.train.set_state("bias", "exp_avg", 0)
    elif field == "optimizer":
        p.train.optimizer = number("optimizer", value)
    elif field == "debias":
        p.train.debias_step = p.train.debias_moments = value
    else:
        setattr(p.train, field, value)
    before = [tensor.clone() for tensor in kept]
    with pytest.raises(ValueError, match=message):
        _native.train(p.train)
    assert all(map(torch.equal, kept, before))


def test_rates_of_tensors_are_known_by_name_alone():
    with pytest.raises(ValueError, match="rate must be one of lr_scale, weight_decay_scale, shrink, not lr"):
        _native.TrainParams().set_rate("encoder", "lr", 64)
    with pytest.raises(ValueError, match="role must be one of"):
        _native.TrainParams().set_unit_norm("weight")


def test_tensors_and_states_are_known_by_name_alone():
    params = _native.TrainParams()
    with pytest.raises(
        ValueError,
        match="role must be one of encoder, decoder, bias, hidden_bias, embedding, unembedding, not weight",
    ):
        params.set_tensor("weight", 64, M, N, 0)
    params.optimizer = _native.numbers["optimizer"]["SGD"]
    params.set_state("encoder", "momentum_buffer", 64)
    with pytest.raises(ValueError, match="state must be one of momentum_buffer, not exp_avg"):
        params.set_state("encoder", "exp_avg", 64)
    params.optimizer = _native.numbers["optimizer"]["Adam"]
    with pytest.raises(ValueError, match="state must be one of exp_avg, exp_avg_sq, not momentum_buffer"):
        params.set_state("bias", "momentum_buffer", 64)
    with pytest.raises(ValueError, match="role must be one of"):
        params.set_frozen("values")
    params.optimizer = 7
    with pytest.raises(ValueError, match="optimizer must be"):
        params.set_state("encoder", "exp_avg", 64)


@pytest.mark.parametrize(
    "optimizer",
    [tk.SGD(momentum=0.9), tk.Adam(), tk.AdamW(), tk.LAMB(), tk.SGLD(localization=1.0)],
    ids=lambda o: o.name,
)
def test_the_kernels_keep_what_an_optimizer_says_that_it_keeps(optimizer):
    params = _native.TrainParams()
    params.optimizer = number("optimizer", optimizer.name)
    for name in optimizer.state_names:
        params.set_state("encoder", name, 64)
    for name, value in optimizer.kernel_options().items():
        setattr(params, name, value)
        assert getattr(params, name) == value


def test_every_name_of_a_table_has_a_number_of_its_own():
    tables = {
        "activation": ACTIVATIONS, "loss": LOSSES, "target": (*TARGETS, GIVEN, PROJECTED),
        "reduction": REDUCTIONS, "optimizer": OPTIMIZERS, "magnitude": MAGNITUDES, "purpose": PURPOSES,
        "joint": ("units", "subset", Hierarchy.kind, Copula.kind),
    }  # fmt: skip
    assert tables.keys() == _native.numbers.keys()
    for table, names in tables.items():
        assert {name: number(table, name) for name in names} == _native.numbers[table]
        assert sorted(_native.numbers[table].values()) == list(range(len(names)))
    with pytest.raises(ValueError, match="loss 'hinge' has no kernels; there are squared_error"):
        number("loss", "hinge")
