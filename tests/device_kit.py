"""Runs the CUDA kernels' own source on the host, lanes in lock step (csrc/cuda/warp.h)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

import toykern as tk
from toykern import _native
from toykern.arguments.broadcast import broadcast_seed
from toykern.native.device_launch import DeviceLaunch
from toykern.training import kernels as resident

REGIMES = ("tiny", "small", "large", "gram")
CPU = torch.device("cpu")


class HostLaunch(DeviceLaunch):
    """A launch whose kernels are the device's source on the host.

    `regime` forces a training loop; `descending` runs lanes, threads and blocks from the last to the first;
    `room_for` is the number of models that fit into the workspace at a time (None: as many as on a device).
    """

    def __init__(
        self,
        data: Any,
        n_models: int,
        *,
        regime: str | None = None,
        descending: bool = False,
        room_for: int | None = None,
    ) -> None:
        super().__init__(data, n_models, CPU, "testing")
        self._launch.regime = -1 if regime is None else REGIMES.index(regime)
        self._descending, self._room_for = descending, room_for

    def _call(self, kernel: str, params: Any) -> None:
        if self._room_for is not None:
            params.n_models, n_models = self._room_for, params.n_models
            self._launch.workspace_bytes = _native.cuda.train_workspace(params, self._launch)
            params.n_models = n_models
        getattr(_native.device_source_on_host, kernel)(params, self._launch, self._descending)

    @contextmanager
    def _ready(self, workspace_bytes: Any) -> Iterator[None]:
        yield

    @contextmanager
    def _explained(self, needed: int) -> Iterator[None]:
        yield


@contextmanager
def device_source(
    regime: str | None = None, descending: bool = False, room_for: int | None = None
) -> Iterator[None]:
    """`tk.fit` and `tk.evaluate` of models on the CPU by the device's source, within."""

    def launch(model: Any, data: Any, action: str) -> HostLaunch:
        return HostLaunch(data, model.n_models, regime=regime, descending=descending, room_for=room_for)

    with mock.patch.object(resident, "device_launch", launch):
        yield


def device_regime(model: Any, batch_size: int) -> str:
    """Which loop a device picks for the model's shape."""
    return _native.cuda.regime(resident.network_params(model.network), batch_size)


def sample_on_host(
    data: tk.SparseFeatures, step: int, batch_size: int, seed: Any, *, n_models: int = 1, clean: bool = False,
    descending: bool = False, purpose: int = 0,
) -> torch.Tensor:  # fmt: skip
    """`data.sample(…)` by the device's source."""
    launch = HostLaunch(data, n_models, descending=descending)
    seeds = broadcast_seed("seed", seed, n_models)
    x = torch.full((n_models, batch_size, data.n_features), torch.nan)
    p = _native.SampleParams()
    p.data, p.n_models, p.batch_size, p.step, p.purpose = (
        launch.distribution,
        n_models,
        batch_size,
        step,
        purpose,
    )
    p.seed, p.seed_stride = seeds.data_ptr(), 1
    setattr(p, "noisy" if data.noise > 0 and not clean else "clean", x.data_ptr())
    launch.sample(p)
    return x
