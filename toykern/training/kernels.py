"""The seam to the resident kernels: tensors checked, laid out and kept alive, native calls made.

`toykern.fit` and `toykern.evaluate` are the public fronts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from toykern import _native
from toykern.arguments.errors import describe
from toykern.data.dataset import Dataset
from toykern.data.features import SparseFeatures
from toykern.data.sources import Source
from toykern.native.address import address, address_of_array, storage_address
from toykern.native.device_launch import DeviceLaunch
from toykern.native.devices import check_kernels
from toykern.native.numbers import number
from toykern.native.threads import kernel_threads
from toykern.network.activations import ACTIVATIONS, option_of
from toykern.network.losses import EMBEDDED, LOSSES, PROJECTED, Objective
from toykern.network.specification import NetworkSpec
from toykern.nn.kinds import AnyModel, has_connections, kind_of
from toykern.nn.model_checks import check_as_described
from toykern.training.resident_topology import DenseLayer
from toykern.training.settings import Settings
from toykern.training.update import set_update

_ORDERED_MODELS = 4096


def check_model(model: Any, action: str) -> AnyModel:
    """`model` if the kernels can run it; TypeError, ValueError or RuntimeError that says why not."""
    kind = kind_of(model)
    if kind is None:
        raise TypeError(
            "model must be a TiedAutoencoder, an Autoencoder, an MLP or a SparseTiedAutoencoder, not "
            f"{describe(model)}"
        )
    check_as_described(model, kind, trains=action == "fit")
    for name in ("hidden_activation", "output_activation"):
        if getattr(model, name) not in ACTIVATIONS:
            raise ValueError(
                f"model has an activation that nothing here can {action}: {name}={getattr(model, name)!r}; "
                "use a loop of your own"
            )
    tensors = model.parameters_by_name() | model.fixed_tensors()
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {str(tensor.device)!r}" for name, tensor in tensors.items())
        raise ValueError(f"model must have all its parameters on one device, not {places}")
    device = next(iter(devices))
    try:
        check_kernels(device)
    except RuntimeError as error:
        raise RuntimeError(
            f"model is on the device {str(device)!r}, where {action} cannot run: {error}"
        ) from None
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"model must have float32 parameters to {action}; {name} is {describe(tensor)}")
    found: AnyModel = model
    _check_shapes(found)
    return found


def device_of(model: AnyModel) -> torch.device:
    """Where a model that was checked lies."""
    return next(parameter.device for parameter in model._parameters.values() if parameter is not None)


def frozen_parameters(model: AnyModel) -> list[str]:
    """Names of the parameters that training leaves as they are: those without `requires_grad`."""
    return sorted(
        name for name, parameter in model.parameters_by_name().items() if not parameter.requires_grad
    )


def freeze(model: AnyModel, names: Sequence[str]) -> None:
    """Parameters called `names` do not require a gradient any more, so that `fit` leaves them as they are."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def check_own_memory(parameters: Mapping[str, torch.Tensor]) -> None:
    """ValueError where several elements of a parameter are one in memory."""
    for name, parameter in parameters.items():
        if any(d > 1 and s == 0 for d, s in zip(parameter.shape, parameter.stride(), strict=True)):
            raise ValueError(
                f"model.{name} is an expanded tensor; training needs memory of its own (clone it)"
            )


def check_data(data: Any, model: AnyModel) -> Source:
    """`data` if it fits the model; TypeError or ValueError that names what differs."""
    if not isinstance(data, SparseFeatures | Dataset):
        more = ": make a Dataset of it" if isinstance(data, torch.Tensor | np.ndarray) else ""
        raise TypeError(f"data must be a SparseFeatures or a Dataset, not {describe(data)}{more}")
    if data.n_features != model.n_features:
        raise ValueError(f"data has n_features = {data.n_features}, the model has {model.n_features}")
    if data.n_models not in (None, model.n_models):
        what = "samples"
        if isinstance(data, SparseFeatures):
            what = "probabilities" if len(data.probability) > 1 else "projections"
        raise ValueError(f"data has {what} for {data.n_models} models, the model stacks {model.n_models}")
    return data


