"""Forward + loss + backward of one batch, as the layer is timed on a GPU, and what is asked of an H200."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from toykern.nn import Autoencoder, TiedAutoencoder
from toykern.nn.stacked import StackedModel

ACTIVE_WHEN_TRAINED = 0.02
_MOST_STEPS = 2000


@dataclass(frozen=True)
class GpuLayerWorkload:
    """A stack of autoencoders and one batch.

    Attributes:
        key: for files and options.
        n_models, n_features, n_hidden, batch_size: the shape.
        sparsity: a feature is 0 with this probability, else uniform on [0, 1]; None: normally distributed,
            as a sparse autoencoder sees activations.
        dtype: "float32" or "bfloat16", of weights and batch.
        trained: weights trained until at most 2% of outputs are active, not initial ones.
        top_k: of an untied sparse autoencoder with centred input; 0: the tied ReLU network.
        required_ratio: how many times faster than the better of eager and torch.compile it must be, or None.
    """

    key: str
    n_models: int
    n_features: int
    n_hidden: int
    batch_size: int
    sparsity: float | None
    dtype: str = "float32"
    trained: bool = False
    top_k: int = 0
    required_ratio: float | None = None

    @property
    def name(self) -> str:
        """For people."""
        models = f"{self.n_models:,} models, " if self.n_models > 1 else ""
        shape = f"{models}{self.n_features:,} → {self.n_hidden:,}, batch {self.batch_size}"
        kind = f", top-{self.top_k} sparse autoencoder" if self.top_k else f", S = {self.sparsity:g}"
        return f"{shape}{kind}, {self.dtype}{', trained' if self.trained else ''}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def batch(self, seed: int, device: str) -> torch.Tensor:
        """`[models, batch, n_features]`, made in float32 a slice of samples at a time."""
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.empty(
            self.n_models, self.batch_size, self.n_features, dtype=self.torch_dtype, device=device
        )
        for part in x.split(512, dim=1):
            if self.sparsity is None:
                part.copy_(torch.randn(part.shape, generator=generator, device=device))
                continue
            drawn = torch.rand(part.shape, generator=generator, device=device)
            part.copy_(drawn.sub_(self.sparsity).clamp_(min=0).div_(max(1 - self.sparsity, 1e-12)))
        return x

    def model(self, device: str) -> tuple[StackedModel, float]:
        """The stack, and the share of its outputs that is active on a fresh batch."""
        if self.top_k:
            network = {"hidden_activation": "topk", "top_k": self.top_k, "output_activation": "none"}
            kind: type[StackedModel] = Autoencoder
            options = network | {"centered": True, "hidden_bias": True}
        else:
            kind, options = TiedAutoencoder, {}
        torch.manual_seed(0)
        model = kind(1, max(1, self.top_k), self.n_models, **options).to(device)  # weights are drawn there
        model.n_features, model.n_hidden = self.n_features, self.n_hidden
        for name in [name for name, _ in model.named_parameters()]:
            sizes = {
                "weight": (self.n_hidden, self.n_features), "encoder": (self.n_hidden, self.n_features),
                "decoder": (self.n_features, self.n_hidden), "bias": (self.n_features,),
                "hidden_bias": (self.n_hidden,),
            }  # fmt: skip
            deviation = 0.0 if "bias" in name else (2 / (self.n_features + self.n_hidden)) ** 0.5
            value = torch.randn(self.n_models, *sizes[name], device=device).mul_(deviation)
            setattr(model, name, torch.nn.Parameter(value.to(self.torch_dtype)))
        if self.trained:
            self._train(model, device)
        return model, active_share(model, self.batch(0, device))

    def _train(self, model: StackedModel, device: str) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(_MOST_STEPS):
            if (
                step % 20 == 0
                and active_share(model, replace(self, batch_size=256).batch(0, device)) <= ACTIVE_WHEN_TRAINED
            ):
                return
            optimizer.zero_grad()
            x = replace(self, batch_size=min(self.batch_size, 1024)).batch(1 + step, device)
            model.loss(x, loss_reduction="sum").sum().backward()
            optimizer.step()
        raise RuntimeError(f"more than {ACTIVE_WHEN_TRAINED:.0%} of outputs active after {_MOST_STEPS} steps")


@torch.no_grad()
def active_share(model: StackedModel, x: torch.Tensor) -> float:
    """The share of outputs above 0, a slice of samples at a time."""
    active = sum(int((model(part) > 0).sum()) for part in x.split(256, dim=1))
    return active / x.numel()


GPU_LAYER_WORKLOADS = (
    GpuLayerWorkload("stacked", 10_000, 5, 2, 128, 0.99, required_ratio=20),
    GpuLayerWorkload("wide", 1, 65_536, 1024, 8192, 0.999, "bfloat16", required_ratio=1.4),
    GpuLayerWorkload("wide-trained", 1, 65_536, 1024, 8192, 0.999, "bfloat16", True, required_ratio=2.3),
    GpuLayerWorkload("middle", 1, 1024, 64, 1024, 0.99),
    GpuLayerWorkload("million", 1, 1_048_576, 512, 4096, 0.999),
    GpuLayerWorkload("sae", 1, 768, 24_576, 4096, None, "bfloat16", top_k=32),
)
