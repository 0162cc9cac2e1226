"""Training and evaluation by batched products of the library that torch has on a device (cuBLAS): for what no
CUDA kernel of ours takes.

Each step draws its batch on the device (`toykern.training.batches`), computes the loss of the whole stack in
float32 by products of stacked matrices, lets autograd make the gradients, and updates all models by
`toykern.training.step`. Within a stretch of steps nothing waits for the device: which models have diverged
stays there as a mask. What the CPU makes is moved several steps at a time: rows of minibatches, samples that
no device draws, the noise of SGLD.

The bits are those of torch's products: not the CPU's, and for one model perhaps others beside other models.
Where torch is told to round the operands of products (TF32), it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from toykern import _native
from toykern.data.dataset import Dataset
from toykern.data.sources import Source
from toykern.native.address import storage_address
from toykern.native.devices import explained_out_of_memory
from toykern.network.losses import Objective
from toykern.network.specification import NetworkSpec
from toykern.nn.kinds import AnyModel, has_connections
from toykern.nn.two_layer import Tensors, codes_of, embedded, outputs_of, summed_loss
from toykern.training.batches import Batch, Batches, own
from toykern.training.kernels import check_own_memory, frozen_parameters
from toykern.training.optim import SGLD
from toykern.training.resident_topology import DenseLayer
from toykern.training.settings import Settings
from toykern.training.step import langevin_noise, optimizer_step

_LOOKED_BYTES = 2**31  # of what a dataset that is evaluated whole takes on the device
_MADE_BYTES = 2**26  # of what the CPU makes for some steps before they are taken


class BatchedResident:
    """One ensemble in training, as `toykern.training.kernels.Resident` and with its interface; it works on
    any device of torch.

    Raises:
        ValueError: a parameter is an expanded tensor; the state is that of other connections.
        MemoryError: the device has too little memory for a step of all models at once.
    """

    @torch.inference_mode(False)
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
        self._model, self._settings = model, settings
        self._parameters = dict(model.named_parameters())
        check_own_memory(self._parameters)
        self._device = device = next(iter(self._parameters.values())).device
        self._network = network = settings.network(model)
        self._run_tensors = [*state.values(), loss, loss_carry, diverged_at]
        with _explained(device, _bytes_of(self._run_tensors), model.n_models, "training"):
            self._there = [own(tensor, device) for tensor in self._run_tensors]
            self._begin(model, data, network, arrays, dict(zip(state, self._there, strict=False)))

    def _begin(
        self,
        model: AnyModel,
        data: Source,
        network: NetworkSpec,
        arrays: dict[str, torch.Tensor],
        state: dict[str, torch.Tensor],
    ) -> None:
        device, optimizer = self._device, self._settings.optimizer
        frozen = frozen_parameters(model)
        self._state = state
        self._records, self._carry, self._diverged = self._there[-3:]
        self.layer: DenseLayer | None = None
        self.tensors: dict[str, torch.Tensor] = {}
        if has_connections(model):
            self._parameters.pop("values")
            moments = [t for name, t in state.items() if name.startswith("weight/")]
            self.layer = DenseLayer(model, moments)
            self.tensors["weight"] = self.layer.weight
            frozen = ["weight" if name == "values" else name for name in frozen]
        self.tensors |= {name: own(p.detach(), device).contiguous() for name, p in self._parameters.items()}
        self._trained = [name for name in self.tensors if name not in frozen]
        self._fixed = {name: own(held, device).contiguous() for name, held in model.fixed_tensors().items()}
        # All that training changes, where it changes it, by a path.
        self.changing = {f"parameters/{name}": tensor for name, tensor in self.tensors.items()}
        self.changing |= {f"state/{name}": tensor for name, tensor in state.items()}
        self.changing["carry/loss"] = self._carry
        self._rates = {name: own(arrays[name], device) for name in optimizer.rates()}
        self._importance = own(arrays["importance"], device)
        self._l1 = own(arrays["l1"], device).float() if "l1" in arrays else None
        self._seed = arrays["seed"]
        self._batches = Batches(
            data, network, n_models=model.n_models, seed=self._seed, batch_size=self._settings.batch_size,
            fixed=self._fixed, device=device,
        )  # fmt: skip
        self._noise: dict[str, torch.Tensor] = {}

    @torch.inference_mode(False)
    def advance(self, first: int, factors: np.ndarray, gradient: bool = False) -> None:
        """Train steps first … first + len(factors) − 1; `factors` multiply the learning rate, float64. Waits.

        With `gradient`, that of the last step, at all positions of a sparse W, comes into `layer.gradient`; 0
        for models that diverged.
        """
        if self.layer is not None:
            self.layer.gradient.zero_()
        network, models = self._network, self._model.n_models
        last = first + len(factors) - 1
        with (
            _explained(
                self._device, bytes_of_step(network, models, self._batches.samples), models, "training"
            ),
            torch.autocast(self._device.type, enabled=False),
        ):
            for begin, end in _pieces(first, last + 1, self._batches.bytes_per_step + self._noise_bytes):
                self._batches.prepare(begin, end - begin)
                self._make_noise(begin, end)
                for step in range(begin, end):
                    noise = {name: drawn[step - begin] for name, drawn in self._noise.items()}
                    self._advance(step, float(factors[step - first]), noise, gradient and step == last)
            _wait(self._device, "training")

    def _advance(self, step: int, factor: float, noise: dict[str, torch.Tensor], keep_gradient: bool) -> None:
        """One step of all models."""
        optimizer = self._settings.optimizer
        # In this thread: autograd's own for a device would free tensors of a step while the next is drawn.
        with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
            leaves = {name: self.tensors[name].detach().requires_grad_() for name in self._trained}
            tensors = self.tensors | leaves | self._fixed
            loss = _loss(tensors, self._network, self._batches.batch(step), self._importance, self._l1)
            found = torch.autograd.grad(loss.sum(), list(leaves.values())) if leaves else ()
        gradients = dict(zip(leaves, found, strict=True))
        with torch.no_grad():
            alive = self._record(step, loss.detach().double())
            if self.layer is not None and "weight" in gradients:
                whole = gradients["weight"]
                if keep_gradient:
                    self.layer.gradient.copy_(_where(alive, whole, torch.zeros_like(whole)))
                gradients["weight"] = torch.where(self.layer.connected.bool(), whole, 0.0)
            if not leaves:
                return
            parameters = {name: self.tensors[name] for name in self._trained}
            names = [f"{name}/{kind}" for name in self._trained for kind in optimizer.state_names]
            state = {name: self._state[name] for name in names}
            new_parameters, new_state = optimizer_step(
                optimizer, parameters, gradients, state, step, factor, rates=self._rates, noise=noise
            )
            for old, new in ((parameters, new_parameters), (state, new_state)):
                for name, value in new.items():
                    old[name].copy_(_where(alive, value, old[name]))

    def _record(self, step: int, loss: torch.Tensor) -> torch.Tensor:
        """Put a step's losses, float64 `[models]`, into the records, as csrc/common/records.h has it; bool
        `[models]`, which models are trained in it."""
        every, steps = self._settings.record_every, self._settings.steps
        trained, finite = self._diverged < 0, torch.isfinite(loss)
        alive = trained & finite
        self._diverged.copy_(torch.where(trained & ~finite, step, self._diverged))
        total = torch.where(alive, self._carry + loss, self._carry)
        if (step + 1) % every == 0 or step + 1 == steps:
            number = step // every
            record = self._records[:, number]
            record.copy_(torch.where(alive, (total / (step + 1 - number * every)).float(), record))
        if (step + 1) % every == 0:  # of a shorter last record it is kept: a run may be made longer
            total = torch.where(alive, 0.0, total)
        self._carry.copy_(total)
        return alive

    @property
    def _noise_bytes(self) -> int:
        """Of what SGLD adds in each step."""
        langevin = isinstance(self._settings.optimizer, SGLD)
        return _bytes_of([self.tensors[name] for name in self._trained]) if langevin else 0

    def _make_noise(self, begin: int, end: int) -> None:
        """The noise of SGLD of the steps begin … end − 1, drawn on the CPU."""
        if not self._noise_bytes:
            return
        for name in self._trained:
            of_steps = [
                langevin_noise(name, self.tensors[name], step, self._seed).float()
                for step in range(begin, end)
            ]
            self._noise[name] = torch.stack(of_steps).to(self._device)

    def write_back(self) -> None:
        """Bring the module's parameters and the run's arrays up to date."""
        theirs = [*self._parameters.values(), *self._run_tensors]
        with torch.inference_mode(any(tensor.is_inference() for tensor in theirs)), torch.no_grad():
            self._write_back()

    def _write_back(self) -> None:
        if self.layer is not None:
            assert has_connections(self._model)
            self.layer.write_to(self._model)
        for name, parameter in self._parameters.items():
            if storage_address(self.tensors[name]) != storage_address(parameter):
                parameter.copy_(self.tensors[name])
        for kept, trained in zip(self._run_tensors, self._there, strict=True):
            if kept is not trained:
                kept.copy_(trained)

    @property
    def diverged_at(self) -> torch.Tensor:
        """The marks as they are now, int64 `[models]`, on the CPU."""
        return self._diverged.cpu()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of the parameters by name, on the CPU; "connections" too where W is sparse, bool."""
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return copies if self.layer is None else copies | {"connections": self.layer.connected.bool().cpu()}