def _check_shapes(model: AnyModel) -> None:
    """ValueError where parameters were replaced by others: the kernels would read beyond them."""
    expected = model.parameter_shapes()
    parameters = model.parameters_by_name()
    if parameters.keys() != expected.keys():
        raise ValueError(f"model must have the parameters {sorted(expected)}, not {sorted(parameters)}")
    for name, shape in expected.items():
        if list(parameters[name].shape) != shape:
            raise ValueError(
                f"model.{name} must have the shape {shape}, that of its n_models, n_hidden and n_features, "
                f"not {describe(parameters[name])}"
            )
    fixed, network = model.fixed_tensors(), model.network
    for tensor in network.fixed:
        shape = [1 if model.shares(tensor.name) else model.n_models, *network.shape(tensor)]
        held = fixed[tensor.name]
        if list(held.shape) != shape:
            raise ValueError(f"model.{tensor.name} must have the shape {shape}, not {describe(held)}")


@functools.lru_cache(maxsize=256)
def _told_network(spec: NetworkSpec) -> Any:
    """`network_params`, once for each network: for parameters that take a copy of it."""
    return network_params(spec)


def network_params(spec: NetworkSpec) -> Any:
    """The kernels' description of the network and its loss."""
    network = _native.Network()
    network.n_features = spec.n_features
    network.n_hidden = spec.n_hidden
    network.n_outputs = spec.n_outputs
    network.n_embedding = spec.n_embedding
    network.unembedded = spec.unembedding
    network.residual = spec.residual
    network.centered = spec.centered
    network.has_hidden_bias = spec.hidden_bias
    network.tied = spec.tied
    network.hidden_activation = ACTIVATIONS[spec.hidden_activation].number
    network.output_activation = ACTIVATIONS[spec.output_activation].number
    network.hidden_option = option_of(spec.hidden_activation, spec)
    network.output_option = option_of(spec.output_activation, spec)
    network.has_bias = spec.bias
    network.loss = LOSSES[spec.loss].number
    network.target = number("target", "projection" if spec.target == EMBEDDED else spec.target)
    network.reduction = number("reduction", spec.loss_reduction)
    return network


def _set_tensors(
    params: Any, network: NetworkSpec, tensors: dict[str, torch.Tensor], device: torch.device
) -> None:
    """The kernels' table of tensors, by role, the fixed ones among them; and the target's matrix, P."""
    views = network.views()
    for tensor in network.parameters:
        found = address(f"model.{tensor.name}", tensors[tensor.name], torch.float32, device)
        params.set_tensor(tensor.role, found, *views[tensor.role])
    for tensor in network.fixed:
        held = tensors[tensor.name]
        found, shared = address(f"model.{tensor.name}", held, torch.float32, device), len(held) == 1
        params.set_fixed(tensor.role, found, *network.shape(tensor), shared)
        if tensor.role == "embedding" and network.target == EMBEDDED:
            projection = _native.TargetProjection()
            projection.matrix, projection.per_model = found, not shared
            params.projection = projection


def costliest_first(data: Source) -> torch.Tensor | None:
    """The order in which models should be taken, int64 `[models]`; None where it does not matter.

    It matters while the last model could keep the others waiting; with thousands, neighbours in memory
    matter more.
    """
    if data.n_models is None or data.n_models > _ORDERED_MODELS:
        return None
    cost = data.active_features()
    if isinstance(data, Dataset) and data.samples is not None:
        cost = data.samples
    if cost.numel() == 1:
        return None
    return cost.argsort(descending=True, stable=True)


def set_data(params: Any, data: Source, batch_size: int | None, n_models: int) -> list[Any]:
    """The kernels' view of a stream or of a dataset on the CPU, and the samples of a step; after the network,
    whose target is another where the stream has a projection.

    Returns what the kernels hold addresses of beside `data`, which must live as long as they are called. The
    stream is, with a dataset, one without active features, from which nothing is drawn.
    """
    kept: list[Any] = []
    if isinstance(data, SparseFeatures):
        stream = data
        if data.projection is not None:
            params.projection = data.projection.native()
            params.network.target = number("target", PROJECTED)
    else:
        stream = SparseFeatures(data.n_features, 0.0)
        params.finite = data.native(full=batch_size is None)
        if data.samples is not None and len(data.samples) < n_models:  # one number, which all of them have
            samples = data.samples.expand(n_models).contiguous()
            params.finite.samples = address("dataset.samples", samples, torch.int64)
            kept.append(samples)
        batch_size = data.rows if batch_size is None else batch_size
    params.data = stream.native()
    params.batch_size = batch_size
    return [*kept, stream]


