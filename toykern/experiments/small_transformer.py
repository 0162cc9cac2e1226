"""A transformer of one layer on a task whose features are known, so that its activations can be looked into.

Tokens belong to classes. At every position but the first the model is to give the sum of the classes of the
token and of the one before it, modulo the number of classes: what decides is abstract, a class, and never a
single token. One head, no norms; plain PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """Sequences of `length` tokens; token t is of class t modulo `classes`."""

    tokens: int
    classes: int
    length: int

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens, evenly drawn, and answers, int64 `[batch, length]` and `[batch, length − 1]`.

        >>> x, y = Task(6, 3, 4).draw(2, torch.Generator().manual_seed(0))
        >>> bool((y == (x[:, 1:] + x[:, :-1]) % 3).all())
        True
        """
        shape = (batch, self.length)
        x = torch.randint(self.tokens, shape, generator=generator, dtype=torch.int64, device="cpu")
        return x, (x[:, 1:] % self.classes + x[:, :-1] % self.classes) % self.classes


def random_weights(task: Task, d: int, seed: int) -> Weights:
    """The weights that training begins with, float32: normal, with a variance of 1 over the inputs."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shapes = {
        "token": (task.tokens, d),
        "position": (task.length, d),
        "query": (d, d),
        "key": (d, d),
        "value": (d, d),
        "attended": (d, d),
        "into": (d, 4 * d),
        "out": (4 * d, d),
        "answer": (d, task.classes),
    }
    weights = {}
    for name, shape in shapes.items():
        inputs = d if name in ("token", "position") else shape[0]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        weights[name] = drawn / math.sqrt(inputs)
    return weights


def residual(weights: Weights, x: Tensor) -> Tensor:
    """The residual stream after the layer, `[batch, length, d]`, of tokens `[batch, length]`."""
    length = x.shape[1]
    r = weights["token"][x] + weights["position"][:length]
    scores = (r @ weights["query"]) @ (r @ weights["key"]).mT / math.sqrt(r.shape[2])
    ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    pattern = scores.masked_fill(ahead, -torch.inf).softmax(-1)
    r = r + pattern @ (r @ weights["value"]) @ weights["attended"]
    return r + (r @ weights["into"]).relu() @ weights["out"]


def logits(weights: Weights, x: Tensor) -> Tensor:
    """For every position but the first, `[batch, length − 1, classes]`."""
    return residual(weights, x)[:, 1:] @ weights["answer"]


def train(
    task: Task, weights: Weights, steps: int, batch: int, lr: float, decay: float, seed: int
) -> Weights:
    """The weights after AdamW with a cosine; those given stay as they are."""
    generator = torch.Generator("cpu").manual_seed(seed)
    trained = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        x, wanted = task.draw(batch, generator)
        loss = cross_entropy(logits(trained, x).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: weight.detach() for name, weight in trained.items()}


@torch.no_grad()
def accuracy(task: Task, weights: Weights, samples: int, seed: int) -> float:
    """The share of right answers on fresh sequences."""
    x, wanted = task.draw(samples, torch.Generator("cpu").manual_seed(seed))
    return float((logits(weights, x).argmax(-1) == wanted).double().mean())
