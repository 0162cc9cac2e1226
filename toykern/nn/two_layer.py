"""The forward pass of a two-layer network and its loss in torch operations, over a table of tensors.

What an `MLP` computes, and what `fit` and `evaluate` compute where no kernel of ours does. `tensors` has a
network's parameters and fixed matrices by name, `[models or 1, …]`; `described` is whatever says its options
(an `MLP`, a `toykern.network.NetworkSpec`). Gradients are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from toykern.network.losses import LOSSES, Objective
from toykern.nn.functions import activated

Tensors: TypeAlias = Mapping[str, torch.Tensor]
Product: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Matrix products `[models, a, c]`, `[models, c, b]`: `[models, a, b]`."""


def embedded(x: torch.Tensor, tensors: Tensors, product: Product = torch.matmul) -> torch.Tensor:
    """e = P x, `[models or 1, batch, n_features or d]`."""
    return product(x, tensors["embedding"].mT) if "embedding" in tensors else x


def codes_of(
    seen: torch.Tensor, tensors: Tensors, described: Any, product: Product = torch.matmul
) -> torch.Tensor:
    """h = f(E (e − b·centered) + c), `[models, batch, n_hidden]`, of e."""
    if described.centered:
        seen = seen - tensors["bias"].unsqueeze(1)
    encoder = tensors["weight"] if "weight" in tensors else tensors["encoder"]
    found = product(seen, encoder.mT)
    if "hidden_bias" in tensors:
        found = found + tensors["hidden_bias"].unsqueeze(1)
    return activated(found, described.hidden_activation, described)


def outputs_of(
    codes: torch.Tensor,
    seen: torch.Tensor | None,
    tensors: Tensors,
    described: Any,
    product: Product = torch.matmul,
) -> torch.Tensor:
    """y = g(Q (D h + e·residual) + b), `[models, batch, n_outputs]`; `seen` is e, where it is residual."""
    decoder = tensors["weight"].mT if "weight" in tensors else tensors["decoder"]
    found = product(codes, decoder.mT)
    if described.residual:
        assert seen is not None
        found = found + seen
    if "unembedding" in tensors:
        found = product(found, tensors["unembedding"].mT)
    if "bias" in tensors:
        found = found + tensors["bias"].unsqueeze(1)
    return activated(found, described.output_activation, described)


def one_hot(labels: torch.Tensor, n_outputs: int, dtype: torch.dtype) -> torch.Tensor:
    """`[…, n_outputs]`: 1 at the output of each label, else 0.

    >>> one_hot(torch.tensor([2, 0]), 3, torch.float32).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    number = torch.arange(n_outputs, dtype=torch.int64, device=labels.device)
    return (labels.unsqueeze(-1) == number).to(dtype)


def summed_loss(
    codes: torch.Tensor,
    output: torch.Tensor,
    wanted: torch.Tensor,
    weights: torch.Tensor,
    prices: torch.Tensor | None,
    objective: Objective,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of each model on a batch, `[models]`: that of its outputs, and prices · Σ_k |h_k|.

    Args:
        codes, output: `[models, batch, …]`.
        wanted: the target, `[models or 1, batch, n_outputs]`.
        weights: importance, `[1 or models, n_outputs]`, of the dtype that is computed in.
        prices: the weight of the codes' L1 norm, `[1 or models]`; None is 0.
        objective: its loss and its reduction.
        present: bool `[models, batch]`, which samples there are; None: all of them. What is computed of the
            others must be finite.
    """
    output, wanted = output.to(weights.dtype), wanted.to(weights.dtype).expand(output.shape)
    norms = None if prices is None else codes.to(weights.dtype).abs().sum(dim=2)
    samples: Any = output.shape[1]
    row = LOSSES[objective.loss]
    if present is not None:
        samples = present.sum(dim=1)
        there = present.unsqueeze(2)
        if row.over == "batch":  # no share in sums of exponentials
            lowest = torch.finfo(output.dtype).min / 2
            output, wanted = output.masked_fill(~there, lowest), wanted.masked_fill(~there, lowest)
    terms = row.of(output, wanted) * weights.unsqueeze(1)
    if present is not None:
        terms = torch.where(there, terms, 0.0)
        norms = None if norms is None else torch.where(present, norms, 0.0)
    found = terms.sum(dim=(1, 2)) / objective.divisor(samples, output.shape[2])
    if prices is None or norms is None:
        return found
    return found + prices * norms.sum(dim=1) / samples