class Resident:
    """One ensemble in training: the arrays of a run, advanced by native calls.

    `tensors` holds the parameters by name as they are being trained, on the model's device. Those of the
    module that are not contiguous are trained in contiguous copies. The run's own arrays (records, optimiser
    state, marks) lie on the CPU; where the model does not, copies of them are trained on its device. A sparse
    W is trained as a dense "weight" with zeros, `layer`. `write_back` brings everything up to date.

    Raises:
        ValueError: a parameter is an expanded tensor; the state is that of other connections.
        MemoryError: the device has too little memory.
    """

    def __init__(
        self,
        model: AnyModel,
        data: Source,
        settings: Settings,
        *,
        arrays: dict[str, torch.Tensor],
        state: dict[str, torch.Tensor],
        loss: torch.Tensor,
        loss_carry: torch.Tensor,
        diverged_at: torch.Tensor,
    ) -> None:
        self._model = model
        self._parameters = dict(model.parameters_by_name())
        check_own_memory(self._parameters)
        launch = device_launch(model, data, "training")
        self._launch = launch
        self._run_tensors = [*state.values(), loss, loss_carry, diverged_at]
        there = self._run_tensors if launch is None else launch.moved(self._run_tensors)
        self._there = there
        state_there = dict(zip(state, there, strict=False))
        self.layer: DenseLayer | None = None
        self.tensors: dict[str, torch.Tensor] = {}
        if has_connections(model):
            self._parameters.pop("values")
            moments = [t for name, t in state_there.items() if name.startswith("weight/")]
            self.layer = DenseLayer(model, moments)
            self.tensors["weight"] = self.layer.weight
        self.tensors |= {name: p.detach().contiguous() for name, p in self._parameters.items()}
        # All that training changes, where it changes it, by a path.
        self.changing = {f"parameters/{name}": tensor for name, tensor in self.tensors.items()}
        self.changing |= {f"state/{name}": tensor for name, tensor in state_there.items()}
        self.changing["carry/loss"] = there[-2]
        optimizer = settings.optimizer
        rates = {name: arrays[name] for name in optimizer.rates()}
        inputs = [arrays["seed"], arrays["importance"], *rates.values()]
        seed, importance, *values = inputs if launch is None else launch.moved(inputs)
        rates = dict(zip(rates, values, strict=True))
        l1 = arrays.get("l1")  # which the CPU's kernels alone have
        fixed = {name: held.contiguous() for name, held in model.fixed_tensors().items()}
        order = costliest_first(data)
        if order is not None and launch is not None:
            order = launch.moved([order])[0]
        # Everything whose address the kernels hold.
        self._kept = [data, seed, importance, *rates.values(), l1, fixed, order]

        self._device = device_of(model)
        p = _native.TrainParams()
        network = settings.network(model)
        p.network = _told_network(network)
        self._kept += set_data(p, data, settings.batch_size, model.n_models)
        if launch is not None:
            p.data = launch.distribution
        p.n_models = model.n_models
        p.seed = self._at("seed", seed, torch.int64)
        p.importance = self._at("importance", importance, torch.float32)
        p.importance_stride = network.n_outputs if importance.shape[0] > 1 else 0
        _set_tensors(p, network, self.tensors | fixed, self._device)
        if l1 is not None:
            p.l1 = self._at("l1", l1, torch.float64)
        set_update(p, optimizer, network, rates, state_there, self._device)
        for name in frozen_parameters(model):
            p.set_frozen(model.tensor_of(name).role)
        if self.layer is not None:
            p.network.sparse = True
            p.connected = self._at("connected", self.layer.connected, torch.uint8)
        p.record_every = settings.record_every
        p.loss_records = self._at("loss", there[-3], torch.float32)
        p.n_records = loss.shape[1]
        p.total_steps = settings.steps
        p.loss_carry = self._at("loss_carry", there[-2], torch.float64)
        p.diverged_at = self._at("diverged_at", there[-1], torch.int64)
        if order is not None:
            p.order = self._at("order", order, torch.int64)
        self._params = p

    def advance(self, first: int, factors: np.ndarray, gradient: bool = False) -> None:
        """Train steps first … first + len(factors) − 1; `factors` multiply the learning rate, float64.

        With `gradient`, that of the last step, at all positions of a sparse W, comes into `layer.gradient`; 0
        for models that diverged.
        """
        if self.layer is not None:
            self.layer.gradient.zero_()
            found = self._at("gradient", self.layer.gradient, torch.float32)
            self._params.gradient = found if gradient else 0
        self._params.first_step = first
        self._params.steps = len(factors)
        self._params.threads = kernel_threads()
        if self._launch is not None:
            self._launch.train(self._params, factors)
            return
        self._params.lr_factor = address_of_array("factors", factors, np.float64)
        _native.train(self._params)

    def write_back(self) -> None:
        """Bring the module's parameters and the run's arrays up to date."""
        if self.layer is not None:
            assert has_connections(self._model)
            self.layer.write_to(self._model)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if storage_address(self.tensors[name]) != storage_address(parameter):
                    parameter.copy_(self.tensors[name])
                else:  # autograd must see that the memory changed
                    torch.autograd.graph.increment_version(parameter)
        for kept, trained in zip(self._run_tensors, self._there, strict=True):
            if kept is not trained:
                kept.copy_(trained)

    def _at(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> int:
        return address(name, tensor, dtype, self._device)

    @property
    def diverged_at(self) -> torch.Tensor:
        """The marks as they are now, int64 `[models]`, on the CPU."""
        return self._there[-1].cpu()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of the parameters by name, on the CPU; "connections" too where W is sparse, bool."""
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return copies if self.layer is None else copies | {"connections": self.layer.connected.bool().cpu()}


def device_launch(model: AnyModel, data: Source, action: str) -> DeviceLaunch | None:
    """How to call the kernels of the model's device; None for the CPU's."""
    device = device_of(model)
    return DeviceLaunch(data, model.n_models, device, action) if device.type == "cuda" else None


def evaluate_models(
    model: AnyModel,
    data: Source,
    *,
    batches: int,
    batch_size: int | None,
    seed: torch.Tensor,
    importance: torch.Tensor,
    objective: Objective,
    l1: torch.Tensor | None = None,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """float64 `[models]`, on the model's device: the mean loss over batches of the evaluation stream, or over
    a whole dataset (batch_size None). `parameters`, by name, stand for the model's own."""
    held = model.stacked_parameters() if parameters is None else parameters
    tensors = {name: p.contiguous() for name, p in ({**held, **model.fixed_tensors()}).items()}
    launch = device_launch(model, data, "evaluating")
    if launch is not None:
        seed, importance = launch.moved([seed, importance])
    device = device_of(model)
    loss = torch.empty(model.n_models, dtype=torch.float64, device=device)
    p = _native.EvaluateParams()
    network = model.network.trained_for(objective)
    p.network = _told_network(network)
    _kept = set_data(p, data, batch_size, model.n_models)  # they live until the call is over
    if launch is not None:
        p.data = launch.distribution
    p.n_models = model.n_models
    p.batches = batches
    p.seed = address("seed", seed, torch.int64, device)
    p.importance = address("importance", importance, torch.float32, device)
    p.importance_stride = network.n_outputs if importance.shape[0] > 1 else 0
    if l1 is not None:
        p.l1 = address("l1", l1, torch.float64, device)
    _set_tensors(p, network, tensors, device)
    p.loss = address("loss", loss, torch.float64, device)
    p.threads = kernel_threads()
    if launch is None:
        _native.evaluate(p)
    else:
        launch.evaluate(p)
    return loss
