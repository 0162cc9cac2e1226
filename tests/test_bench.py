"""The bench compares like with like: every contender draws the same distribution, takes the same step and
learns the same thing; and its table says what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import toykern as tk
from bench import bench_dataset, bench_sweep
from bench import record as bench_record
from bench.measure import Timing
from bench.peers import (
    CONTENDERS,
    LOOPS,
    NOTEBOOK,
    OCCHIO,
    OURS,
    PEERS,
    PLAIN,
    Variant,
    plain_loop,
    why_absent,
)
from bench.peers.problem import Problem, Trainer, problem_of
from bench.peers.sparse import SPARSE_CONTENDERS, SparseStep
from bench.peers.sparse import why_absent as why_sparse_absent
from bench.roof import Operations, Peaks, count_operations, direct_multiply_adds, gram_multiply_adds
from bench.session import Session
from bench.setups import promising, variants
from bench.sparse_workloads import SparseWorkload
from bench.table import BEGIN, END, render, update_readme
from bench.workloads import WORKLOADS, Workload

TINY = Workload(n_models=16, n_features=4, n_hidden=2, batch_size=128, sparsity=0.9)
DENSITY = 0.1
OPTIONAL = ("jax", "plain_jax", "numba", OCCHIO)  # peers that are tested where they are installed
COMPILED = Variant("compile", {"product": "elementwise", "draw": "gaps"})  # one: it takes a compiler's time


def _candidates() -> list[Variant]:
    found = []
    for contender in CONTENDERS:
        if contender in LOOPS:
            found += variants(contender, TINY)
        elif contender not in ("compile", OURS, OCCHIO):
            found += [v for v in variants(contender, TINY) if not v.sharded]
    found += [Variant("jax", {"product": "matmul_samples_first", "draw": "uniform"})]
    found += [Variant("eager", {"layout": "samples_first", "draw": "uniform"}), COMPILED]
    return [v for v in found if _is_here(v.contender)]


def _is_here(contender: str) -> bool:
    return contender not in OPTIONAL or why_absent(contender) is None


@pytest.fixture(scope="module", params=_candidates(), ids=lambda v: f"{v.contender}, {v.label}")
def trainer(request: pytest.FixtureRequest) -> Trainer:
    return request.param.build(problem_of(TINY))


def _reference_steps(problem: Problem, batches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adam on the written-out gradient in float64 on `[steps, models, batch, n]`: weights, biases, losses."""
    weight, importance = problem.weight.astype(np.float64), problem.importance[:, None]
    parameters = [weight, np.zeros((problem.n_models, weight.shape[2]))]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    losses = []
    for step, x in enumerate(batches, start=1):
        weight, bias = parameters
        hidden = x @ weight.transpose(0, 2, 1)
        before_relu = hidden @ weight + bias[:, None]
        error = np.maximum(before_relu, 0.0) - x
        losses.append((importance * error**2).mean((1, 2)))
        delta = 2.0 * importance * error * (before_relu > 0.0) / x[0].size
        through_hidden = (delta @ weight.transpose(0, 2, 1)).transpose(0, 2, 1) @ x
        gradients = [hidden.transpose(0, 2, 1) @ delta + through_hidden, delta.sum(1)]
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            change = first[i] / (1 - 0.9**step) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
            parameters[i] = parameters[i] - 1e-3 * change
    return parameters[0], parameters[1], np.mean(losses, axis=0)


def test_a_sweep_is_measured_beside_its_training() -> None:
    line = bench_sweep.measure(0.0, chunks=2, repeats=1)
    (run,) = line["runs"]
    assert line["steps"] == bench_sweep.RECORDS and 0 < run["inside"] < run["sweep"] and run["alone"] > 0
    line["runs"] = [{"sweep": 2.1, "inside": 2.0, "alone": 2.0}] * 3
    assert bench_sweep.row(line) == "| 1.00 s | 50.0 ms | 5.00% | +5.00% |"


