"""The GPU bench of sparse layers, tried on the CPU: contenders take the same step, and it runs to its end."""

from __future__ import annotations

import json

import pytest
import torch

from bench.gpu import sparse as bench
from bench.gpu.sparse import SparseWorkload, Step, contenders_of, workloads

TINY = [SparseWorkload(12, 20, 16, 0.8, "fp32"), SparseWorkload(9, 24, 16, 0.5, "fp32", group=4)]


@pytest.mark.parametrize("workload", TINY, ids=lambda w: w.key)
def test_contenders_take_the_same_step(workload):
    """Outputs, input gradients and, after Adam, the weights at the connections."""
    steps = {name: Step(name, workload, "cpu") for name in contenders_of(workload)}
    mask = steps["toykern auto"].layer.topology.to_mask()[0]
    results = {}
    for name, step in steps.items():
        y = step.layer(step.x)
        step.step()
        layer = step.layer
        if name.startswith("toykern"):
            weight = layer.to_dense()[0][mask]
        elif name == "cusparse":
            weight = layer.values
        else:
            weight = layer.weight[mask]
        results[name] = [t.detach() for t in (y, step.x.grad, weight, layer.bias.reshape(-1))]
    for name, made in results.items():
        for ours, theirs in zip(made, results["toykern auto"], strict=True):
            torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=2e-5, msg=name)


def test_workloads_are_those_asked_for():
    found = {(w.batch, w.in_features, w.out_features, w.sparsity, w.group > 1): w for w in workloads()}
    assert found[(1024, 768, 3072, 0.99, False)].required == 0.95  # of the sweep, beside masked
    first = workloads()[0]
    assert (first.beside, first.required, first.precision) == ("dense", 2.0, "tf32")
    grouped = found[(4096, 4096, 16384, 0.9, True)]
    assert (grouped.beside, grouped.required, grouped.precision) == ("dense", 2.5, "bf16")
    assert 16 <= grouped.group <= 128 and len(workloads()) == 3 + 4 * 6
    assert len({w.key for w in workloads()}) == len(workloads())


def test_the_roof_by_hand():
    w = SparseWorkload(10, 100, 20, 0.9)
    assert w.connections == 200
    assert w.roof_seconds(1e3, 1e30) == pytest.approx(6 * 10 * 200 / 1e3)
    assert w.roof_seconds(1e30, 1e3) == pytest.approx(4 * (9 * 200 + 10 * 3 * 120) / 1e3)


@pytest.mark.slow
def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.001)
    keys = [workloads()[0].key, workloads()[1].key]
    path = tmp_path / "figures.json"
    arguments = ["--device", "cpu", "--scale", "64", "--repeats", "2", "--only", *keys, "--out", str(path)]
    assert bench.main(arguments) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert len(figures["workloads"]) == 2 and figures["left_out"] == []
    for entry in figures["workloads"]:
        assert all("median" in found for found in entry["contenders"].values()), entry["contenders"]
        assert entry["best"].startswith("toykern") and entry["ratio"] > 0 and entry["roof_share"] > 0
    assert "toykern groups" in figures["workloads"][1]["contenders"]
    shown = capsys.readouterr().out
    assert shown.startswith("Milliseconds of a step on cpu.") and "2.5×" in shown
    assert bench.main([*arguments, "--budget", "0"]) == 1
    assert json.loads(path.read_text(encoding="utf-8"))["left_out"]


def test_a_contender_that_fails_says_why(monkeypatch):
    build = bench.build

    def broken(name, workload, device):
        if name == "masked":
            raise RuntimeError("no room")
        return build(name, workload, device)

    monkeypatch.setattr(bench, "build", broken)
    entry = bench.measure(TINY[0], "cpu", 1, {"flops": 1e9, "bandwidth": 1e9})
    assert entry["contenders"]["masked"] == {"failed": "RuntimeError: no room"}
    assert "ratio" not in entry and "median" in entry["contenders"]["dense"]
