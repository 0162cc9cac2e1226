"""The rows of the family's bench: members of the family that the literature trains, at its sizes.

A row says what is trained, on what and how, as `tk.fit` takes it; the peers read the same from it. What a
step of all its models costs at least is counted in `Row.operations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import toykern as tk
from bench.roof import Operations


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key, name: for the command line and for people.
        asked: how many times faster than the best peer a step is to be; 0 where nothing is asked for.
        model: a fresh stack, at its start.
        data: a `tk.SparseFeatures`, or a `tk.Dataset` that is seen whole in every step.
        batch_size: of a stream; None of a dataset.
        optimizer: "sgd", "adam", "adamw" or "lamb", with `lr` and (not Adam, LAMB) `weight_decay`.
        settings: further arguments of `fit`: target, loss_reduction, l1.
        steps: of one repeat of ours; a peer makes `peer_steps`.
    """

    key: str
    name: str
    asked: float
    model: Callable[[], Any]
    data: Any
    batch_size: int | None
    optimizer: str
    lr: float
    weight_decay: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    peer_steps: int = 4

    @property
    def streams(self) -> bool:
        """Whether every step draws its samples."""
        return isinstance(self.data, tk.SparseFeatures)

    def fit_optimizer(self) -> Any:
        """The optimiser as `fit` takes it."""
        kinds = {"sgd": tk.SGD, "adam": tk.Adam, "adamw": tk.AdamW, "lamb": tk.LAMB}
        return kinds[self.optimizer](lr=self.lr, weight_decay=self.weight_decay)

    def l1(self) -> Any:
        """The weight of the codes' L1 norm, a number or one for each model."""
        return self.settings.get("l1", 0.0)

    def operations(self, active_codes: float) -> Operations:
        """What a step of all models takes at least, with this share of the hidden units active.

        Multiply-adds of samples that are not all zeros, forward and back, each the cheaper of the known ways:
        encoding by the active entries and E P, made once a step, or by e = P x; reading out by active codes
        alone, or (linear outputs, squared error) by the Gram matrices of the decoder and of the codes, and
        the entries of the targets with both. Two
        operations for an output where it is made (the error, its square). Random words: a gap and a magnitude
        for each active entry of a stream. Nothing for the optimiser or for moving data.
        """
        model = self.model()
        network, models = model.network, model.n_models
        n, m, o = network.n_features, network.n_hidden, network.n_outputs
        d, share = network.n_embedding, active_codes
        if self.streams:
            assert self.batch_size is not None
            p = self.data.marginals().expand(models, n)
            entries = self.batch_size * float(p.sum())
            samples = self.batch_size * float((1 - torch.log1p(-p).sum(dim=1).exp()).sum())
        else:
            entries = models * self.data.rows * float(self.data.active_features().mean())
            samples = models * self.data.rows
        by_entries = models * 2 * d * n * m + entries * m * (1 + share)
        by_embedding = entries * d + samples * d * m * (1 + share)
        encoding = min(by_entries, by_embedding) if d else by_entries
        read_out, elementwise = 3 * samples * share * m * o, 2 * samples * o
        if network.output_activation == "none":
            gram = 1.5 * models * o * m * m + 1.5 * samples * (share * m) ** 2
            gram += 2 * share * m * self._target_entries(entries, samples, o)
            if gram < read_out:
                read_out, elementwise = gram, 0.0
        return Operations(encoding + read_out, 2 * entries if self.streams else 0.0, elementwise)

    def _target_entries(self, entries: float, samples: float, n_outputs: int) -> float:
        """How many numbers of all targets are not 0."""
        if isinstance(self.data, tk.Dataset) and self.data.label is not None:
            return samples
        own = self.data.target is not None if isinstance(self.data, tk.Dataset) else False
        return samples * n_outputs if own or self.settings.get("target") == "embedding" else entries


