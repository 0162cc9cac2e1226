"""The layer's bench on a GPU, tried on the CPU: contenders do the same work, figures are complete."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bench.gpu import layer
from bench.gpu.layer_contenders import OURS, PEERS, contender, plain_loss, why_absent
from bench.gpu.layer_workloads import GPU_LAYER_WORKLOADS, GpuLayerWorkload

TINY = GpuLayerWorkload("tiny", 2, 30, 6, 40, 0.9, required_ratio=2)
SAE = GpuLayerWorkload("sae", 1, 12, 40, 30, None, top_k=5)


@pytest.mark.parametrize("workload", [TINY, SAE], ids=lambda workload: workload.key)
def test_contenders_find_the_same_gradients(workload):
    model, _ = workload.model("cpu")
    x = workload.batch(0, "cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.testing.assert_close(plain_loss(workload, model)(x), model.loss(x))
    found = {}
    for name in (*OURS, "eager"):
        if why_absent(name, workload, "cpu") is None:
            contender(name, workload, model, x)()
            found[name] = [parameter.grad.clone() for parameter in model.parameters()]
    assert {"toykern", "eager"} <= set(found)
    for gradients in found.values():
        for gradient, expected in zip(gradients, found["eager"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_entry_is_complete_and_makes_a_row():
    found = layer.entry(TINY, 2, "cpu", {"float32": 1e9})
    assert {"toykern", "toykern, entries", "eager", "compile"} <= set(found["milliseconds"])
    assert found["ours"] in OURS
    assert found["peer"] in PEERS
    assert found["ratio"] == found["milliseconds"][found["peer"]] / found["milliseconds"][found["ours"]]
    assert found["matrix_share"] > 0
    assert all(set(c) & {"samples", "absent", "failed"} for c in found["contenders"].values())
    assert layer.row(found).count("|") == layer.HEADER.splitlines()[0].count("|")


def test_what_fails_says_why(monkeypatch):
    def broken(*args):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(layer, "contender", broken)
    found = layer.entry(TINY, 1, "cpu", {})
    assert "no such thing" in found["contenders"]["toykern"]["failed"]
    assert "failed" in layer.row(found)


def test_training_stops_when_few_outputs_are_active():
    workload = GpuLayerWorkload("trained", 1, 100, 20, 256, 0.998, trained=True)
    _, share = workload.model("cpu")
    assert share <= 0.03  # of another batch than the one that training looks at


def test_products_are_counted_by_hand():
    each = 2 * 2 * 40 * 30 * 6
    assert layer.products(TINY, "toykern") == 5 * each
    assert layer.products(TINY, "toykern, entries") == 3 * each
    assert layer.products(replace(SAE), "toykern, captured") == 5 * 2 * 12 * 40 * 30


def test_the_workloads_that_were_asked_for_are_there():
    asked = {w.key: (w.n_models, w.n_features, w.n_hidden, w.batch_size) for w in GPU_LAYER_WORKLOADS}
    assert asked["stacked"] == (10_000, 5, 2, 128)
    assert asked["wide"] == asked["wide-trained"] == (1, 65_536, 1024, 8192)
    assert asked["million"] == (1, 1_048_576, 512, 4096)


@pytest.mark.slow
def test_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(layer, "GPU_LAYER_WORKLOADS", (TINY, replace(TINY, key="other")))
    monkeypatch.setattr(layer, "PEERS", ("eager",))
    path = tmp_path / "figures.json"
    assert layer.main(["--device", "cpu", "--repeats", "1", "--out", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["key"] for entry in figures["workloads"]] == ["tiny", "other"]
    assert all(entry["ratio"] > 0 and entry["matrix_share"] > 0 for entry in figures["workloads"])
    assert layer.row(figures["workloads"][-1]) in capsys.readouterr().out.splitlines()
    assert figures["load"]["seconds"] > 0
    assert layer.main(["--device", "cpu", "--budget", "-1", "--out", str(path)]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="'cuda'"):
        layer.main([])
