"""`torch.vmap` over the autoencoder ops: a batch of V calls on K models is one call on V·K of them.

    weights, biases, importance, l1      [V, K, …] as [V·K, …], repeated where vmap does not range over them
    dense x, target, gradients           likewise; shared ones stay shared
    x alone, no gradient of weights      V batches of the same models as one batch of V·B samples

So `vmap(grad(loss))` over samples is one call of the kernels, and its gradients take the memory that they
have. Entries of a `SparseBatch` are shared by all V calls, or refused: their index is no batch of tensors.
"""

from __future__ import annotations

from typing import Any

import torch

from toykern.ops.tied_autoencoder_call import Optional, options_of

Dims = tuple[int | None, ...]
_NETWORK = 8
"""Arguments that describe the network's input and tensors: x, row_start, feature, batch, weight, decoder,
bias and hidden bias."""


class _Fold:
    """Arguments of V calls as those of one."""

    def __init__(self, calls: int, network: tuple[Any, ...], dims: Dims) -> None:
        self.calls, self.models = calls, _shape(network[4], dims[4])[0]
        x, row_start, _, batch = network[:4]
        if dims[1] is not None or dims[2] is not None or (row_start is not None and dims[0] is not None):
            raise RuntimeError(
                "x must be dense where vmap ranges over it, not a SparseBatch: give x.to_dense(), or let "
                "vmap range over parameters alone"
            )
        if row_start is not None and self.models > 1 and batch and (row_start.numel() - 1) // batch > 1:
            raise RuntimeError(
                "x must be dense or a SparseBatch that all models share under vmap, not one of "
                f"{self.models} models: give x.to_dense()"
            )
        self.x_shape = _shape(x, dims[0])

    def network(self, arguments: tuple[Any, ...], dims: Dims) -> tuple[Any, ...]:
        x, row_start, feature, batch, *tensors = arguments
        folded = x if row_start is not None else self.shared(x, dims[0])
        return folded, row_start, feature, batch, *map(self.own, tensors, dims[4:])

    def own(self, tensor: Optional, dim: int | None) -> Optional:
        """`[K, …]` of each call as `[V·K, …]`."""
        if tensor is None:
            return None
        stacked = tensor.expand(self.calls, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return stacked.reshape(-1, *stacked.shape[2:])

    def shared(self, tensor: Optional, dim: int | None) -> Optional:
        """`[K or 1, …]` of each call as `[V·K or 1, …]`."""
        if tensor is None or (dim is None and tensor.shape[0] == 1):
            return tensor
        stacked = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        return stacked.expand(self.calls, self.models, *stacked.shape[2:]).flatten(0, 1)

    def unfold(self, found: torch.Tensor, entries: bool = False) -> tuple[torch.Tensor, int | None]:
        """A result `[V·K, …]` as `[V, K, …]`; the gradient of entries is without K for one model."""
        if found.numel() == 0 and found.ndim == 1:
            return found, None  # stands for one that is not wanted
        lead = (self.calls,) if entries and self.models == 1 else (self.calls, self.models)
        return found.reshape(*lead, *found.shape[-1 if entries else 1 :]), 0

    def gradients(
        self, found: tuple[torch.Tensor, ...], entries: bool
    ) -> tuple[tuple[torch.Tensor, ...], Dims]:
        """Of encoder, decoder, biases and x, the last of which may be that of entries."""
        pairs = [self.unfold(gradient, entries and i == 4) for i, gradient in enumerate(found)]
        return tuple(gradient for gradient, _ in pairs), tuple(dim for _, dim in pairs)


def _shape(tensor: torch.Tensor, dim: int | None) -> torch.Size:
    """Of what one call gets."""
    return tensor.shape if dim is None else tensor.movedim(dim, 0).shape[1:]


def _joined(tensor: torch.Tensor, dim: int | None, calls: int, models: int) -> torch.Tensor:
    """V batches `[K or 1, B, …]` as one, `[K or 1, V·B, …]`; of K where `models` says so."""
    stacked = tensor.unsqueeze(0).expand(calls, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    if models:
        stacked = stacked.expand(calls, models, *stacked.shape[2:])
    return stacked.transpose(0, 1).flatten(1, 2)


def _apart(tensor: torch.Tensor, calls: int) -> torch.Tensor:
    """The way back: `[V, K, B, …]`."""
    return tensor.unflatten(1, (calls, -1)).transpose(0, 1)


def _output(info: Any, dims: Dims, *arguments: Any) -> tuple[torch.Tensor, int | None]:
    calls, network, options = info.batch_size, arguments[:_NETWORK], arguments[_NETWORK:]
    fold = _Fold(calls, network, dims)
    if all(dim is None for dim in dims[4:]) and network[1] is None:
        x = _joined(network[0], dims[0], calls, 0)
        batch = calls * network[3]
        found = torch.ops.toykern.tied_autoencoder(x, None, None, batch, *network[4:], *options)
        return _apart(found, calls), 0
    found = torch.ops.toykern.tied_autoencoder(*fold.network(network, dims), *options)
    return fold.unfold(found)


def _backward(info: Any, dims: Dims, *arguments: Any) -> tuple[tuple[torch.Tensor, ...], Dims]:
    calls, (grad, output), network = info.batch_size, arguments[:2], arguments[2 : 2 + _NETWORK]
    options = arguments[2 + _NETWORK :]
    own_dims = dims[2:]
    fold = _Fold(calls, network, own_dims)
    _, (weights_wanted, x_wanted) = options_of(options)
    if not weights_wanted and all(dim is None for dim in own_dims[4:]) and network[1] is None:
        x = _joined(network[0], own_dims[0], calls, 0)
        grads = _joined(grad, dims[0], calls, fold.models)
        outputs = None if output is None else _joined(output, dims[1], calls, fold.models)
        found = torch.ops.toykern.tied_autoencoder_backward(
            grads, outputs, x, None, None, calls * network[3], *network[4:], *options
        )
        made = tuple(g if i < 4 or not x_wanted else _apart(g, calls) for i, g in enumerate(found))
        return made, (None, None, None, None, 0 if x_wanted else None)
    found = torch.ops.toykern.tied_autoencoder_backward(
        fold.own(grad, dims[0]),
        fold.own(output, dims[1]),
        *fold.network(network, own_dims),
        *options,
    )
    return fold.gradients(found, network[1] is not None)


def _loss(info: Any, dims: Dims, *arguments: Any) -> tuple[tuple[torch.Tensor, ...], Dims]:
    network = arguments[:_NETWORK]
    _, rest = options_of(arguments[_NETWORK:])
    first = len(arguments) - len(rest)
    options, (importance, l1, given, *objective) = arguments[_NETWORK:first], rest
    fold = _Fold(info.batch_size, network, dims)
    loss, *gradients, target = torch.ops.toykern.tied_autoencoder_loss(
        *fold.network(network, dims),
        *options,
        *map(fold.shared, (importance, l1, given), dims[first : first + 3]),
        *objective,
    )
    made, places = fold.gradients(tuple(gradients), network[1] is not None)
    (loss, place), (target, last) = fold.unfold(loss), fold.unfold(target)
    return (loss, *made, target), (place, *places, last)


_LIBRARY = torch.library.Library("toykern", "FRAGMENT")
torch.library.register_vmap("toykern::tied_autoencoder", _output, lib=_LIBRARY)
torch.library.register_vmap("toykern::tied_autoencoder_backward", _backward, lib=_LIBRARY)
torch.library.register_vmap("toykern::tied_autoencoder_loss", _loss, lib=_LIBRARY)