def test_a_dataset_is_measured_beside_eager() -> None:
    data = tk.SparseFeatures(30, 0.1).dataset(samples=20, seed=0, normalize="unit")
    line = bench_dataset.measure(data, 0.0, repeats=1, compiled=False)
    assert line["fit"]["wall"][0] > 0 and line["eager"]["processor"][0] >= 0 and 0 < line["active"] < 1
    line |= {"fit": {"wall": [2.0], "processor": [4.0]}, "eager": {"wall": [40.0], "processor": [40.0]}}
    line["active"] = 0.5
    assert bench_dataset.row(line, 1.0) == "| 50.0% | 2.0 / 4.0 | 1.0 | 40 / 40 (20.0 / 10.0×) | – |"


def _batches(steps: int, problem: Problem) -> np.ndarray:
    generator = np.random.default_rng(3)
    shape = (steps, problem.n_models, TINY.batch_size, TINY.n_features)
    return np.where(generator.random(shape) < DENSITY, generator.random(shape), 0.0)


@pytest.mark.slow
def test_a_peer_takes_the_same_steps(trainer: Trainer) -> None:
    problem = problem_of(TINY)
    batches = _batches(20, problem)
    for x in batches:
        trainer.update(x.astype(np.float32))
    weight, bias, loss = _reference_steps(problem, batches)
    got_weight, got_bias = trainer.parameters()
    np.testing.assert_allclose(got_weight, weight, atol=2e-6)
    np.testing.assert_allclose(got_bias, bias, atol=2e-6)
    np.testing.assert_allclose(trainer.mean_loss(), loss, rtol=1e-4)


def test_a_peer_draws_the_same_distribution(trainer: Trainer) -> None:
    batches = np.stack([trainer.draw() for _ in range(20)])
    assert batches.shape == (20, TINY.n_models, TINY.batch_size, TINY.n_features)
    assert batches.min() >= 0.0 and batches.max() <= 1.0
    active = batches > 0.0
    # 5.3 standard errors of a Bernoulli mean (two in ten million), for each place of a sample and over all.
    for rate, count in ((active.mean((0, 1, 2)), active[..., 0].size), (active.mean(), active.size)):
        limit = 5.3 * np.sqrt(DENSITY * (1 - DENSITY) / count)
        np.testing.assert_allclose(rate, DENSITY, atol=limit)
    magnitudes = np.sort(batches[active])
    kolmogorov = np.abs(magnitudes - np.linspace(0.0, 1.0, magnitudes.size)).max()
    assert kolmogorov < 2.9 / np.sqrt(magnitudes.size)
    assert not np.array_equal(batches[0], batches[1])


@pytest.mark.slow
def test_all_contenders_learn_the_same_thing(trained_losses: dict[str, float]) -> None:
    """Mean losses of 200 steps, all from the same weights, agree within what the batches' noise allows."""
    variant = Variant("eager", {"layout": "features_first", "draw": "gaps"}, sharded=True)
    with Session(variant, TINY) as session:
        session.run(200)
        losses = session.mean_loss()
    assert losses.shape == (TINY.n_models,)
    for name, other in trained_losses.items():
        assert losses.mean() == pytest.approx(other, rel=0.02), name


@pytest.fixture(scope="module")
def trained_losses() -> dict[str, float]:
    """The mean loss over 200 steps of the written-out reference, of `tk.fit` and of a peer of each kind."""
    problem = problem_of(TINY)
    losses = {"reference": _reference_steps(problem, _batches(200, problem))[2].mean()}
    contenders = [Variant(OURS), Variant(NOTEBOOK), COMPILED]
    contenders += [Variant("plain_jax"), Variant("jax", {"product": "matmul", "draw": "uniform"})]
    contenders += [Variant("cpp", {"optimize": "-O3"}), Variant("numba")]
    for variant in filter(lambda v: _is_here(v.contender), contenders):
        trainer = variant.build(problem)
        trainer.run(200)
        losses[variant.contender] = trainer.mean_loss().mean()
    return losses


