"""What the CUDA kernels need beside their parameters: the stream's tables, scratch memory, a stream.

`toykern.training.kernels` and `SparseFeatures.sample` are the users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from toykern import _native
from toykern.native.address import address, address_of_array
from toykern.native.devices import explained_out_of_memory, shared_limit
from toykern.native.threads import kernel_threads


class DeviceLaunch:
    """Calls kernels on one device with the batches of one distribution.

    The stream's per-model tables are made on the host, by the CPU's own set-up, and copied over once; so both
    backends draw from the same numbers. Memory comes from torch's allocator; work goes to torch's current
    stream of the device.

    Args:
        data: the `SparseFeatures`.
        n_models: number of models.
        device: a CUDA device with an index.
        action: what is done, for the message when memory runs out, as in "training".
    """

    def __init__(self, data: Any, n_models: int, device: torch.device, action: str) -> None:
        self.device = device
        self._n_models, self._action = n_models, action
        data.refuse_dependence(f"{action} on a CUDA device, which has no kernels for it yet; use the CPU")
        native = data.native()
        layout = _native.tables_layout(native)
        rows = n_models if data.probability.shape[0] > 1 else 1
        tables = torch.empty(rows * layout.bytes, dtype=torch.uint8, device="cpu")
        self._launch = _native.Launch()
        self._launch.mixed = _native.fill_tables(
            native, layout, rows, address("tables", tables, torch.uint8), kernel_threads()
        )
        self._launch.layout = layout
        self._launch.tables_stride = layout.bytes if rows > 1 else 0
        self._launch.device = device.index or 0
        self._launch.shared_limit = shared_limit(device)
        units = [torch.from_numpy(np.ascontiguousarray(a)) for a in data.unit_arrays()]
        self._kept = [data, *self.moved([tables, *units])]
        there, start, member, kind = self._kept[1:]
        self._launch.tables = self._at("tables", there, torch.uint8)
        native.unit_start = self._at("units", start, torch.int64)
        native.unit_member = self._at("units", member, torch.uint32)
        native.unit_kind = self._at("units", kind, torch.uint8)
        native.probability = 0
        self.distribution = native
        self._workspace: torch.Tensor | None = None

    def moved(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors on the device, contiguous."""
        found = list(tensors)
        needed = sum(t.numel() * t.element_size() for t in found)
        with self._explained(needed):
            return [t.to(self.device).contiguous() for t in found]

    def train(self, params: Any, factors: np.ndarray) -> None:
        """Train the stretch of `params`; `factors` `[steps]` multiply the learning rate. Waits."""
        scales = np.empty((len(factors), 3), dtype=np.float64)
        params.lr_factor = address_of_array("factors", factors, np.float64)
        _native.step_scales(params, address_of_array("scales", scales, np.float64))
        scales_there = self.moved([torch.from_numpy(scales)])[0]
        params.lr_factor = 0
        self._launch.step_scale = self._at("scales", scales_there, torch.float64)
        with self._ready(lambda: _native.cuda.train_workspace(params, self._launch)):
            self._call("train", params)

    def evaluate(self, params: Any) -> None:
        """Evaluate as `params` says. Waits."""
        with self._ready(lambda: _native.cuda.evaluate_workspace(params, self._launch)):
            self._call("evaluate", params)

    def sample(self, params: Any) -> None:
        """Draw as `params` says. Waits."""
        with self._ready(lambda: 0):
            self._call("sample", params)

    def draw(self, params: Any) -> None:
        """The same behind what torch's current stream has to do; does not wait, and allocates nothing."""
        self._launch.workspace, self._launch.workspace_bytes = 0, 0
        self._launch.stream = torch.cuda.current_stream(self.device).cuda_stream
        self._call("sample", params)

    def _at(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> int:
        return address(name, tensor, dtype, self.device)

    def _call(self, kernel: str, params: Any) -> None:
        getattr(_native.cuda, kernel)(params, self._launch)

    @contextmanager
    def _ready(self, workspace_bytes: Any) -> Iterator[None]:
        """The launch has its stream and its workspace; afterwards the work is done, or its error raised."""
        needed = int(workspace_bytes())
        stream = torch.cuda.current_stream(self.device)
        if needed and (self._workspace is None or self._workspace.numel() < needed):
            self._workspace = None
            with self._explained(needed):
                self._workspace = torch.empty(needed, dtype=torch.uint8, device=self.device)
        self._launch.workspace = 0
        if self._workspace is not None:
            self._launch.workspace = self._at("workspace", self._workspace, torch.uint8)
        self._launch.workspace_bytes = needed
        self._launch.stream = stream.cuda_stream
        with self._explained(needed):
            yield
            _native.cuda_synchronize(self.device.index, stream.cuda_stream, f"{self._action} on the GPU")

    @contextmanager
    def _explained(self, needed: int) -> Iterator[None]:
        with explained_out_of_memory(self.device, needed, self._n_models, self._action):
            yield
