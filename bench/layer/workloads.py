"""What the layer is timed on: forward + loss + backward of one batch, and the speed-up asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toykern.nn import TiedAutoencoder

ACTIVE_WHEN_TRAINED = 0.02  # "trained": at most this share of outputs is active
_MOST_STEPS = 4000


@dataclass(frozen=True)
class LayerWorkload:
    """A stack of tied autoencoders and a batch of sparse features for each.

    Attributes:
        n_models, n_features, n_hidden, batch_size, sparsity: as in `bench.workloads.Workload`.
        trained: weights trained with a fixed seed until at most 2% of outputs are active, not initial ones.
        required_ratio: how many times faster than the best of eager and torch.compile it is asked to be on
            two AVX-512 cores; 1 where it only must not be slower.
    """

    n_models: int
    n_features: int
    n_hidden: int
    batch_size: int
    sparsity: float
    required_ratio: float = 1.0
    trained: bool = False

    @property
    def name(self) -> str:
        models = f"{self.n_models} models, " if self.n_models > 1 else ""
        state = ", trained" if self.trained else ""
        shape = f"{self.n_features} → {self.n_hidden}, batch {self.batch_size}"
        return f"{models}{shape}, S = {self.sparsity:g}{state}"

    @property
    def key(self) -> str:
        sizes = (self.n_models, self.n_features, self.n_hidden, self.batch_size)
        return "-".join(map(str, sizes)) + f"-{self.sparsity:g}" + ("-trained" if self.trained else "")

    def batch(self, seed: int) -> torch.Tensor:
        """Features active with probability 1 − S, uniform on [0, 1]: `[models, batch, n_features]`."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(self.n_models, self.batch_size, self.n_features, generator=generator)
        # in place: the largest batches are gigabytes
        return x.sub_(self.sparsity).clamp_(min=0).div_(max(1 - self.sparsity, 1e-12)) if self.sparsity else x

    def model(self) -> tuple[TiedAutoencoder, float]:
        """The stack, and the share of its outputs that is active on a fresh batch."""
        model = TiedAutoencoder(self.n_features, self.n_hidden, self.n_models, seed=0)
        if self.trained:
            _train(model, self)
        return model, active_share(model, self.batch(seed=0))


def _train(model: TiedAutoencoder, workload: LayerWorkload) -> None:
    """Adam on fresh batches until few enough outputs are active; RuntimeError if that does not come."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(_MOST_STEPS):
        if step % 20 == 0 and active_share(model, workload.batch(seed=0)) <= ACTIVE_WHEN_TRAINED:
            return
        optimizer.zero_grad()
        model.loss(workload.batch(seed=1 + step), loss_reduction="sum").sum().backward()
        optimizer.step()
    raise RuntimeError(f"more than {ACTIVE_WHEN_TRAINED:.0%} of outputs active after {_MOST_STEPS} steps")


@torch.no_grad()
def active_share(model: TiedAutoencoder, x: torch.Tensor) -> float:
    """The share of outputs above 0, a slice of samples at a time."""
    active = sum(int((model(part) > 0).sum()) for part in x.split(128, dim=1))
    return active / x.numel()


LAYER_WORKLOADS = (
    LayerWorkload(10_000, 5, 2, 128, 0.99, required_ratio=20),
    LayerWorkload(1000, 20, 5, 1024, 0.99),
    LayerWorkload(8, 200, 20, 1024, 0.999),
    LayerWorkload(64, 5, 2, 1024, 0.0),
    LayerWorkload(1, 1024, 64, 1024, 0.99, required_ratio=1.6),
    LayerWorkload(1, 1024, 64, 1024, 0.99, required_ratio=3, trained=True),
    LayerWorkload(1, 1024, 64, 1024, 0.0),
    LayerWorkload(1, 16_384, 256, 1024, 0.999, required_ratio=1.5),
    LayerWorkload(1, 16_384, 256, 1024, 0.999, required_ratio=4, trained=True),
)
