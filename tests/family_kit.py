"""Trainings that no CUDA kernel of ours takes, for the loop of batched products: on the CPU and on a device.

Imports nothing that tests/gpu_kit.py may not (no hypothesis).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from kit import TRAJECTORY, tensors_of

import toykern as tk
from toykern.training import evaluation, loop, ways

MODELS = 3


@contextmanager
def batched() -> Iterator[None]:
    """`tk.fit` and `tk.evaluate` by batched products within, whatever the device and whatever is asked."""
    with (
        mock.patch.object(loop, "resident_of", partial(ways.resident_of, way=ways.BATCHED)),
        mock.patch.object(evaluation, "evaluated", partial(ways.evaluated, way=ways.BATCHED)),
    ):
        yield


@dataclass(frozen=True)
class Family:
    """One training of three models. `asked` is what of it no kernel takes, as a run's provenance says."""

    name: str
    asked: list[str]
    model: Callable[[], Any]
    data: Callable[[], Any]
    fit: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def start(self) -> Any:
        """The stack, with biases that matter."""
        model = self.model()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model

    def run(self, device: str = "cpu", **options: Any) -> tk.Run:
        """`tk.fit` of it."""
        told = {"steps": 12, "batch_size": 48, "seed": [5, 6, 7], "record_every": 5, "progress": False}
        told |= {"optimizer": tk.AdamW(lr=0.003), **self.fit, **options}
        return tk.fit(self.start().to(device), self.data(), **told)

    def evaluated(self, device: str = "cpu") -> torch.Tensor:
        """`tk.evaluate` of the start."""
        names = ("importance", "target", "loss_reduction", "loss", "l1")
        told = {name: self.fit[name] for name in names if name in self.fit}
        return tk.evaluate(self.start().to(device), self.data(), samples=600, seed=[5, 6, 7], **told)


def _tied(**options: Any) -> Callable[[], Any]:
    return lambda: tk.TiedAutoencoder(7, 4, MODELS, **options)


def _untied(**options: Any) -> Callable[[], Any]:
    return lambda: tk.Autoencoder(7, 4, MODELS, **options)


def _mlp(**options: Any) -> Callable[[], Any]:
    return lambda: tk.MLP(7, 4, n_models=MODELS, **options)


def _sparse() -> Any:
    return tk.SparseTiedAutoencoder(7, 4, density=0.5, n_models=MODELS)


def _stream(**options: Any) -> Callable[[], Any]:
    return lambda: tk.SparseFeatures(7, **({"probability": 0.3} | options))


def _rows(entries: bool = False, own: bool = False, given: str = "", **options: Any) -> Callable[[], Any]:
    """A dataset of 20 samples."""

    def made() -> tk.Dataset:
        x = tk.SparseFeatures(7, 0.4).sample(0, 20, 3, n_models=MODELS if own else 1)
        generator = torch.Generator().manual_seed(8)
        if given == "targets":
            options["targets"] = torch.randn(20, 5, generator=generator)
        if given == "labels":
            options["labels"] = torch.randint(5, (MODELS, 20), generator=generator)
        return tk.Dataset(tk.SparseBatch.from_dense(x) if entries else x, **options)

    return made


_WHOLE: dict[str, Any] = {"batch_size": None}
_EXTRAS: dict[str, Any] = {
    "lr_scale": {"bias": [0.5, 2.0, 0.0]}, "weight_decay_scale": {"bias": 0.0},
    "clip_norm": [0.02, 0.1, 100.0], "bias_decay": tk.BiasDecay([0.5, 1.0, 2.0], until=7, tensor="bias"),
}  # fmt: skip
_SCHEDULED = {"schedule": "cosine"}

