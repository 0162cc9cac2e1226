"""The GPU bench's contenders do the same training (seen on the CPU), and its tables say what was measured."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_bench import _reference_steps

from bench.gpu import __main__ as gpu_bench
from bench.gpu import table
from bench.gpu.roof import bounds, count
from bench.gpu.setups import numbers_of, options_of
from bench.gpu.worker import Worker, climb
from bench.peers import OURS, PEERS, Variant
from bench.peers.problem import Trainer, problem_of
from bench.workloads import GPU_WORKLOADS, Workload

_SHAPE = {"n_models": 16, "n_features": 4, "n_hidden": 2, "batch_size": 128}
GRID = Workload(label="grid", sparsity=None, **_SHAPE)
PLAIN = Workload(label="plain", sparsity=0.9, **_SHAPE)
JAX = importlib.util.find_spec("jax") is not None
LONG = 3600.0  # seconds, where a test is about something else than a time limit
CLOCK = SimpleNamespace(
    monotonic=lambda: 0.0
)  # stands still, so that no outcome depends on the machine's load


def _variants() -> list[Variant]:
    found = [Variant(name, options) for name in PEERS for options in options_of(name, GRID)]
    found.append(Variant("jax", {"product": "matmul_samples_first", "generator": "rbg"}))
    # On a CPU the two ways to a CUDA graph are the same, and each takes a compiler's time.
    found = [v for v in found if v.options.get("graphs") != "reduce-overhead"]
    return [v for v in found if JAX or v.contender != "jax"]


@pytest.fixture(scope="module", params=_variants(), ids=lambda v: f"{v.contender}, {v.label}")
def trainer(request: pytest.FixtureRequest) -> Trainer:
    return request.param.build(problem_of(GRID))


@pytest.mark.slow
def test_a_peer_takes_the_same_steps(trainer: Trainer) -> None:
    problem, generator = problem_of(GRID), np.random.default_rng(3)
    p = problem.probability[:, :, None]
    batches = [
        np.where(generator.random((16, 128, 4)) < p, generator.random((16, 128, 4)), 0.0) for _ in range(12)
    ]
    for x in batches:
        trainer.update(x.astype(np.float32))
    weight, bias, loss = _reference_steps(problem, np.stack(batches))
    got_weight, got_bias = trainer.parameters()
    np.testing.assert_allclose(got_weight, weight, atol=2e-6)
    np.testing.assert_allclose(got_bias, bias, atol=2e-6)
    np.testing.assert_allclose(trainer.mean_loss(), loss, rtol=1e-4)


def test_a_peer_draws_each_models_distribution(trainer: Trainer) -> None:
    batches = np.stack([trainer.draw() for _ in range(40)])
    assert batches.shape == (40, 16, 128, 4) and batches.min() >= 0.0 and batches.max() <= 1.0
    active, p = batches > 0.0, GRID.probability(16)[:, 0]
    limit = 5.3 * np.sqrt(p * (1 - p) / active[:, 0].size) + 1e-9
    assert (np.abs(active.mean((0, 2, 3)) - p) <= limit).all()
    magnitudes = np.sort(batches[active])
    kolmogorov = np.abs(magnitudes - np.linspace(0.0, 1.0, magnitudes.size)).max()
    assert kolmogorov < 2.9 / np.sqrt(magnitudes.size)
    assert not np.array_equal(batches[0], batches[1])


def _losses(variant: Variant) -> np.ndarray:
    trainer = variant.build(problem_of(PLAIN))
    trainer.run(200)
    return trainer.mean_loss()


@pytest.mark.slow
def test_all_contenders_learn_the_same_thing() -> None:
    ours = _losses(Variant(OURS))
    assert ours.shape == (16,)
    for name in PEERS if JAX else PEERS[:2]:
        options = options_of(name, PLAIN)[0]
        assert _losses(Variant(name, options)).mean() == pytest.approx(ours.mean(), rel=0.02), name


def test_the_phase_diagram_has_its_densities_whatever_the_number_of_models() -> None:
    hard = GPU_WORKLOADS[0]
    for models in (64, 4096):
        p, importance = hard.probability(models), hard.importance(models)
        assert p.shape == (models, 1) and importance.shape == (models, 2)
        assert (p.min(), p.max()) == pytest.approx((0.01, 1.0))
        assert (importance[:, 1].min(), importance[:, 1].max()) == pytest.approx((0.1, 10.0))
        assert abs(np.corrcoef(np.log(p[:, 0]), np.log(importance[:, 1]))[0, 1]) < 0.5


def test_workloads_are_those_asked_for() -> None:
    asked = {(w.n_features, w.n_hidden): (w.required_ratio, w.required_rate) for w in GPU_WORKLOADS}
    assert asked[(5, 2)] == (60, 8e8) and asked[(20, 5)] == (40, 1e8) and asked[(200, 20)][0] == 15
    assert GPU_WORKLOADS[0].n_models == 256 * 256 * 16 and asked[(2, 1)][0] == 10
    for workload in GPU_WORKLOADS:
        start, largest = numbers_of(workload)
        assert 1 <= start <= largest and start & (start - 1) == 0
        assert largest * workload.n_features * workload.batch_size * 4 <= 4e9


def _one_unit(sparsity: float, batch_size: int) -> Workload:
    return Workload(n_models=1, n_features=1, n_hidden=1, sparsity=sparsity, batch_size=batch_size)


def test_instructions_by_hand() -> None:
    counts = count(_one_unit(0.0, 32))  # always active: no gates, no places
    assert counts.arithmetic == pytest.approx(2 + 2 / 32 + 6)  # the Gram form: a row each way, once a batch 2
    assert (counts.random, counts.places, counts.optimizer) == pytest.approx((10, 4, 15 * 2 / 32))
    rare = count(_one_unit(0.9, 320))  # 32 active entries, as many samples
    assert (rare.random, rare.places) == pytest.approx((20, 24))
    roof = bounds(_one_unit(0.9, 320), 132, 1.98e9)
    assert roof["issue_rate"] == pytest.approx(132 * 4 * 1.98e9 / rare.issue)
    assert roof["issue_rate"] < roof["arithmetic_rate"]


@pytest.mark.parametrize("peak", [1, 2, 16, 64, 300, 4096])
def test_the_climb_finds_the_peak(peak: int) -> None:
    best = climb(lambda n: -abs(np.log2(n / peak)), 64, 4096)
    assert abs(np.log2(best / peak)) <= 0.5
    assert climb(lambda n: 1.0 / n, 64, 4096) == 1
    assert climb(lambda n: float(n) if n < 512 else 0.0, 64, 4096) in (128, 256)  # 512 and more do not fit


class _Broken(Worker):
    def __init__(self) -> None:
        super().__init__("nobody", "cpu")


def test_a_process_that_fails_says_why_and_the_next_call_starts_another() -> None:
    worker = _Broken()
    try:
        for _ in range(2):
            result, why = worker.call("tune", PLAIN, 1.0, 2, limit=LONG)
            assert result is None and "KeyError" in why and "nobody" in why
    finally:
        worker.close()


@pytest.mark.slow
def test_a_process_that_hangs_is_ended() -> None:
    worker = Worker(OURS, "cpu")
    try:
        result, why = worker.call("tune", PLAIN, 1.0, 2, limit=0.01)
        assert (result, why) == (None, "took longer than 0 s")
        assert worker.call("drop", limit=LONG) == (None, None)
    finally:
        worker.close()


class FakeWorker:
    def call(self, method, *arguments, limit):
        assert method == "whole" and limit > 0
        return {"call_seconds": 1.0, "steps": arguments[1]}, None


@pytest.mark.slow
def test_the_whole_phase_diagram_is_run_last_where_there_is_time(monkeypatch) -> None:
    monkeypatch.setattr(gpu_bench, "time", CLOCK)

    def whole(projected: float | None, left: float) -> dict | None:
        entry = {} if projected is None else {"projected_seconds": projected}
        figures = {"device": "a GPU", "workloads": [entry]}
        gpu_bench.run_whole(FakeWorker(), [PLAIN], figures, CLOCK.monotonic() + left)
        return entry.get("whole")

    assert whole(30.0, 60.0) == {"call_seconds": 1.0, "steps": gpu_bench.HARD_STEPS}
    assert "too long" in whole(30.0, 40.0)["left_out"] and "too long" in whole(90.0, 600.0)["left_out"]
    assert whole(None, 600.0) is None
    worker = Worker(OURS, "cpu")
    try:
        result, why = worker.call("whole", replace(PLAIN, n_models=3), 2, limit=LONG)
    finally:
        worker.close()
    assert why is None and result["steps"] == 2 and result["call_seconds"] >= result["seconds"] > 0


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A whole bench of one tiny workload, on the CPU, without the compiler's peer."""
    path = tmp_path_factory.mktemp("gpu") / "figures.json"
    with pytest.MonkeyPatch.context() as patch:
        absent = {"compile": "left out of this test", **({} if JAX else {"jax": "not installed"})}
        patch.setattr(gpu_bench, "GPU_WORKLOADS", (PLAIN,))
        patch.setattr(gpu_bench, "time", CLOCK)
        patch.setattr(gpu_bench, "START", LONG)
        patch.setattr(gpu_bench, "why_absent", absent.get)
        arguments = ["--device", "cpu", "--most", "8", "--budget", "8", "--repeats", "2", "--out", str(path)]
        assert gpu_bench.main(arguments) == 0
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_bench_from_end_to_end(figures: dict) -> None:
    (entry,) = figures["workloads"]
    ours = entry["contenders"][OURS]
    assert len(ours["samples"]) == 2 and ours["n_models"] == 8 and ours["median"] > 0
    assert entry["contenders"]["compile"] == {"absent": "left out of this test"}
    assert entry["ratio"] == pytest.approx(ours["median"] / entry["rates"][entry["best_peer"]])
    assert entry["issue_share"] == pytest.approx(ours["median"] / entry["roof"]["issue_rate"])


