"""The layer and its peers on a device: one call does forward, loss and backward and leaves the gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

import toykern as tk
from bench.gpu.layer_workloads import GpuLayerWorkload

Step = Callable[[], None]
OURS = ("toykern", "toykern, entries", "toykern, captured")
PEERS = ("eager", "compile", "compile, graphs")
PUBLIC = ("sparsify",)


def plain_loss(workload: GpuLayerWorkload, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss as an expert writes it in PyTorch."""
    if not workload.top_k:
        weight, bias = model.weight, model.bias

        def tied(x: torch.Tensor) -> torch.Tensor:
            out = torch.baddbmm(bias.unsqueeze(1), torch.matmul(x, weight.mT), weight).relu()
            return (x - out).square().mean(dim=(1, 2), dtype=torch.float32)

        return tied
    encoder, decoder, bias, hidden_bias = model.encoder, model.decoder, model.bias, model.hidden_bias

    def sparse_autoencoder(x: torch.Tensor) -> torch.Tensor:
        codes = torch.baddbmm(hidden_bias.unsqueeze(1), x - bias.unsqueeze(1), encoder.mT)
        kept = codes.topk(workload.top_k, dim=2, sorted=False)
        codes = torch.zeros_like(codes).scatter(2, kept.indices, kept.values)
        out = torch.baddbmm(bias.unsqueeze(1), codes, decoder.mT)
        return (x - out).square().mean(dim=(1, 2), dtype=torch.float32)

    return sparse_autoencoder


def why_absent(name: str, workload: GpuLayerWorkload, device: str) -> str | None:
    """Why a contender takes no part in a workload, or None."""
    if name == "toykern, entries" and workload.sparsity is None:
        return "the input is dense"
    if name in ("toykern, captured", "compile, graphs") and device == "cpu":
        return "needs CUDA"
    if name == "sparsify":
        if not workload.top_k:
            return "is a top-k sparse autoencoder"
        if importlib.util.find_spec("sparsify") is None:
            return "eai-sparsify is not installed"
    return None


def contender(name: str, workload: GpuLayerWorkload, model: Any, x: torch.Tensor) -> Step:
    """A contender on one model and one batch."""
    parameters = list(model.parameters())

    def step(loss: Callable[[], torch.Tensor]) -> Step:
        def run() -> None:
            for parameter in parameters:
                parameter.grad = None
            loss().sum().backward()

        return run

    if name == "toykern":
        return step(lambda: model.loss(x))
    if name == "toykern, entries":
        entries = tk.SparseBatch.from_dense(x)
        return step(lambda: model.loss(entries))
    if name == "toykern, captured":
        given = x if workload.sparsity is None else tk.SparseBatch.from_dense(x)
        return _captured(step(lambda: model.loss(given)))
    if name == "sparsify":
        return _sparsify(workload, x)
    plain = plain_loss(workload, model)
    if name == "eager":
        return step(lambda: plain(x))
    mode = "reduce-overhead" if name == "compile, graphs" else None
    compiled = torch.compile(plain, dynamic=False, mode=mode)
    return step(lambda: compiled(x))


def _captured(run: Step) -> Step:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _sparsify(workload: GpuLayerWorkload, x: torch.Tensor) -> Step:
    """EleutherAI's sparsify: a fused encoder and a Triton decoder; its loss is the unexplained variance."""
    from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]

    config = SparseCoderConfig(num_latents=workload.n_hidden, k=workload.top_k)
    coder = SparseCoder(workload.n_features, config, device=x.device, dtype=x.dtype)
    batch = x[0]

    def run() -> None:
        coder.zero_grad(set_to_none=True)
        coder(batch).fvu.backward()

    return run
