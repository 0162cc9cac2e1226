"""What the steps of a training see, as tensors on the device where the models are.

A stream of single features and groups is drawn on a CUDA device by the kernels of the data stream. What they
do not draw (`active`, `dependence`), and which rows of a dataset a minibatch has, is made on the CPU and
moved, several steps at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toykern import _native
from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures
from toykern.data.sources import Source
from toykern.native.address import address
from toykern.native.device_launch import DeviceLaunch
from toykern.native.numbers import number
from toykern.network.losses import EMBEDDED, TARGETS
from toykern.network.specification import NetworkSpec
from toykern.nn.two_layer import Tensors, embedded, one_hot


@dataclass(frozen=True)
class Batch:
    """The samples of one step.

    Attributes:
        x: float32 `[models or 1, batch, n_features]`.
        wanted: the target, float32 `[models or 1, batch, n_outputs]`.
        present: bool `[models, batch]`, which samples there are; None: all of them.
    """

    x: torch.Tensor
    wanted: torch.Tensor
    present: torch.Tensor | None = None


class Batches:
    """The batches of every step for a stack of models; on the CPU too, where tests ask for it.

    Args:
        data: a stream or a dataset that fits the network (`check_target_of`).
        network: what each model is, and what it is trained for.
        n_models: how many models there are.
        seed: int64 CPU `[models]`.
        batch_size: samples; None is all of a dataset.
        fixed: the network's fixed tensors by name, on the device.
        device: where batches are wanted.
        purpose: "training" or "evaluation".
    """

    def __init__(
        self,
        data: Source,
        network: NetworkSpec,
        *,
        n_models: int,
        seed: torch.Tensor,
        batch_size: int | None,
        fixed: Tensors,
        device: torch.device,
        purpose: str = "training",
    ) -> None:
        self._data, self._network, self._fixed = data, network, fixed
        self._n_models, self._seed, self._batch_size = n_models, seed, batch_size
        self._device, self._purpose = device, purpose
        self._made: list[torch.Tensor] = []
        self._first = 0
        self._whole: Batch | None = None
        self._matrix: torch.Tensor | None = None
        self._launch: DeviceLaunch | None = None
        if isinstance(data, Dataset):
            self._hold(data)
        else:
            self._open(data)

    @property
    def bytes_per_step(self) -> int:
        """Of what is made on the CPU for each step."""
        if isinstance(self._data, Dataset):
            return 0 if self._batch_size is None else 8 * self._n_models * self._batch_size
        drawn = 0 if self._launch is not None else len(self._kinds)
        return 4 * drawn * self._n_models * self._samples * self._data.n_features

    @property
    def samples(self) -> int:
        """Of each batch, those that a model does not have among them."""
        return self._samples

    def prepare(self, first: int, steps: int) -> None:
        """Make what `batch` needs of the steps first … first + steps − 1 that the CPU makes, and move it."""
        self._first = first
        if not self.bytes_per_step:
            return
        of_steps = range(first, first + steps)
        if isinstance(self._data, Dataset):
            rows = [
                self._data.rows_of(step, self._batch_size, self._seed, self._n_models) for step in of_steps
            ]
            self._made = [torch.stack(rows).to(self._device)]
        else:
            drawn = [
                torch.stack([self._sampled(self._data, step, clean) for step in of_steps])
                for clean in self._kinds
            ]
            self._made = [x.to(self._device) for x in drawn]

    def batch(self, step: int) -> Batch:
        """That of a step; `prepare` has been called for it."""
        if isinstance(self._data, Dataset):
            if self._whole is None:
                return self._chosen(self._made[0][step - self._first])
            return self._whole
        if self._launch is None:
            drawn = [x[step - self._first] for x in self._made]
        else:
            drawn = [self._drawn(self._launch, step, clean) for clean in self._kinds]
        return Batch(drawn[0], self._wanted(drawn[-1]))

    # A stream

    def _open(self, data: SparseFeatures) -> None:
        assert self._batch_size is not None
        self._samples = self._batch_size
        # Whether noise is left out of what is drawn: of the inputs; and of the targets, where that differs.
        self._kinds = (False, True) if data.noise > 0 else (True,)
        if data.projection is not None:
            self._matrix = own(data.projection.matrix, self._device)
        if self._device.type != "cuda" or not data.drawn_on_devices:
            return
        self._launch = DeviceLaunch(data, self._n_models, self._device, f"drawing for {self._purpose} of")
        (self._seed_there,) = self._launch.moved([self._seed])
        params = _native.SampleParams()
        params.data = self._launch.distribution
        params.n_models, params.batch_size = self._n_models, self._samples
        params.seed, params.seed_stride = address("seed", self._seed_there, torch.int64, self._device), 1
        params.purpose = number("purpose", self._purpose)
        self._params = params

    def _sampled(self, data: SparseFeatures, step: int, clean: bool) -> torch.Tensor:
        """On the CPU, float32 `[models, batch, n_features]`."""
        x: torch.Tensor = data.sample(
            step, self._samples, self._seed, n_models=self._n_models, clean=clean, purpose=self._purpose
        )
        return x

    def _drawn(self, launch: DeviceLaunch, step: int, clean: bool) -> torch.Tensor:
        """On the device, without waiting for it."""
        shape = (self._n_models, self._samples, self._data.n_features)
        x = torch.empty(shape, dtype=torch.float32, device=self._device)
        found = address("x", x, torch.float32, self._device)
        self._params.step = step
        self._params.clean, self._params.noisy = (found, 0) if clean else (0, found)
        launch.draw(self._params)
        return x

    def _wanted(self, origin: torch.Tensor) -> torch.Tensor:
        """The target of inputs without noise."""
        if self._network.target == EMBEDDED:
            return embedded(origin, self._fixed)
        made = TARGETS[self._network.target](origin)
        return made if self._matrix is None else made @ self._matrix.mT

    # A dataset

    def _hold(self, data: Dataset) -> None:
        self._samples = data.rows if self._batch_size is None else self._batch_size
        dense = data.input if data.entries is None else data.entries.to_dense()
        assert dense is not None
        self._input = own(dense, self._device)
        self._target = None if data.target is None else own(data.target, self._device)
        self._label = None if data.label is None else own(data.label, self._device).long()
        if self._batch_size is not None:
            return
        if data.samples is None:
            self._whole = Batch(self._input, self._target_of(self._input, self._target, self._label))
            return
        rows = data.rows_of(0, None, self._seed, self._n_models).to(self._device)
        # In place of rows that a model does not have stands its first, which is one that it has.
        whole = self._chosen(rows.clamp(min=0))
        self._whole = Batch(whole.x, whole.wanted, rows >= 0)

    def _chosen(self, rows: torch.Tensor) -> Batch:
        """The samples at rows `[models, batch]`."""
        x = _at(self._input, rows)
        target = None if self._target is None else _at(self._target, rows)
        label = None if self._label is None else _at(self._label, rows)
        return Batch(x, self._target_of(x, target, label))

    def _target_of(
        self, x: torch.Tensor, target: torch.Tensor | None, label: torch.Tensor | None
    ) -> torch.Tensor:
        if label is not None:
            return one_hot(label, self._network.n_outputs, torch.float32)
        return self._wanted(x if target is None else target)


def own(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; a copy where it was made in inference mode: autograd takes none such."""
    there = tensor.to(device)
    return there.clone() if there.is_inference() else there


def _at(held: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """held `[models or 1, T, …]` at rows `[models, batch]`."""
    if len(held) == 1:
        return held[0][rows]
    model = torch.arange(len(rows), dtype=torch.int64, device=rows.device)[:, None]
    return held[model, rows]