def s_curves(models: int = 64, n: int = 100, hidden: int = 2) -> Row:
    """Matrix factorisation (Jermyn and Shlegeris 2022): each model a target of rank 2."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(models, n, 2, generator=generator) for _ in range(2))
    return Row(
        "s-curves" if hidden < n else "s-curves-full",
        f"S-curves: {models} models {n} × {n}, targets of rank 2, {hidden} hidden",
        4.0 if hidden < n else 0.0,
        lambda: tk.Autoencoder(
            n, hidden, models, hidden_activation="none", output_activation="none", bias=False, init=0.1
        ),
        tk.Dataset(tk.SparseBatch.from_dense(torch.eye(n)), left @ right.mT / math.sqrt(2)),
        None,
        "sgd",
        lr=1e-3,
        settings={"loss_reduction": "sum"},
        steps=1000,
        peer_steps=50,
    )  # fmt: skip


def grokking(p: int = 97, width: int = 500, models: int = 8, fraction: float = 0.3) -> Row:
    """Modular addition by a quadratic network, squared error to one-hot sums, full batch."""
    return Row(
        "grokking",
        f"Grokking: p={p}, width {width}, {fraction:.0%} of the pairs, {models} models",
        3.0,
        lambda: tk.MLP(
            2 * p, width, p, models, hidden_activation="square", bias=False, hidden_bias=False, init=0.05
        ),
        tk.modular_addition(p, fraction)[0],
        None,
        "adamw",
        lr=1e-2,
        weight_decay=5.0,
        steps=8,
        peer_steps=2,
    )  # fmt: skip


def double_descent(n: int = 10_000, samples: int = 5_000, p: float = 1e-3) -> Row:
    """Double descent (Henighan et al. 2023) at its published width: two hidden dimensions, full batch."""
    return Row(
        "double-descent",
        f"Double descent: {n:,} → 2, {samples:,} samples, full batch",
        20.0,
        lambda: tk.TiedAutoencoder(n, 2),
        tk.SparseFeatures(n, p).dataset(samples, seed=0, normalize="unit"),
        None,
        "adamw",
        lr=1e-3,
        weight_decay=1e-2,
        settings={"loss_reduction": "sum"},
        steps=40,
        peer_steps=3,
    )  # fmt: skip


def toy_saes(models: int = 16, batch_size: int = 1024) -> Row:
    """Sparse autoencoders over a toy model's two dimensions (ARENA): 2 → 5 → 2 on e = P x, five features."""
    return Row(
        "toy-saes",
        f"Toy SAEs: 2 → 5, {models} models, batch {batch_size}, features of 5 → 2",
        40.0,
        lambda: tk.MLP(5, 5, 2, models, embedding=2, centered=True),
        tk.SparseFeatures(5, 0.025),
        batch_size,
        "adam",
        lr=1e-3,
        settings={"target": "embedding", "l1": 0.2},
        steps=4000,
        peer_steps=100,
    )  # fmt: skip


def saes(
    models: int = 17, d: int = 256, hidden: int = 512, directions: int = 512, batch_size: int = 256
) -> Row:
    """One stack of the 136 (Sharkey et al. 2022): an L1 weight each, known directions superposed."""
    l1 = [1e-3 * 10 ** ((i - models // 2) / 4) for i in range(models)]
    return Row(
        "saes",
        f"SAEs: {models} of {d} → {hidden} on {directions} directions, batch {batch_size}",
        2.0,
        lambda: tk.MLP(directions, hidden, d, models, embedding=d),
        tk.SparseFeatures(directions, 5 / directions),
        batch_size,
        "adam",
        lr=1e-3,
        settings={"target": "embedding", "loss_reduction": "sum", "l1": l1},
        steps=32,
        peer_steps=2,
    )  # fmt: skip


def monosemanticity(
    bias: float,
    optimizer: str = "adam",
    n: int = 512,
    d: int = 64,
    hidden: int = 1024,
    batch_size: int = 8192,
) -> Row:
    """Engineering monosemanticity (Jermyn et al. 2022), decoding, at initialisation."""
    return Row(
        f"monosemanticity{bias:+g}" if bias else "monosemanticity",
        f"Engineering monosemanticity: {n} → {d} → {hidden}, batch {batch_size}, bias {bias:g}, {optimizer}",
        {0.0: 2.0, -1.0: 8.0}.get(bias, 0.0),
        lambda: tk.MLP(n, hidden, bias=False, embedding=d, hidden_bias_init=bias),
        tk.SparseFeatures(n, 1 / 64),
        batch_size,
        optimizer,
        lr=1e-3,
        settings={"loss_reduction": "sum"},
        steps=16,
        peer_steps=2,
    )  # fmt: skip


ROWS: dict[str, Callable[[], Row]] = {
    "s-curves": s_curves,
    "s-curves-full": lambda: s_curves(hidden=100),
    "grokking": grokking,
    "double-descent": double_descent,
    "toy-saes": toy_saes,
    "saes": saes,
    "monosemanticity": lambda: monosemanticity(0.0),
    "monosemanticity-1": lambda: monosemanticity(-1.0),
    "monosemanticity-0.1": lambda: monosemanticity(-0.1),
    "monosemanticity-lamb": lambda: monosemanticity(0.0, "lamb"),
}