class _Scripted:
    """A worker whose calls give what was written down for them."""

    def __init__(self, rate: float | None, repeats: int = 2) -> None:
        self.rate, self.left = rate, repeats

    def call(self, method, *arguments, limit):
        if method == "tune":
            slow = (None, f"took longer than {limit:.0f} s")
            return slow if self.rate is None else ({"setup": "usual", "n_models": 8}, None)
        self.left -= 1
        return (None, "its process died (exit status -9)") if self.left < 0 else ({"rate": self.rate}, None)


def test_a_contender_that_fails_has_its_line_and_no_ratio_is_taken_from_it() -> None:
    def measured(**workers: _Scripted) -> tuple[dict, str]:
        figures = {"device": "a GPU", "clock_hz": None, "repeats": 2}
        entry = gpu_bench.new_entry(PLAIN, figures)
        for _ in gpu_bench.measure(PLAIN, workers, entry, 8.0, 2, None):
            pass
        gpu_bench.conclude(entry)
        figures["workloads"] = [entry]
        return entry, table.render_figures(figures)

    slow, dies = _Scripted(None), _Scripted(9e6, repeats=1)
    entry, text = measured(toykern=_Scripted(6e6), eager=_Scripted(2e6), compile=slow, jax=dies)
    assert entry["ratio"] == 3.0 and entry["best_peer"] == "eager"
    assert entry["contenders"]["compile"]["failed"].startswith("took longer than")
    assert "jax" not in entry["rates"] and "its process died" in entry["contenders"]["jax"]["failed"]
    assert "2 M (PyTorch eager), of those that did not fail | 3×" in text
    assert text.count("| failed") == 2
    entry, text = measured(toykern=_Scripted(6e6), eager=_Scripted(None), compile=_Scripted(None))
    assert "ratio" not in entry and entry["best_peer"] is None and "**6 M** |  |  |" in text
    entry, text = measured(toykern=_Scripted(None), eager=_Scripted(2e6))
    assert "ratio" not in entry and "| failed | 2 M (PyTorch eager) |  |" in text


