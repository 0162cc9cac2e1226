"""What modules with sparse weights share: values at the connections of a topology, and how both change.

The file is long because the class keeps one promise in many places: whatever replaces a topology (a recipe,
a state that is loaded, a copy) leaves values, index buffers and captured gradients in step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from toykern.arguments.errors import check_choice, check_flag, describe
from toykern.native.address import storage_address
from toykern.nn.factory import factory_dtype
from toykern.nn.unfused import unfused_weight
from toykern.ops.sparse_backends import BACKENDS
from toykern.ops.sparse_index import SparseIndex, check_index
from toykern.ops.sparse_linear_schema import GradientCapture
from toykern.ops.sparse_topology import move, on_cpu
from toykern.sparse.groups import reduced
from toykern.sparse.layer import NoBackwardPass
from toykern.sparse.topology import Topology

GRADIENT_TILE_BYTES = 8 << 20
"""How much of a dense gradient is formed at a time on the CPU: still in the cache when it is looked at."""

_INDEX_BUFFERS = ("row_start", "column", "column_start", "row", "slot")


class _Parametrizations(nn.ModuleDict):
    """What torch.nn.utils.parametrize keeps in a module, by the parameter's name, which here may be "values".

    nn.ModuleDict refuses that name, as it has a method of it. Here it is what was registered, so that paths
    such as "parametrizations.values.original" lead to it.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As ever, but that "values" is a name too."""
        if name == "values" and module is not None:
            self._modules[name] = module
        else:
            super().add_module(name, module)

    @property
    def values(self) -> Any:
        """What was registered for "values"; as in a dictionary where nothing was."""
        found = self._modules.get("values")
        return self._modules.values if found is None else found


class SparseWeights(nn.Module):
    """Base of modules with a stack of sparse matrices `[out_features, in_features]`.

    Attributes:
        in_features, out_features, n_models: the shape.
        values: Parameter `[n_models · capacity]`, one for each slot; 0 in the slack, and so is its gradient.
            The object stays the same whatever happens to the topology.
        topology: which connection each slot is (`toykern.sparse.Topology`).
        group: that many neighbouring outputs share their inputs (1: each has its own).
        backend: how products are computed on a GPU: "dense", "slots", "groups" (with a group) or "auto", the
            fastest by a measurement (docs/sparse_layers.md). Plain attribute, can be set; not in the
            state_dict. On the CPU there is one way.

    Buffers: `shape` int64 `[3]` (n_models, out_features, in_features), `row_start` and `column` (the
    topology's) go into the state_dict. The index by column (`column_start`, `row`, `slot`:
    `toykern.ops.sparse_index.SparseIndex`) is made from them. Change the topology by `set_topology` or
    `load_state_dict` only: the kernels see an index that leads outside, but not one that is stale.
    """

    values: nn.Parameter
    shape: torch.Tensor
    row_start: torch.Tensor
    column: torch.Tensor
    column_start: torch.Tensor
    row: torch.Tensor
    slot: torch.Tensor

    def __init__(self, topology: Topology, dtype: torch.dtype | None, device: Any, group: int = 1) -> None:
        super().__init__()
        self.group, self._width, self._backend = group, 0, "auto"
        dtype = factory_dtype(dtype)
        self.in_features, self.out_features = topology.in_features, topology.out_features
        self.n_models = topology.n_models
        slots = topology.column.shape[0]
        self.values = nn.Parameter(torch.zeros(slots, dtype=dtype, device=device))
        shape = torch.tensor(
            [self.n_models, self.out_features, self.in_features], dtype=torch.int64, device=device
        )
        self.register_buffer("shape", shape)
        self._topology: tuple[Topology, Any] | None = None
        self._capturing = False
        for name in _INDEX_BUFFERS:
            self.register_buffer(name, None, persistent=name in ("row_start", "column"))
        self._take_topology(topology, device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "parametrizations" and type(value) is nn.ModuleDict and not len(value):
            value = _Parametrizations()
        super().__setattr__(name, value)

    # --- how products are computed ------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """ "auto", "dense", "slots" or "groups"; see the class."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        check_choice("backend", name, ("auto", *BACKENDS))
        if name == "groups" and self.group == 1:
            raise ValueError(
                "backend='groups' needs outputs that share their inputs: make the layer with group=…"
            )
        self._backend = name

    # --- the topology -------------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """The connections, in memory of its own: it is never changed, only replaced."""
        if torch.is_inference(self.row_start) or torch.is_inference(self.column):
            return self._copied_topology()
        # Whoever writes to the buffers (load_state_dict, DDP from its first rank) moves their versions on.
        state = (self.row_start, self.row_start._version, self.column, self.column._version)
        if self._topology is None or not _same(self._topology[1], state):
            self._topology = (self._copied_topology(), state)
        return self._topology[0]

    def _copied_topology(self) -> Topology:
        row_start, column = self.row_start.clone(), self.column.clone()
        return Topology(self.in_features, self.out_features, row_start, column, check=False)

    @property
    def index(self) -> SparseIndex:
        """The connections as the ops take them."""
        return SparseIndex(
            self.in_features, self.row_start, self.column, self.column_start, self.row, self.slot
        )

    @torch.no_grad()
    def set_topology(self, topology: Topology, old_slot: torch.Tensor, grown: Any = 0.0) -> None:
        """Takes new connections; values (and their gradient, if there is one) stay with their connections.

        Args:
            topology: of the same shape and capacity.
            old_slot: int64 `[n_models · capacity]`, the slot each connection was in, −1 for a new one and in
                the slack: what `Topology.with_changes` returns.
            grown: the values that new connections begin with: a number, or `[n_models · capacity]`.

        `values` is changed in place. An optimiser's moments are the recipe's to move
        (`toykern.sparse`). ValueError where the arguments do not fit, RuntimeError where `values` is
        parametrised, and so no tensor that can be changed; then the module is left as it was.
        """
        if is_parametrized(self, "values"):
            raise RuntimeError(
                "values is parametrised, so it is computed, and cannot follow its connections: "
                'torch.nn.utils.parametrize.remove_parametrizations(layer, "values") before set_topology'
            )
        shape = (self.n_models, self.out_features, self.in_features, len(self.values))
        given = (topology.n_models, topology.out_features, topology.in_features, len(topology.column))
        if given != shape:
            raise ValueError(
                "topology must have the module's (n_models, out_features, in_features, slots), "
                f"{shape}, not {given}"
            )
        if self.group > 1:
            reduced(topology, self.group)  # ValueError unless its groups are the layer's
        if (
            not isinstance(old_slot, torch.Tensor)
            or old_slot.dtype != torch.int64
            or old_slot.shape != self.values.shape
        ):
            raise ValueError(
                f"old_slot must be an int64 tensor of shape {list(self.values.shape)}, "
                f"not {describe(old_slot)}"
            )
        old_slot = old_slot.to(self.values.device)
        start = torch.as_tensor(grown, dtype=self.values.dtype, device=self.values.device)
        if start.ndim and start.shape != self.values.shape:
            raise ValueError(
                f"grown must be a number or a tensor of shape {list(self.values.shape)}, "
                f"not {describe(grown)}"
            )
        if not on_cpu(old_slot) and bool(((old_slot < -1) | (old_slot >= len(old_slot))).any()):
            raise ValueError(f"old_slot must be from −1 to {len(old_slot) - 1}")
        # Whatever is wrong shows before anything is written: first the topology's arrays, then the slots.
        index = None
        if self._can_write_index(topology):
            check_index(self.in_features, topology.row_start, topology.column)
        else:
            index = self._index_of(topology, self.values.device)
        gradient = [] if self.values.grad is None else [self.values.grad]
        move([self.values, *gradient], old_slot)
        if index is None:
            self._write_index(topology)
        else:
            self._take_index(index)
        if bool((start != 0).any()):
            new = (old_slot < 0) & topology.occupied().to(self.values.device)
            self.values.copy_(torch.where(new, start, self.values))

    def to_dense(self) -> torch.Tensor:
        """The weights with their zeros, `[n_models, out_features, in_features]`; differentiable."""
        return self.topology.to_dense(self.values)

    def _unfused_weight(self) -> torch.Tensor:
        """The same by torch operations alone, which every transform of torch.func can follow."""
        return unfused_weight(self.values, self.row_start, self.column, self.in_features)

    def to_csr(self, model: int = 0) -> torch.Tensor:
        """One model's weights as a torch.sparse CSR tensor `[out_features, in_features]` (a copy)."""
        if not -self.n_models <= model < self.n_models:
            raise IndexError(f"model {model} is out of range for a stack of {self.n_models}")
        model %= self.n_models
        capacity = self.topology.capacity
        count = int(self.topology.n_connections[model])
        mine = slice(model * capacity, model * capacity + count)
        return torch.sparse_csr_tensor(
            self.row_start[model].clone(),
            self.column[mine].long(),
            self.values.detach()[mine].clone(),
            (self.out_features, self.in_features),
            device=self.values.device,
            check_invariants=False,  # a topology is checked when it is made
        )

    # --- what growth looks at -----------------------------------------------------------------------------

    def capture_gradient(self, enabled: bool = True) -> None:
        """Whether coming backward passes keep their inputs and output gradients; what was kept is let go.

        The methods below add up all passes since. Capturing costs no time, but holds on to the activations.
        """
        self._capturing = check_flag("enabled", enabled)
        for capture in self._captures():
            capture.clear()

    def dense_gradient(self) -> torch.Tensor:
        """∂loss/∂W of the captured passes at every place, `[n_models, out_features, in_features]`.

        float32 (float64 for float64 weights). RuntimeError if no pass was captured.
        """
        shape = (self.n_models, self.out_features, self.in_features)
        tiles = self.gradient_tiles()
        row, tile = next(tiles)
        rows = self.n_models * self.out_features
        if len(tile) == rows:
            return tile.reshape(shape)
        total = tile.new_empty(rows, self.in_features)
        total[: len(tile)] = tile
        for row, tile in tiles:
            total[row : row + len(tile)] = tile
        return total.reshape(shape)

    def gradient_tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The same in pieces: (first row, counted over the models; the rows from there on, `[rows, in]`).

        On the CPU a tile is whole rows of one model or whole models, of at most `GRADIENT_TILE_BYTES` (a row
        at least), as the shapes decide; its memory is taken back for the next. On a GPU all is one tile.
        """
        dtype = torch.float64 if self.values.dtype == torch.float64 else torch.float32
        captured, dense = self._captured()
        passes = [(x.to(dtype), dy.to(dtype)) for x, dy in captured]
        if dense or self.values.device.type != "cpu":
            yield 0, self._whole_gradient(passes, dense, dtype).reshape(-1, self.in_features)
            return
        at_once = max(1, GRADIENT_TILE_BYTES // (self.in_features * dtype.itemsize))
        models = max(1, at_once // self.out_features)
        rows = min(at_once, self.out_features)
        size = models * rows * self.in_features
        space = [torch.empty(size, dtype=dtype, device="cpu") for _ in passes[:2]]
        for model in range(0, self.n_models, models):
            mine = slice(model, min(model + models, self.n_models))
            for row in range(0, self.out_features, rows):
                shape = (mine.stop - model, min(rows, self.out_features - row), self.in_features)
                tile, *other = (part[: math.prod(shape)].view(shape) for part in space)
                for i, (x, dy) in enumerate(passes):
                    inputs = x.expand(self.n_models, -1, -1)[mine]
                    product = tile if i == 0 else other[0]
                    torch.bmm(dy[mine, :, row : row + shape[1]].mT, inputs, out=product)
                    if i:
                        tile.add_(product)
                yield model * self.out_features + row, tile.view(-1, self.in_features)

    def _whole_gradient(
        self,
        passes: list[tuple[torch.Tensor, torch.Tensor]],
        dense: list[torch.Tensor],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        total: torch.Tensor | None = None
        for x, dy in passes:
            product = torch.matmul(dy.mT, x)
            total = product if total is None else total.add_(product)
        for gradient in dense:
            total = gradient.to(dtype, copy=True) if total is None else total.add_(gradient)
        assert total is not None
        return total

    def captured_passes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(x `[n_models | 1, batch, in]`, dy `[n_models, batch, out]`) of every captured pass, whose dW
        is dyᵀ x. RuntimeError if none was, or if a GPU's back end kept the gradient in place of a pass."""
        passes, dense = self._captured()
        if dense:
            raise RuntimeError(
                'backend="dense" keeps the gradient of W and not its factors; set backend="slots" to see them'
            )
        return passes

    def gradient_at(self, model: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """The same at some places alone, each int64 `[n]`: `[n]`, without the rest being computed.

        float32 (float64 for float64 weights). ValueError for places outside, RuntimeError if no pass was
        captured.
        """
        passes, dense = self._captured()
        for name, part, limit in (
            ("model", model, self.n_models),
            ("row", row, self.out_features),
            ("column", column, self.in_features),
        ):
            if part.dtype != torch.int64 or part.ndim != 1 or part.shape != model.shape:
                raise ValueError(
                    f"{name} must be an int64 tensor of shape {list(model.shape)}, not {describe(part)}"
                )
            if len(part) and (int(part.min()) < 0 or int(part.max()) >= limit):
                raise ValueError(f"{name} must be from 0 to {limit - 1}")
        order = torch.argsort(model * self.out_features + row, stable=True)
        counts = torch.bincount(
            model * self.out_features + row, minlength=self.n_models * self.out_features
        ).reshape(self.n_models, self.out_features)
        start = torch.zeros(self.n_models, self.out_features + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(counts, dim=1, out=start[:, 1:])
        capacity = int(start[:, -1].max()) if len(row) else 0
        before = start[:, -1].cumsum(0) - start[:, -1]
        sorted_model = model[order]
        here = torch.arange(len(row), dtype=torch.int64, device=row.device)
        place = sorted_model * capacity + here - before[sorted_model]
        asked = torch.zeros(self.n_models * capacity, dtype=torch.int32, device=row.device)
        asked[place] = column[order].to(torch.int32)
        dtype = torch.float64 if self.values.dtype == torch.float64 else torch.float32
        total = torch.zeros(len(row), dtype=dtype, device=row.device)
        unused = torch.zeros(self.n_models, self.in_features + 1, dtype=torch.int64, device=row.device)
        for x, dy in passes:
            x, dy = x.to(dtype), dy.to(dtype)
            zeros = torch.zeros(len(asked), dtype=dtype, device=row.device)
            made = torch.ops.toykern.sparse_linear_backward(
                dy, x, zeros, None, start, asked, unused, asked, asked, False, [False, True, False], 0
            )[1]
            total[order] += made[place]
        for gradient in dense:
            total += gradient[model, row, column]
        return total

    def _captures(self) -> list[GradientCapture]:
        """The captures of this module's products."""
        raise NotImplementedError

    def _captured(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
        """(x, dy) of every captured pass, with dW = dyᵀ x, and the dW of those that computed it.

        RuntimeError if there is none of either.
        """
        passes = [entry for capture in self._captures() for entry in capture.passes]
        dense = [entry for capture in self._captures() for entry in capture.dense]
        if not passes and not dense:
            raise NoBackwardPass(
                "no backward pass was captured: call capture_gradient(True) before the forward pass whose "
                "gradient is wanted"
            )
        return passes, dense

    # --- loading and copying ------------------------------------------------------------------------------

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names: tuple[str, ...] = ("values", "row_start", "column", "shape")
        if is_parametrized(self, "values"):
            names = names[1:]  # torch loads what they are computed from, which has as many entries
        given = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if len(given) == len(names):
            misfit = self._misfit(given)
            problem = f"topology: {misfit}" if misfit else self._misfit_of_others(state_dict, prefix)
            if problem is not None:
                error_msgs.append(f"{prefix}{problem}")
                return
            device = self.values.device
            index = self._index_of(
                Topology(self.in_features, self.out_features, given["row_start"], given["column"]), device
            )
            if (
                "values" in given and given["values"].shape != self.values.shape
            ):  # another number of connections
                self.values.data = self.values.data.new_zeros(given["values"].shape)
                self.values.grad = None
            self._take_index(index)
        elif given:
            error_msgs.append(
                f"{prefix[:-1] or 'the layer'}: {', '.join(names[:-1])} and shape must be loaded together; "
                f"given are {', '.join(given)}"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _misfit(self, given: dict[str, torch.Tensor]) -> str | None:
        """Why a state cannot be loaded, or None."""
        shape = [self.n_models, self.out_features, self.in_features]
        if given["shape"].tolist() != shape:
            return f"its (n_models, out_features, in_features) is {given['shape'].tolist()}, not {shape}"
        try:
            topology = Topology(self.in_features, self.out_features, given["row_start"], given["column"])
            if self.group > 1:
                reduced(topology, self.group)
        except (TypeError, ValueError) as error:
            return str(error)
        values = given.get("values", self.values)
        if values.shape != topology.column.shape:
            return (
                f"values must have one entry for each slot, {list(topology.column.shape)}, "
                f"not {list(values.shape)}"
            )
        return None

    def _misfit_of_others(self, state_dict: Any, prefix: str) -> str | None:
        """Why what goes with the connections cannot be loaded (torch would see it too late), or None."""
        for name, parameter in self.named_parameters(recurse=False):
            given = state_dict.get(prefix + name)
            if name != "values" and given is not None and given.shape != parameter.shape:
                return f"{name} must have the shape {list(parameter.shape)}, not {list(given.shape)}"
        return None

    def _take_topology(self, topology: Topology, device: Any) -> None:
        self._take_index(self._index_of(topology, torch.device("cpu") if device is None else device))

    def _index_of(self, topology: Topology, device: Any) -> SparseIndex:
        # Where the layer is, if it can be made there: on a GPU topologies change without visiting the host.
        maker = device if torch.device(device).type == "cuda" else torch.device("cpu")
        row_start, column = topology.row_start.to(maker, copy=True), topology.column.to(maker, copy=True)
        index = SparseIndex.of(self.in_features, row_start, column)
        return SparseIndex(self.in_features, *(tensor.to(device) for tensor in index[1:]))

    def _can_write_index(self, topology: Topology) -> bool:
        """Whether the index can be made in the buffers themselves: they are plain memory on the CPU."""
        buffers = [getattr(self, name) for name in _INDEX_BUFFERS]
        given = (topology.row_start, topology.column)
        if not on_cpu(*buffers, *given) or not all(
            t.is_contiguous() and not torch.is_inference(t) for t in buffers
        ):
            return False
        # Not while reading what is being written.
        written = {storage_address(t) for t in buffers}
        return written.isdisjoint({storage_address(t) for t in given})

    def _write_index(self, topology: Topology) -> None:
        """Make the index of the topology in the buffers."""
        given = (topology.row_start, topology.column)
        by_column = (self.column_start, self.row, self.slot)
        SparseIndex.of(self.in_features, *given, into=by_column)
        for tensor in by_column:
            torch.autograd.graph.increment_version(tensor)
        self.row_start.copy_(topology.row_start)
        self.column.copy_(topology.column)
        self._index_taken()

    def _take_index(self, index: SparseIndex) -> None:
        for name in _INDEX_BUFFERS:
            old, new = getattr(self, name), getattr(index, name)
            if old is not None and old.shape == new.shape and old.device == new.device:
                old.copy_(new)  # DDP and others hold on to buffers
            else:
                setattr(self, name, new)
        self._index_taken()

    def _index_taken(self) -> None:
        """The index in the buffers is a new one."""
        if self.group > 1:  # a whole number of 16 bytes, as tensor cores like their rows
            most = int(self.row_start.diff(dim=1).max())
            self._width = max(8, (most + 7) // 8 * 8)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_topology": None}  # made again where it is asked for


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two (tensor, version, tensor, version) are the same tensors at the same versions."""
    return a[0] is b[0] and a[1] == b[1] and a[2] is b[2] and a[3] == b[3]
