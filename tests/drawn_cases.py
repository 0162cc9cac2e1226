"""Training cases for property tests: any small shape with any options."""

from __future__ import annotations

from cases import FitCase
from hypothesis import strategies as st
from stream_oracle import MAGNITUDES

from toykern.training.optim import SGD, Adam, AdamW

probabilities = st.sampled_from([0.0, 1e-3, 0.03, 0.125, 0.126, 0.4, 0.95, 1.0])
rates = st.sampled_from([1e-3, 1e-2, [1e-2, 1e-3]])
decays = st.sampled_from([0.0, 0.1, [0.5, 0.0]])
momenta = st.sampled_from([0.0, 0.5, 0.9])
optimizers = st.one_of(
    st.builds(SGD, lr=rates, momentum=momenta, weight_decay=decays),
    st.builds(SGD, lr=rates, momentum=st.just(0.9), nesterov=st.just(True), weight_decay=decays),
    st.builds(Adam, lr=rates, weight_decay=decays),
    st.builds(AdamW, lr=rates, betas=st.sampled_from([(0.9, 0.999), (0.0, 0.5)]), weight_decay=decays),
)


@st.composite
def small_cases(draw, shapes=None, tied=None) -> FitCase:
    """Two models of one of `shapes` (n_features, n_hidden), or of any with up to 40 and 12; few steps."""
    n, m = draw(
        st.tuples(st.integers(1, 40), st.integers(1, 12)) if shapes is None else st.sampled_from(shapes)
    )
    probability = draw(probabilities | st.lists(probabilities, min_size=n, max_size=n))
    members = draw(st.permutations(range(n)))[: draw(st.integers(0, n))]
    groups = {}
    if members and draw(st.booleans()):
        probability = [[draw(probabilities)] * n]
        groups["correlated"] = (tuple(members),)
    elif members and draw(st.booleans()):
        probability = [[draw(probabilities) / len(members)] * n]
        groups["anticorrelated"] = (tuple(members),)
    return FitCase(
        "drawn",
        n,
        m,
        probability,
        batch_size=draw(st.integers(1, 100)),
        optimizer=draw(optimizers),
        steps=draw(st.integers(3, 5)),
        n_models=2,
        tied=draw(st.booleans()) if tied is None else tied,
        features={
            "magnitude": draw(st.sampled_from(MAGNITUDES)),
            "noise": draw(st.sampled_from([0.0, 0.0, 0.1])),
        },
        network={
            "hidden_activation": draw(st.sampled_from(["none", "relu"])),
            "output_activation": draw(st.sampled_from(["relu", "none"])),
            "bias": draw(st.booleans()),
        },
        loss={
            "importance": draw(st.sampled_from([1.0, 0.0, 3.0, [[0.5], [2.0]]])),
            "target": draw(st.sampled_from(["identity", "abs"])),
            "loss_reduction": draw(st.sampled_from(["mean", "sum"])),
        },
        schedule=draw(st.sampled_from(["constant", "cosine"])),
        **groups,
    )