@torch.inference_mode(False)
@torch.no_grad()
def evaluate_batched(
    model: AnyModel,
    data: Source,
    *,
    batches: int,
    batch_size: int | None,
    seed: torch.Tensor,
    importance: torch.Tensor,
    objective: Objective,
    l1: torch.Tensor | None = None,
    parameters: Tensors | None = None,
) -> torch.Tensor:
    """As `toykern.training.kernels.evaluate_models`, by batched products; of a whole dataset, some models
    at a time."""
    network = model.network.trained_for(objective)
    fixed = {name: held.contiguous() for name, held in model.fixed_tensors().items()}
    given = model.stacked_parameters() if parameters is None else parameters
    tensors = {name: held.contiguous() for name, held in given.items()} | fixed
    at_once = model.n_models
    if isinstance(data, Dataset) and batch_size is None:
        at_once = max(1, _LOOKED_BYTES // bytes_of_step(network, 1, data.rows))
    if at_once >= model.n_models:
        return _evaluate(tensors, network, data, batches, batch_size, seed, importance, l1)
    found = []
    for first in range(0, model.n_models, at_once):
        some = slice(first, min(first + at_once, model.n_models))

        def of(held: torch.Tensor, some: slice = some) -> torch.Tensor:
            return held[some] if len(held) == model.n_models else held

        own = {name: of(held) for name, held in tensors.items()}
        prices = None if l1 is None else of(l1)
        found.append(
            _evaluate(
                own, network, data.of_models(some), batches, batch_size, seed[some], of(importance), prices
            )
        )
    return torch.cat(found)


def _evaluate(
    tensors: Tensors,
    network: NetworkSpec,
    data: Source,
    batches: int,
    batch_size: int | None,
    seed: torch.Tensor,
    importance: torch.Tensor,
    l1: torch.Tensor | None,
) -> torch.Tensor:
    """The losses of the models that these tensors are of, all at once."""
    first = tensors[network.parameters[0].name]
    device, models = first.device, len(first)
    fixed = {tensor.name: tensors[tensor.name] for tensor in network.fixed}
    samples = data.rows if batch_size is None else batch_size  # type: ignore[union-attr]
    with (
        _explained(device, bytes_of_step(network, models, samples), models, "evaluating"),
        torch.autocast(device.type, enabled=False),
    ):
        prices = None if l1 is None else l1.to(device, torch.float32)
        weights = importance.to(device)
        drawn = Batches(
            data, network, n_models=models, seed=seed, batch_size=batch_size, fixed=fixed, device=device,
            purpose="evaluation",
        )  # fmt: skip
        total = torch.zeros(models, dtype=torch.float64, device=device)
        for begin, end in _pieces(0, batches, drawn.bytes_per_step):
            drawn.prepare(begin, end - begin)
            for step in range(begin, end):
                total += _loss(tensors, network, drawn.batch(step), weights, prices).double()
        _wait(device, "evaluating")
    return total / batches


def _loss(
    tensors: Tensors,
    network: NetworkSpec,
    batch: Batch,
    importance: torch.Tensor,
    l1: torch.Tensor | None,
) -> torch.Tensor:
    """Of each model, float32 `[models]`."""
    seen = embedded(batch.x, tensors)
    codes = codes_of(seen, tensors, network)
    output = outputs_of(codes, seen, tensors, network)
    return summed_loss(codes, output, batch.wanted, importance, l1, network, batch.present)


def _where(alive: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """`new` for models that are trained, `old` for the others, `[models, …]`."""
    return torch.where(alive.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _pieces(begin: int, end: int, bytes_per_step: int) -> Iterator[tuple[int, int]]:
    """The steps begin … end − 1 in pieces for each of which the CPU makes no more than it should."""
    length = max(1, _MADE_BYTES // bytes_per_step) if bytes_per_step else max(1, end - begin)
    for at in range(begin, end, length):
        yield at, min(at + length, end)


def _bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_of_step(network: NetworkSpec, n_models: int, samples: int) -> int:
    """About what a step keeps for its gradients: inputs, what the encoder sees, codes, outputs, targets."""
    widths = network.n_features + 2 * network.n_embedding + 4 * network.n_hidden + 6 * network.n_outputs
    return 4 * n_models * samples * widths


@contextmanager
def _explained(device: torch.device, needed: int, n_models: int, action: str) -> Iterator[None]:
    """MemoryError with a reason where a CUDA device runs out."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(explained_out_of_memory(device, needed, n_models, action))
        yield


def _wait(device: torch.device, action: str) -> None:
    """Until the device has done it, or raise what went wrong."""
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        _native.cuda_synchronize(device.index, stream, f"{action} on the GPU")
