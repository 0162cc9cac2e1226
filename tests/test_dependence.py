"""Exactly k active features, hierarchies and copulas: what they mean, where they go, what is refused."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
import stream_oracle as oracle
import torch

import toykern as tk
from toykern.data.features import features_from_config
from toykern.native.device_launch import DeviceLaunch

PAIR = [[1.0, 0.5], [0.5, 1.0]]
TREE = tk.Hierarchy([-1, 0, 0, 2])
KINDS = {
    "active": tk.SparseFeatures(4, active=2, noise=0.1),
    "hierarchy": tk.SparseFeatures(4, [0.3, 0.5, 0.2, 1.0], dependence=TREE),
    "models of a hierarchy": tk.SparseFeatures(4, [[0.3], [0.6]], "lognormal", dependence=TREE),
    "correlation": tk.SparseFeatures(2, [0.1, 0.3], dependence=tk.Copula(correlation=PAIR)),
    "loadings": tk.SparseFeatures(3, 0.2, dependence=tk.Copula(loadings=[[0.9], [1 / 3], [0.0]])),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_description_makes_the_same_distribution(name):
    data = KINDS[name]
    described = json.loads(json.dumps(data.config()))
    again = features_from_config(described, {"probability": data.probability})
    assert again.config() == data.config() and repr(again) == repr(data)
    assert again.dependence == data.dependence and hash(again.dependence) == hash(data.dependence)
    assert torch.equal(again.sample(3, 100, 5, n_models=2), data.sample(3, 100, 5, n_models=2))


def test_what_was_there_before_is_described_as_before():
    """Older stores keep their meaning, and their digests."""
    assert set(tk.SparseFeatures(3, 0.1).config()) == {"n_features", "magnitude", "groups", "noise"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layout", ["coo", "sparse"])
def test_entries_are_those_of_the_dense_batch(name, layout):
    data = KINDS[name]
    dense = data.sample(1, 65, 3, n_models=2)
    if layout == "sparse":
        assert torch.equal(data.sample(1, 65, 3, n_models=2, layout="sparse").to_dense(), dense)
        return
    indices, values = data.sample(1, 65, 3, n_models=2, layout="coo")
    assert torch.equal(indices, dense.nonzero().T) and torch.equal(values, dense[tuple(indices)])


def test_marginals_are_those_without_condition():
    data = KINDS["hierarchy"]
    torch.testing.assert_close(data.marginals(), torch.tensor([[0.3, 0.15, 0.06, 0.06]]).double())
    assert data.active_features().item() == pytest.approx(0.57)
    assert KINDS["active"].marginals().tolist() == [[0.5] * 4]
    assert KINDS["correlation"].marginals().tolist() == [[0.1, 0.3]]


@pytest.mark.parametrize("name", KINDS)
def test_every_model_draws_as_if_it_were_alone(name):
    data = KINDS[name]
    seeds = torch.tensor([7, 2**40])
    x = data.sample(2, 40, seeds, n_models=2)
    for model, seed in enumerate(seeds.tolist()):
        row = data.probability[model % len(data.probability)][None]
        alone = features_from_config(data.config(), {"probability": row})
        assert torch.equal(alone.sample(2, 40, seed, n_models=1)[0], x[model])


# ---- runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_stored_run_goes_on_with_the_same_data(name, tmp_path):
    data = KINDS[name]
    options = {"batch_size": 16, "optimizer": tk.Adam(lr=0.01), "progress": False}
    model = tk.TiedAutoencoder(data.n_features, 2, 2)
    begun = tk.fit(model, data, 20, stop_at=8, **options)
    begun.save(tmp_path / "run.zarr")
    stored = tk.Run.load(tmp_path / "run.zarr")
    assert stored.data.config() == data.config()
    done = tk.fit(resume=stored, progress=False)
    whole = tk.fit(tk.TiedAutoencoder(data.n_features, 2, 2), data, 20, **options)
    assert torch.equal(done.model.weight, whole.model.weight)
    one = done.rerun(1)
    assert torch.equal(one.model.weight[0], whole.model.weight[1])


def test_a_sweep_over_probabilities_is_one_fit(tmp_path):
    points = tk.grid(density=[0.1, 0.4], seed=range(3))

    def plan(points, index):
        data = tk.SparseFeatures(4, points.density[:, None], dependence=TREE)
        return {"model": tk.TiedAutoencoder(4, 2, points.n_models, seed=index), "data": data, "seed": index}

    settings = {"steps": 9, "batch_size": 16, "progress": False}
    swept = [tk.sweep(points, plan, tmp_path / str(chunk), chunk=chunk, **settings) for chunk in (2, 6)]
    whole = tk.fit(**plan(points, torch.arange(6)), **settings)
    for done in swept:
        assert np.array_equal(np.asarray(done.read("weight")).reshape(6, 2, 4), whole.model.weight.detach())


# ---- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1e-8, 1e-5, 0.001, 0.1, 0.5, 0.9])
def test_a_variate_exceeds_its_threshold_as_often_as_the_page_says(p):
    """Without factors a feature is active iff one normal exceeds the threshold: all words, by bisection."""
    (threshold,) = tk.Copula(loadings=np.zeros((1, 0))).thresholds(torch.tensor([[p]]).double())[0].tolist()

    def tail(t: float) -> float:
        """The share of words w with half_normal(w) > t ≥ 0; it falls as the words grow."""
        low, high = 0, 2**31  # odd words 2·i + 1
        while low < high:
            middle = (low + high) // 2
            if float(oracle.half_normal(np.array([2 * middle + 1], np.uint64))[0]) > t:
                low = middle + 1
            else:
                high = middle
        return low / 2**31

    found = tail(threshold) / 2 if threshold >= 0 else 1 - tail(-threshold) / 2
    density = NormalDist().pdf(threshold)
    assert abs(found - p) < 1e-6 * density + 2.0**-32


def test_the_cholesky_factor_gives_the_correlations():
    rng = np.random.default_rng(0)
    for n, rank in ((3, 3), (20, 20), (20, 4)):
        x = rng.normal(size=(n, rank))
        c = np.corrcoef(x) if rank > 1 else np.ones((n, n))
        factor = tk.Copula(correlation=c).factor.astype(np.float64)
        assert np.all(np.triu(factor, 1) == 0)
        np.testing.assert_allclose(factor @ factor.T, c, atol=1e-6)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"active": 5}, "active must be .* 4, not 5"),
        ({"active": 0}, "active must be .* 1.*, not 0"),
        ({"active": 1.5}, "active must be an integer"),
        ({"active": 2, "probability": 0.5}, "probability must be left out where active is given"),
        ({"active": 2, "groups": [tk.Correlated((0, 1))]}, "groups cannot be given together with active"),
        ({"active": 2, "dependence": TREE}, "dependence cannot be given together with active"),
        ({}, "probability must be given, or active in its place"),
        (
            {"probability": 0.1, "dependence": "tree"},
            "dependence must be a Hierarchy or a Copula, not 'tree'",
        ),
        ({"probability": 0.1, "dependence": tk.Hierarchy([-1, 0])}, "n_features = 4 features, not 2"),
        ({"probability": 0.1, "dependence": tk.Copula(correlation=PAIR)}, "n_features = 4 features, not 2"),
        (
            {"probability": 0.1, "dependence": TREE, "groups": [tk.Correlated((0, 1))]},
            "groups cannot be given together with dependence",
        ),
        ({"probability": 1.5, "dependence": TREE}, r"probability must lie in \[0, 1\], not 1.5"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused_by_name(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        tk.SparseFeatures(4, **options)


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ([-1, 4, 0, 0], r"parents must be numbers of features, 0 … 3, or −1 for a root, not 4 \(feature 1\)"),
        ([-2, 0], r"not -2 \(feature 0\)"),
        ([0], "these features are their own ancestors: 0$"),
        ([-1, 2, 3, 1, 1], "these features are their own ancestors: 1 → 2 → 3$"),
        ([4, 0, 1, 1, 0], "these features are their own ancestors: 0 → 4$"),
        ([], "parents must"),
        ([[-1, 0]], r"parents must be the number of each feature's parent, \[n_features\]"),
        ([0.5, -1], "parents must hold integers"),
        (None, "parents"),
    ],
)
def test_what_is_no_hierarchy_is_refused_by_name(parents, said):
    with pytest.raises((ValueError, TypeError), match=said):
        tk.Hierarchy(parents)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either correlation"),
        ({"correlation": PAIR, "loadings": [[0.5], [0.5]]}, "either correlation"),
        ({"correlation": [[1.0, 0.5]]}, r"correlation must be \[n_features, n_features\]"),
        ({"correlation": np.zeros((0, 0))}, r"correlation must be \[n_features, n_features\]"),
        ({"correlation": [[1.0, 0.5], [0.4, 1.0]]}, r"symmetric, not 0.5 at \[0, 1\] and 0.4 at \[1, 0\]"),
        ({"correlation": [[1.0, 0.5], [0.5, 0.9]]}, r"diagonal of 1, not 0.9 at \[1, 1\]"),
        ({"correlation": [[1.0, math.nan], [math.nan, 1.0]]}, "correlation must be finite"),
        ({"correlation": [[1.0, 1.5], [1.5, 1.0]]}, "positive semidefinite; its smallest eigenvalue is -0.5"),
        (
            {"correlation": [[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]},
            "positive semidefinite; its smallest eigenvalue is -0.",
        ),
        ({"correlation": "independent"}, "correlation"),
        ({"loadings": [0.5, 0.5]}, r"loadings must be \[n_features, factors\]"),
        ({"loadings": [[0.5, 0.5], [0.9, 0.5]]}, r"at most 1, not 1.06 \(feature 1\)"),
        ({"loadings": [[math.inf]]}, "loadings must be finite"),
    ],
)
def test_what_is_no_copula_is_refused_by_name(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        tk.Copula(**options)


@pytest.mark.parametrize("name", KINDS)
def test_what_knows_single_features_and_groups_alone_refuses_them_by_name(name):
    data = KINDS[name]
    given = "active=2" if name == "active" else "dependence=(Hierarchy|Copula)"
    with pytest.raises(ValueError, match=f"data with {given}.* training on a CUDA device.* use the CPU"):
        DeviceLaunch(data, 2, torch.device("cuda", 0), "training")
    model = tk.TiedAutoencoder(data.n_features, 2, 2)
    with pytest.raises(ValueError, match=f"data with {given}.* method='stratified'; use method='samples'"):
        tk.evaluate(model, data, samples=100, method="stratified")