FAMILY = [
    Family("hidden bias", ["hidden_bias"], _tied(hidden_bias=True, hidden_activation="relu"), _stream()),
    Family("centred, untied", ["centered"], _untied(centered=True), _stream(noise=0.1)),
    Family(
        "top-k, l1", ["hidden_activation", "top_k", "l1"], _untied(hidden_activation="topk", top_k=2),
        _stream(magnitude="symmetric"), {"l1": [0.0, 0.05, 0.1], "target": "abs"},
    ),
    Family("a network", ["hidden_bias"], _mlp(), _stream(), {"loss_reduction": "sum", **_SCHEDULED}),
    Family(
        "embedded", ["output_activation", "hidden_bias", "n_embedding", "unembedding", "residual"],
        _mlp(embedding=3, unembedding=True, residual=True, output_activation="square"), _stream(),
        {"importance": [1.0, 0.5, 0.25, 1.0, 2.0, 1.0, 0.0]},
    ),
    Family(
        "the embedded target", ["hidden_activation", "n_outputs", "n_embedding", "target"],
        _mlp(embedding=3, n_outputs=3, hidden_activation="solu", hidden_bias=False), _stream(),
        {"target": "embedding", "optimizer": tk.SGD(lr=0.05, momentum=0.9, nesterov=True)},
    ),
    Family("rows", ["data"], _tied(), _rows(), _WHOLE),
    Family("rows of each, minibatches", ["data"], _untied(), _rows(own=True), {"batch_size": 9}),
    Family("entries", ["data"], _tied(), _rows(entries=True, own=True), {"batch_size": 20}),
    Family("fewer samples", ["data"], _untied(), _rows(samples=[20, 3, 11]), _WHOLE),
    Family("fewer samples, minibatches", ["data"], _tied(), _rows(samples=[20, 3, 11]), {"batch_size": 6}),
    Family(
        "fewer samples, labels", ["hidden_bias", "n_outputs", "loss", "l1", "data"], _mlp(n_outputs=5),
        _rows(given="labels", samples=[20, 3, 11]), {"loss": "cross_entropy", "l1": 0.02, **_WHOLE},
    ),
    Family(
        "fewer samples, one softmax", ["hidden_bias", "n_outputs", "loss", "data"], _mlp(n_outputs=5),
        _rows(own=True, given="targets", samples=[20, 3, 11]), {"loss": "batch_cross_entropy", **_WHOLE},
    ),
    Family(
        "targets", ["hidden_bias", "n_outputs", "data"], _mlp(n_outputs=5), _rows(given="targets"),
        {"batch_size": 7, "optimizer": tk.Adam(lr=0.003, weight_decay=0.1), "target": "abs"},
    ),
    Family(
        "a projection", ["n_outputs", "projection"], _mlp(n_outputs=2, hidden_bias=False),
        _stream(projection=torch.linspace(-1, 1, 42).reshape(3, 2, 7), noise=0.2),
    ),
    Family("exactly three", ["active"], _tied(), _stream(probability=None, active=3)),
    Family(
        "a hierarchy", ["dependence"], _untied(),
        _stream(dependence=tk.Hierarchy([-1, 0, 0, 1, 1, -1, 5]), noise=0.1),
    ),
    Family("a copula", ["dependence"], _tied(), _stream(dependence=tk.Copula(loadings=[[0.8]] * 7))),
    Family(
        "LAMB", ["LAMB"], _untied(), _stream(),
        {"optimizer": tk.LAMB(lr=0.02, weight_decay=[0.0, 0.1, 1.0], clamp=0.5, debias=True), **_SCHEDULED},
    ),
    Family(
        "LAMB of the paper", ["LAMB", *_EXTRAS], _untied(), _stream(),
        {"optimizer": tk.LAMB(lr=0.02, form="paper", weight_decay=0.1, **_EXTRAS)},
    ),
    Family(
        "SGLD", ["SGLD"], _tied(), _stream(),
        {"optimizer": tk.SGLD(lr=[1e-3, 1e-4, 3e-3], nbeta=[10.0, 100.0, 3.0], localization=[0.0, 9.0, 1.0])},
    ),
    Family(
        "extras", [*_EXTRAS], _untied(), _stream(),
        {"optimizer": tk.AdamW(lr=[0.01, 0.003, 0.02], weight_decay=0.1, **_EXTRAS), **_SCHEDULED},
    ),
    Family(
        "unit norm", ["unit_norm"], _untied(), _stream(),
        {"optimizer": tk.Adam(lr=0.01, unit_norm=tk.UnitNorm("decoder", remove_parallel=True))},
    ),
    Family(
        "sparse on rows", ["data"], _sparse, _rows(),
        {"topology": tk.RigL(end=12, interval=4), **_WHOLE},
    ),
    Family(
        "sparse, clipped", ["clip_norm"], _sparse, _stream(),
        {"optimizer": tk.SGD(lr=0.1, momentum=0.9, clip_norm=0.1), "topology": tk.RigL(end=12, interval=4)},
    ),
]  # fmt: skip


def assert_close(run: tk.Run, expected: tk.Run, tolerance: float = TRAJECTORY) -> None:
    """All that training makes, within the tolerance of float32 trajectories."""
    ours, theirs = tensors_of(run), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    assert run.step == expected.step and run.config == expected.config
    for name, value in ours.items():
        value, wanted = value.detach().cpu(), theirs[name].detach().cpu()
        if not value.is_floating_point():
            assert torch.equal(value, wanted), name
            continue
        assert torch.equal(value.isnan(), wanted.isnan()), name
        scale = wanted
        if name.endswith("/exp_avg"):  # averages gradients of either sign: their size is in the other moment
            scale = theirs[f"{name}_sq"].detach().cpu().sqrt()
        error, size = _largest(value - wanted), _largest(scale)
        assert (error <= tolerance * size).all(), (name, error, size)


def _largest(value: torch.Tensor) -> torch.Tensor:
    """Of each model, float64 `[models]`; NaN counts as 0."""
    return value.nan_to_num().double().abs().reshape(len(value), -1).amax(1)