@pytest.mark.skipif(not _is_here(OCCHIO), reason="occhio is not installed")
def test_occhio_learns_the_same_thing() -> None:
    """It keeps no losses: those of its trained weights, on batches of the reference, agree with ours."""
    problem = problem_of(TINY)
    x, losses = _batches(200, problem), {}
    for variant in (Variant(OCCHIO), Variant("cpp", {"optimize": "-O3"})):
        trainer = variant.build(problem)
        assert trainer.draw().shape == x[0].shape
        assert (trainer.draw() > 0).mean() == pytest.approx(DENSITY, abs=0.02)
        trainer.run(300)
        weight, bias = (a[None].astype(np.float64) for a in trainer.parameters())
        out = np.maximum((x @ weight.transpose(0, 1, 3, 2)) @ weight + bias[:, :, None], 0.0)
        losses[variant.contender] = (problem.importance[:, None] * (out - x) ** 2).mean()
    assert losses[OCCHIO] == pytest.approx(losses["cpp"], rel=0.02)


@pytest.mark.parametrize("shape", [(5, 2, 0.0), (7, 3, 0.5), (33, 9, 0.97)])
def test_plain_loops_take_the_reference_s_steps(shape: tuple[int, int, float]) -> None:
    n, m, sparsity = shape
    workload = Workload(n_models=3, n_features=n, n_hidden=m, batch_size=50, sparsity=sparsity)
    problem = problem_of(workload)
    for variant in (Variant("cpp", {"optimize": "-O2"}), Variant("numba")):
        if not _is_here(variant.contender):
            continue
        trainer = variant.build(problem)
        batches = np.stack([trainer.draw() for _ in range(5)])
        assert (batches > 0).mean() == pytest.approx(1 - sparsity, abs=0.05)
        for x in batches:
            trainer.update(x)
        weight, bias, loss = _reference_steps(problem, batches)
        for got, expected in zip(trainer.parameters(), (weight, bias), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-6)
        np.testing.assert_allclose(trainer.mean_loss(), loss, rtol=1e-4)


def test_set_ups_that_were_far_from_the_best_are_not_tried_again() -> None:
    candidates = variants("cpp", TINY)
    labels = [variant.label for variant in candidates]
    tried = dict(zip(labels, (1.0, 1.1, 1.3), strict=True))
    assert [variant.label for variant in promising(candidates, tried)] == labels[:2]
    assert promising(candidates, {}) == promising(candidates, {labels[0]: 1.0}) == candidates


def _one_model(n_features: int, n_hidden: int, batch_size: int, sparsity: float) -> Workload:
    return Workload(
        n_models=1, n_features=n_features, n_hidden=n_hidden, batch_size=batch_size, sparsity=sparsity
    )


def test_operations_by_hand() -> None:
    dense = count_operations(_one_model(5, 2, 100, 0.0))
    assert dense == Operations(multiply_adds=2 * 500 * 2 + 3 * 100 * 10, random_words=500, elementwise=3000)
    rare = count_operations(_one_model(1, 1, 100, 0.9))  # a sample is one feature: 10 samples are not empty
    assert rare.random_words == pytest.approx(20) and rare.elementwise == pytest.approx(60)
    # Directly 2·10 + 3·10; in the Gram form 2·10, and G and W (A + Aᵀ), which are numbers here.
    assert rare.multiply_adds == pytest.approx(20 + 2 * (1 - 0.9**100))
    frequent = count_operations(_one_model(1, 1, 320, 0.5))
    assert frequent.random_words == pytest.approx(110 + 160)
    # 82 vector operations of 2 flops at 100 flop/µs, 20 words at 10 words/µs
    assert rare.microseconds(Peaks(flops=1e8, random_words=1e7)) == pytest.approx(3.64, rel=1e-3)


