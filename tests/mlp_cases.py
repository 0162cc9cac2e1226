"""Stacks of `tk.MLP` in training: few cases in which every two options meet."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from cases import FitCase

from toykern.network import HIDDEN_ACTIVATIONS
from toykern.training.optim import LAMB, SGD, AdamW

SHAPES = ((6, 5, 4), (7, 1, 2), (20, 17, 9), (33, 40, 16))  # n_features, n_hidden, d
OTHER_OUTPUTS = 11

CHOICES: dict[str, tuple[Any, ...]] = {
    "hidden": HIDDEN_ACTIVATIONS,
    "output": ("none", "relu", "softplus", "square", "x_exp", "leaky_relu"),
    "bias": (True, False),
    "hidden_bias": (True, False),
    "tied": (False, True),
    "residual": (False, True),
    "centered": (False, True),
    "embedding": ("none", "drawn", "shared", "per model"),
    "unembedding": ("none", "transpose", "shared", "per model"),
    "target": ("identity", "abs", "embedding", "targets", "labels", "other targets", "other labels"),
    "data": ("rare", "frequent", "noise", "groups", "rows", "entries", "minibatches"),
    "loss": ("mean", "sum", "cross_entropy", "batch_cross_entropy"),
    "importance": ("none", "of outputs", "of both"),
    "l1": (0.0, 0.02, (0.0, 0.03, 0.01)),
    "optimizer": ("AdamW", "SGD", "LAMB"),
    "shape": (0, 1, 2, 3),
}


def sizes_of(choice: dict[str, Any]) -> tuple[int, int, int, int]:
    """n_features, n_hidden, d and n_outputs."""
    n, m, d = SHAPES[choice["shape"]]
    outputs = n
    if choice["target"] == "embedding":
        outputs = d
    elif choice["target"].startswith("other"):
        outputs = OTHER_OUTPUTS
    return n, m, d, outputs


def fits(choice: dict[str, Any]) -> bool:
    """Whether these go together."""
    n, _, d, outputs = sizes_of(choice)
    embedded, unembedded = choice["embedding"] != "none", choice["unembedding"] != "none"
    seen = d if embedded else n
    decoded = d if unembedded else outputs
    finite = choice["data"] in ("rows", "entries", "minibatches")
    return not (
        (unembedded and not embedded)
        or (choice["unembedding"] == "transpose" and outputs != n)
        or (choice["target"] == "embedding" and not embedded)
        or ((choice["tied"] or choice["residual"]) and seen != decoded)
        or (choice["centered"] and (not choice["bias"] or unembedded or seen != outputs))
        or (choice["target"] not in ("identity", "abs", "embedding") and not finite)
        or (choice["loss"].endswith("cross_entropy") and choice["output"] != "none")
        # of targets that may be negative it has no least value, and training goes nowhere
        or (choice["loss"] == "cross_entropy" and choice["target"] == "embedding")
    )


def chosen() -> list[dict[str, Any]]:
    """Few choices among many random ones, in which every two values meet that meet in any."""
    rng = random.Random(12)
    candidates: list[dict[str, Any]] = []
    while len(candidates) < 3000:
        candidate = {name: rng.choice(values) for name, values in CHOICES.items()}
        if fits(candidate):
            candidates.append(candidate)
    columns = [
        np.array([c[name] == value for c in candidates]) for name, vs in CHOICES.items() for value in vs
    ]
    at = [i for i, values in enumerate(CHOICES.values()) for _ in values]
    pairs = np.array(
        [columns[i] & columns[j] for i in range(len(columns)) for j in range(i) if at[i] != at[j]]
    ).T
    met = np.zeros(pairs.shape[1], dtype=bool)
    found = []
    while not met[pairs.any(axis=0)].all():
        best = int((pairs & ~met).sum(axis=1).argmax())
        met |= pairs[best]
        found.append(candidates[best])
    return found


def case_of(number: int, choice: dict[str, Any]) -> FitCase:
    """Its stack of three, data and training."""
    n, m, d, outputs = sizes_of(choice)
    rng = np.random.default_rng(number)

    def matrix(kind: str, *shape: int) -> Any:
        return (rng.normal(size=(3, *shape) if kind == "per model" else shape) / max(shape) ** 0.5).tolist()

    network: dict[str, Any] = {
        "n_outputs": outputs,
        "hidden_activation": choice["hidden"],
        "output_activation": choice["output"],
        **{name: choice[name] for name in ("bias", "hidden_bias", "residual", "centered", "tied")},
    }
    if choice["embedding"] != "none":
        network["embedding"] = d if choice["embedding"] == "drawn" else matrix(choice["embedding"], d, n)
    if choice["unembedding"] != "none":
        kind = choice["unembedding"]
        network["unembedding"] = kind if kind == "transpose" else matrix(kind, outputs, d)
    if choice["hidden"] == "topk":
        network["top_k"] = max(1, m // 2)
    if "leaky_relu" in (choice["hidden"], choice["output"]):
        network["negative_slope"] = 0.2
    loss: dict[str, Any] = {"l1": list(choice["l1"]) if isinstance(choice["l1"], tuple) else choice["l1"]}
    loss["target"] = choice["target"] if choice["target"] in ("abs", "embedding") else "identity"
    if choice["loss"] in ("mean", "sum"):
        loss["loss_reduction"] = choice["loss"]
    else:
        loss["loss"] = choice["loss"]
    if choice["importance"] != "none":
        rows = (3, outputs) if choice["importance"] == "of both" else (outputs,)
        loss["importance"] = (0.2 + rng.random(rows)).tolist()
    features: dict[str, Any] = {"magnitude": "uniform" if choice["loss"] == "cross_entropy" else "symmetric"}
    dataset: dict[str, Any] | None = None
    batch_size: int | None = 33
    if choice["data"] in ("rows", "entries", "minibatches"):
        dataset = {"rows": 37, "entries": choice["data"] == "entries", "per_model": number % 2 == 1}
        if choice["target"] not in ("identity", "abs", "embedding"):
            dataset["own"] = choice["target"].split()[-1]
        batch_size = 16 if choice["data"] == "minibatches" else None
    elif choice["data"] == "noise":
        features["noise"] = 0.1
    optimizers = {
        "AdamW": AdamW(lr=[1e-3, 3e-3, 1e-2], weight_decay=0.1),
        "SGD": SGD(lr=[0.001, 0.003, 0.01], momentum=0.9),
        "LAMB": LAMB(lr=0.01, weight_decay=0.02),
    }
    return FitCase(
        f"{number}: " + " ".join(map(str, choice.values())),
        n,
        m,
        {"rare": 0.05, "groups": 0.05, "frequent": 0.6}.get(choice["data"], 0.2),
        batch_size,
        optimizers[choice["optimizer"]],
        steps=30,
        correlated=((0, 3), (1, 4)) if choice["data"] == "groups" else (),
        features=features,
        network=network,
        loss=loss,
        kind="MLP",
        dataset=dataset,
    )


MLP_CASES = [case_of(number, choice) for number, choice in enumerate(chosen())]