@pytest.mark.slow
def test_the_readme_has_the_newest_record_or_says_that_there_is_none(figures: dict, tmp_path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.newest_record(tmp_path) is None
    table.update_readme(None, readme)
    assert "No figure has been measured on a GPU yet" in readme.read_text()
    record = {
        "date": "2026-01-02T03:04:05+00:00", "device": "NVIDIA H200", "driver": "580", "nvcc": "13.0",
        "torch": "2.11", "commit": "abc",
        "stages": {
            "build": {"passed": True}, "proof": {"passed": False, "summary": "1 failed, 9 passed"},
            "racecheck": {"passed": False, "skipped": "not there"},
            "headline": {"passed": True, "figures": figures},
        },
    }  # fmt: skip
    (tmp_path / "gpu-2026-01-02T030405.json").write_text(json.dumps(record))
    without = {**record, "commit": "def", "stages": {"build": {"passed": True}}}
    (tmp_path / "gpu-2026-01-03T030405.json").write_text(json.dumps(without))  # newer, with nothing to show
    assert table.newest_record(tmp_path) == record
    table.update_readme(record, readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "NVIDIA H200, driver 580" in text and "16 models, 4 → 2, S = 0.9" in text
    assert "build passed, proof failed, racecheck skipped, headline passed (1 failed, 9 passed)" in text
    figures["workloads"][0]["contenders"][OURS] = {"failed": "launch failed"}
    del figures["workloads"][0]["ratio"]
    assert "| failed |" in table.render_figures(figures)


@pytest.mark.slow
def test_the_records_of_both_calls_make_one_table(figures: dict, tmp_path) -> None:
    def written(at: str, commit: str, stage: str, name: str) -> None:
        entry = {**figures["workloads"][0], "name": name}
        stages = {"build": {"passed": at != "1"}, stage: {"figures": {**figures, "workloads": [entry]}}}
        record = {"date": at, "device": "a GPU", "commit": commit, "stages": stages}
        (tmp_path / f"gpu-{at}.json").write_text(json.dumps(record))

    written("1", "abc", "headline", "hard")
    written("2", "abc", "bench", "large")
    record = table.newest_record(tmp_path)
    assert record["stages"]["build"]["passed"] and record["date"] == "2"
    assert [w["name"] for w in table.figures_of(record)["workloads"]] == ["hard", "large"]
    written("3", "other", "bench", "large")  # of another commit: never beside figures of this one
    assert [w["name"] for w in table.figures_of(table.newest_record(tmp_path))["workloads"]] == ["large"]


def test_the_page_in_the_repository_is_up_to_date() -> None:
    text = table.PAGE.read_text(encoding="utf-8")
    shown = text.partition(table.BEGIN)[2].partition(table.END)[0].strip()
    record = table.newest_record()
    assert shown == (table.NOTHING if record is None else table.render(record))