def test_each_product_is_counted_in_its_cheaper_form() -> None:
    """Two features in one hidden unit, one sample, p = 1/2: none, one or both of them are active."""
    workload = _one_model(2, 1, 1, 0.5)
    # Entries 2·½. Of the 3 different ones of G 0, 2 or 3 are needed, of the 4 of A + Aᵀ 0, 3 or 4.
    assert gram_multiply_adds(workload) == pytest.approx(2 * 1 * 2 + (2 * 2 + 3) / 4 + (2 * 3 + 4) / 4)
    assert direct_multiply_adds(workload) == pytest.approx(2 * 1 * 1 + 3 * 0.75 * 2)
    for shape in ((80, 20, 1024, 0.99), (400, 30, 128, 0.9)):
        forms = [count(_one_model(*shape)) for count in (direct_multiply_adds, gram_multiply_adds)]
        assert count_operations(_one_model(*shape)).multiply_adds == min(forms)
    assert (
        gram_multiply_adds(_one_model(80, 20, 1024, 0.99))
        < direct_multiply_adds(_one_model(80, 20, 1024, 0.99)) / 8
    )


def _timings(jax: Timing | str) -> dict[str, Timing | str]:
    def timing(contender: str, *samples: float) -> Timing:
        setup = Variant(contender, {"draw": f"{contender}-draw"})
        return Timing(setup, list(samples), [3 * s for s in samples], 10, {"a": 1.0})

    return {
        OURS: timing(OURS, 0.25, 0.2, 9.0),
        "eager": timing("eager", 30.0, 30.0, 30.0),
        "compile": timing("compile", 20.0, 19.0, 21.0),
        "jax": jax,
        "cpp": timing("cpp", 1.0, 1.0, 1.0),
        "numba": "failed: no such thing",
        NOTEBOOK: timing(NOTEBOOK, 50.0, 51.0, 49.0),
        "plain_compile": timing("plain_compile", 40.0, 41.0, 39.0),
        "plain_jax": "jax and optax not installed",
        OCCHIO: "occhio not installed",
    }


def _record(jax: Timing | str) -> dict:
    versions = {"toykern": "0.1", "torch": "2", "jax": "not installed", "optax": "not installed"}
    peaks = Peaks(1e12, 1e10)
    return {
        "date": "2026-01-02T03:04:05+00:00", "commit": "abc", "processor": "A CPU", "cores": 2,
        "instruction_set": "v4", "versions": versions, "peaks": {"flops": 1e12, "random_words": 1e10},
        "workloads": [bench_record.workload_entry(WORKLOADS[0], _timings(jax), peaks)], }  # fmt: skip


