"""Members of the family for property tests: any small network with any options, and what it is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from kit import batches_of, relative_error

import toykern as tk
from toykern import reference
from toykern.network import HIDDEN_ACTIVATIONS, LOSSES, OUTPUT_ACTIVATIONS

OPTIMIZERS = (
    tk.SGD(lr=1e-3, momentum=0.5),
    tk.AdamW(lr=0.003),
    tk.LAMB(lr=0.01),
    tk.Adam(lr=0.003, clip_norm=0.1),
)


@dataclass(frozen=True)
class Member:
    """A `tk.MLP` of two models by its arguments, its stream's and `fit`'s."""

    network: dict[str, Any]
    features: dict[str, Any]
    fit: dict[str, Any]
    kept: int = 0
    """Of how many samples of the stream a dataset is made; 0: none is."""
    shape: tuple[int, int, int] = field(default=(0, 0, 0))

    def model(self) -> tk.MLP:
        """The stack at its start; biases are not zero, so that empty samples take part in everything."""
        n, m, o = self.shape
        model = tk.MLP(n, m, o, n_models=2, init=0.2, **self.network)
        generator = torch.Generator().manual_seed(n + m)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model

    def data(self) -> Any:
        stream = tk.SparseFeatures(self.shape[0], **self.features)
        return stream.dataset(samples=self.kept, seed=3) if self.kept else stream


@st.composite
def members(draw: Any) -> Member:
    """Every option beside every other."""
    n, m = draw(st.sampled_from([3, 8, 17, 40])), draw(st.sampled_from([1, 5, 16, 33]))
    d = draw(st.sampled_from([0, 2, 3]))
    unembedded = d > 0 and draw(st.booleans())
    loss = draw(st.sampled_from(sorted(LOSSES)))
    # Of an embedding without its inverse the outputs may be as many as the embedding's, or as the features.
    narrow = d > 0 and not unembedded and draw(st.booleans())
    o = d if narrow else n
    alike = d == 0 or unembedded or narrow  # what the decoder gives is as long as what the encoder sees
    network: dict[str, Any] = {
        "hidden_activation": draw(st.sampled_from(HIDDEN_ACTIVATIONS)),
        "output_activation": draw(st.sampled_from(OUTPUT_ACTIVATIONS)) if loss == "squared_error" else "none",
        "tied": alike and draw(st.booleans()),
        "residual": alike and draw(st.booleans()),
        "centered": alike and not unembedded and draw(st.booleans()),
        "hidden_bias": draw(st.booleans()),
    }
    network["bias"] = network["centered"] or draw(st.booleans())
    if network["hidden_activation"] == "topk":
        network["top_k"] = draw(st.integers(1, m))
    if d:
        network["embedding"] = d
    if unembedded:
        network["unembedding"] = True
    kept = draw(st.sampled_from([0, 0, 1, 150]))
    features = {
        "probability": draw(st.sampled_from([0.03, 0.3, 1.0])),
        "noise": 0.0 if kept else draw(st.sampled_from([0.0, 0.0, 0.1])),
    }
    fit = {
        "batch_size": draw(st.sampled_from([None] if kept else [1, 40, 300, 700])),
        "optimizer": draw(st.sampled_from(OPTIMIZERS)),
        "target": "embedding" if narrow else draw(st.sampled_from(["identity", "abs"])),
        "loss": loss,
        "loss_reduction": draw(st.sampled_from(["mean", "sum"])),
        "l1": draw(st.sampled_from([0.0, 0.05])),
        "importance": draw(st.sampled_from([1.0, [[0.5], [2.0]]])),
    }
    return Member(network, features, fit, kept, (n, m, o))


STEPS = 3


def fit_member(member: Member, **options: Any) -> tk.Run:
    """`tk.fit` of it, for three steps; `options` replace its own."""
    return tk.fit(
        member.model(), member.data(), steps=STEPS, record_every=1, seed=[5, 6], progress=False,
        **(member.fit | options),
    )  # fmt: skip


def reference_of_member(member: Member) -> reference.Trained:
    """The float64 reference on the batches of `fit_member`."""
    model, data = member.model(), member.data()
    told = {name: member.fit[name] for name in member.fit if name not in ("batch_size", "optimizer")}
    if isinstance(data, tk.Dataset):

        def batches(step: int) -> Any:
            return data.batch(step, n_models=2)
    else:
        batches = batches_of(data, member.fit["batch_size"], [5, 6], 2)
    network = reference.network_of(model)
    start = reference.parameters_of(model)
    return reference.train(start, batches, STEPS, member.fit["optimizer"], network, **told)


def assert_follows(member: Member, run: tk.Run) -> None:
    """Losses and weights of `fit_member` are the reference's."""
    expected = reference_of_member(member)
    assert (relative_error(run.loss, expected.losses) < 2e-5).all()
    alone = member.shape[2] == 1 and member.fit["loss"] != "squared_error"
    for name, value in reference.parameters_of(run.model).items():
        if not (alone and name == "bias"):  # whose gradient is exactly 0: Adam divides rounding by rounding
            torch.testing.assert_close(value, expected.parameters[name], rtol=2e-4, atol=2e-5)