def test_table_shows_medians_and_the_ratio_to_the_best_peer(tmp_path) -> None:
    record = _record("jax and optax not installed")
    path = bench_record.save(record, results=tmp_path)
    assert bench_record.newest(results=tmp_path) == record == json.loads(path.read_text())
    row = next(line for line in render(record).splitlines() if line.startswith(f"| {WORKLOADS[0].name}"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:9] == [
        "**0.25**", "40 (torch.compile)", "160× / 160×", "20 (torch.compile)", "80× / 80×", "1 (C++)",
        "4× / 4×", f"{WORKLOADS[0].required_ratio:g}×",
    ]  # fmt: skip
    every = [line for line in render(record).splitlines() if line.startswith(f"| {WORKLOADS[0].name}")][1]
    assert [cell.strip() for cell in every.strip("|").split("|")][1:] == [
        "0.25 / 0.75", "50 / 150", "40 / 120", "not installed", "not installed", "30 / 90", "20 / 60",
        "not installed", "1 / 3", "failed",
    ]  # fmt: skip
    assert "compile-draw" in render(record) and "cpp-draw" in render(record)
    faster = Timing(Variant("jax"), [5.0], [10.0], 10, {})
    tuned = _record(faster)["workloads"][0]["fastest"]["tuned"]
    assert tuned == {"name": "jax", "median": 5.0, "ratio": 20.0, "processor_ratio": 10 / 0.75}
    assert bench_record.tried_before(record)[WORKLOADS[0].name]["cpp"] == {"a": 1.0}


def test_the_table_of_an_older_record_leaves_out_what_was_not_measured() -> None:
    record = _record("jax and optax not installed")
    for figures in record["workloads"][0]["contenders"].values():
        figures.pop("processor", None)
    for name in LOOPS:
        del record["workloads"][0]["contenders"][name]
    row = next(line for line in render(record).splitlines() if line.startswith(f"| {WORKLOADS[0].name}"))
    assert "| 40 (torch.compile) | 160× | 20 (torch.compile) | 80× |  |  |" in row


def test_of_a_bench_and_a_machine_the_newest_record_is_kept(tmp_path) -> None:
    def saved(day: int, *keys: str, **facts: object) -> str:
        record = {
            "date": f"2026-01-{day:02}T00:00:00+00:00",
            "cores": 2,
            "workloads": [{"key": k} for k in keys],
        }
        return bench_record.save(record | facts, "some", tmp_path).name

    first, other = saved(1, "a", "b"), saved(2, "a", cores=4)
    part = saved(3, "a")  # lacks a line that the first has
    assert {path.name for path in (tmp_path / "some").iterdir()} == {first, other, part}
    whole = saved(4, "a", "b", "c")
    assert {path.name for path in (tmp_path / "some").iterdir()} == {other, whole}
    assert bench_record.newest("some", tmp_path)["date"].startswith("2026-01-04")


def test_a_table_from_a_busy_machine_says_so() -> None:
    record = _record("jax and optax not installed")
    quiet = render(record)
    record["load"] = {"busy": True, "others": 0.5, "cores": 2, "load_average": [3.0, 3.0]}
    assert "busy" not in quiet
    assert "**On a busy machine: other processes used 0.50 of 2 cores.**" in render(record)
    stated = render(record | {"load": record["load"] | {"busy": False, "others": 0.04}})
    assert stated == quiet.replace(", v4;", ", v4, of which other programs used 0.04;")


def test_readme_table_is_replaced_between_its_markers(tmp_path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "benchmarks.md"
    for path in (readme, page):
        path.write_text(f"# Title\n{BEGIN}\nold\n{END}\ntail\n")
    update_readme(_record("absent"), readme, page)
    update_readme(_record("absent"), readme, page)
    for path in (readme, page):
        text = path.read_text()
        assert text.startswith(f"# Title\n{BEGIN}\n| workload |") and text.endswith(f"{END}\ntail\n")
        assert "old" not in text and text.count("the set-up that won") == (path == page)
    assert len(readme.read_text().splitlines()[2].split("|")) == 10
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="README.md must contain"):
        update_readme(_record("absent"), readme, page)
    assert readme.read_text() == "no markers\n"


def test_every_workload_has_set_ups_for_every_contender() -> None:
    for workload in WORKLOADS:
        for contender in CONTENDERS:
            labels = [v.label for v in variants(contender, workload)]
            assert labels and len(labels) == len(set(labels))
    names = (*PEERS, *PLAIN, *LOOPS)
    assert {v.contender for w in WORKLOADS for p in names for v in variants(p, w)} == set(names)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("contender", SPARSE_CONTENDERS)
def test_sparse_contenders_do_the_same_work(contender: str) -> None:
    """All but SparseLab, which draws connections of its own, give the dense layer's output and gradient."""
    if (reason := why_sparse_absent(contender)) is not None:
        pytest.skip(reason)
    workload = SparseWorkload(64, 96, 80, 0.8)
    y, dx = SparseStep("dense", workload).results()
    step = SparseStep(contender, workload)
    if contender != "sparselab":
        ours_y, ours_dx = step.results()
        torch.testing.assert_close(ours_y, y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours_dx, dx, rtol=1e-4, atol=1e-5)
    before = [parameter.detach().clone() for parameter in step.layer.parameters()]
    step.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, step.layer.parameters(), strict=True))


@pytest.mark.skipif(plain_loop.compiler_absent() is not None, reason="there is no C++ compiler")
def test_the_plain_loop_leaves_denormals_to_the_process() -> None:
    """A library that is linked with -ffast-math would flush them in every process that loads it."""
    tiny = np.full(8, 1e-40, dtype=np.float32)
    assert (tiny * np.float32(0.5) != 0).all()
    plain_loop.library(3, 2, "-O1")
    assert (tiny * np.float32(0.5) != 0).all()
