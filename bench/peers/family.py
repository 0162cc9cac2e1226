"""A training step of any member of the family by PyTorch eager, torch.compile and JAX, as experts write it.

The loss is written once, for both libraries, in what they share; which terms there are is known when it is
traced. A stack is trained by batched products, with the libraries' own (PyTorch, fused) or a written-out
(JAX) optimiser; streams are drawn in every step, by the quickest ways of `bench.peers.torch_draw` and
`bench.peers.jax_scan`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.family_rows import Row
from bench.peers.jax_scan import _DRAWS as JAX_DRAWS
from bench.peers.jax_scan import _import_jax as import_jax
from bench.peers.torch_draw import DRAWS

Steps = Callable[[int], dict[str, torch.Tensor]]
"""Makes so many steps, once; returns the parameters then, by name."""

Contender = Callable[[], Steps]
"""Sets everything to the same start; what it takes is not timed."""


@dataclass(frozen=True)
class Variant:
    """A way to write it: how streams are drawn, and whether codes of one-hot pairs are gathered."""

    draw: str = ""
    gather: bool = False

    def __str__(self) -> str:
        return ", ".join([self.draw] * bool(self.draw) + ["gathered"] * self.gather) or "dense"


def variants(row: Row) -> list[Variant]:
    """Those worth trying for a row; the best stands for a peer."""
    if row.streams:
        return [Variant(draw) for draw in DRAWS]
    if row.key == "grokking":
        return [Variant(), Variant(gather=True)]
    return [Variant()]


def loss_of(xp: Any, row: Row, network: Any, gather: bool) -> Callable[..., Any]:
    """(parameters and fixed tensors by name, x, target) -> the losses of all models, added up.

    `xp` is torch or jax.numpy. x is `[models or 1, batch, n_features]`; None for the identity dataset; where
    codes are gathered, the two active features of each sample. target None is what the network sees.
    """
    l1 = row.l1()
    prices = np.asarray(l1, dtype=np.float32)
    mean = row.settings.get("loss_reduction", "mean") == "mean"

    def activated(a: Any) -> Any:
        if network.hidden_activation == "relu":
            return xp.clip(a, 0)
        assert network.hidden_activation in ("none", "square"), network.hidden_activation
        return a * a if network.hidden_activation == "square" else a

    def loss(tensors: dict[str, Any], x: Any, target: Any, prices: Any) -> Any:
        encoder = tensors["weight" if network.tied else "encoder"]
        decoder = encoder.mT if network.tied else tensors["decoder"]
        if x is None:
            codes = encoder.mT
        elif gather:
            columns = encoder.mT
            codes = columns[:, x[0]] + columns[:, x[1]]
        else:
            seen = x if "embedding" not in tensors else x @ tensors["embedding"].mT
            if row.settings.get("target") == "embedding":
                target = seen
            target = x if target is None else target
            if network.centered:
                seen = seen - tensors["bias"][:, None]
            codes = seen @ encoder.mT
        if "hidden_bias" in tensors:
            codes = codes + tensors["hidden_bias"][:, None]
        codes = activated(codes)
        output = codes @ decoder.mT
        if "bias" in tensors:
            output = output + tensors["bias"][:, None]
        if network.output_activation == "relu":
            output = xp.clip(output, 0)
        samples = codes.shape[1]
        total = xp.square(output - target).sum() / (samples * (network.n_outputs if mean else 1))
        if prices is None:
            return total
        return total + (prices * xp.abs(codes).sum((1, 2))).sum() / samples

    return loss if prices.any() else lambda tensors, x, target, prices=None: loss(tensors, x, target, None)


def start_of(row: Row) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(description, parameters, fixed tensors) of the row's models at their start."""
    model = row.model()
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    fixed = {name: held.clone() for name, held in model.fixed_tensors().items()}
    return model.network, parameters, fixed


def constant_batch(row: Row, gather: bool) -> tuple[Any, torch.Tensor]:
    """(x, target) of a dataset, which every step sees whole."""
    data, network = row.data, row.model().network
    models = data.n_models or 1
    x, target = data.batch(0, n_models=models, n_outputs=network.n_outputs)
    shared = x[:1]
    if data.target is not None and torch.equal(shared[0], torch.eye(x.shape[2])):
        return None, target
    if gather:
        first, second = shared[0].nonzero()[:, 1].view(-1, 2).T
        return (first, second), target
    return shared, target


def prices_of(row: Row, models: int) -> np.ndarray:
    """The weight of each model's L1 norm, float32 `[models]`."""
    return np.broadcast_to(np.asarray(row.l1(), dtype=np.float32), models).copy()


def torch_contender(row: Row, variant: Variant, compiled: bool) -> Contender:
    """PyTorch, eager or with the loss and its gradient compiled."""
    network, parameters, fixed = start_of(row)
    models = row.model().n_models
    loss = loss_of(torch, row, network, variant.gather)
    function = torch.compile(loss) if compiled else loss
    prices = torch.from_numpy(prices_of(row, models))
    if row.streams:
        shape = (models, row.batch_size, network.n_features)
        assert row.batch_size is not None
        rate = row.data.probability.flatten()[:1].reshape(1, 1).numpy()
        draw = DRAWS[variant.draw](shape, rate)

        def batch() -> tuple[Any, Any]:
            drawn = draw()
            return drawn if variant.draw == "gaps" else drawn.relu_(), None
    else:
        held = constant_batch(row, variant.gather)

        def batch() -> tuple[Any, Any]:
            return held

    def begin() -> Steps:
        tensors = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        optimizer = _torch_optimizer(row, list(tensors.values()))

        def run(steps: int) -> dict[str, torch.Tensor]:
            for _ in range(steps):
                optimizer.zero_grad()
                x, target = batch()
                function(tensors | fixed, x, target, prices).backward()
                optimizer.step()
            return {name: value.detach() for name, value in tensors.items()}

        return run

    return begin


class Lamb(torch.optim.Optimizer):
    """LAMB as the package pytorch-optimizer has it, for stacks: a trust ratio for each model's tensor."""

    def __init__(self, tensors: list[torch.Tensor], lr: float) -> None:
        super().__init__(tensors, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state, gradient = self.state[p], p.grad
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["mean"].lerp_(gradient, 0.1)
                state["square"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                update = state["mean"] / state["square"].sqrt().add_(1e-6)
                own = tuple(range(1, p.ndim))
                size, length = (torch.linalg.vector_norm(t, dim=own, keepdim=True) for t in (p, update))
                ratio = torch.where((size > 0) & (length > 0), size.clamp(max=10.0) / length, 1.0)
                p.sub_(update.mul_(group["lr"] * ratio))


def _torch_optimizer(row: Row, tensors: list[torch.Tensor]) -> torch.optim.Optimizer:
    if row.optimizer == "lamb":
        return Lamb(tensors, row.lr)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[row.optimizer](tensors, lr=row.lr, weight_decay=row.weight_decay, fused=True)


def jax_contender(row: Row, variant: Variant, threads: int) -> Contender:
    """JAX: jit(shard_map(scan(step))), models split over as many host devices as cores."""
    jax = import_jax("cpu", threads)
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    network, parameters, fixed = start_of(row)
    models = row.model().n_models
    devices = math.gcd(models, len(jax.devices("cpu")))
    mesh = jax.make_mesh((devices,), ("models",), devices=jax.devices("cpu")[:devices])
    split, everywhere = PartitionSpec("models"), PartitionSpec()
    loss = loss_of(jnp, row, network, variant.gather)

    def own(value: Any) -> Any:
        """What models have of their own is split; what they share is everywhere."""
        return split if len(value) == models and models > 1 else everywhere

    def placed(values: Any, specs: Any) -> Any:
        return jax.tree.map(
            lambda spec, value: jax.device_put(value, NamedSharding(mesh, spec)), specs, values
        )

    start = {name: jnp.asarray(value.numpy()) for name, value in parameters.items()}
    held = {name: jnp.asarray(value.numpy()) for name, value in fixed.items()}
    prices = jnp.asarray(prices_of(row, models))
    x, target = (None, None) if row.streams else constant_batch(row, variant.gather)
    if x is not None:
        x = tuple(map(_as_jax, x)) if variant.gather else _as_jax(x)
    target = None if target is None else _as_jax(target)
    data = {"prices": prices, "fixed": held} | ({} if target is None else {"target": target})
    data_spec = {"prices": own(prices), "fixed": {name: own(value) for name, value in held.items()}}
    data_spec |= {} if target is None else {"target": own(target)}
    data = placed(data, data_spec)
    shape = (row.batch_size, network.n_features)
    probability = float(row.data.probability.flatten()[0]) if row.streams else 0.0

    def update(p: Any, g: Any, state: Any, t: Any) -> Any:
        if row.optimizer == "sgd":
            return p - row.lr * (g + row.weight_decay * p), state
        m, v = 0.9 * state[0] + 0.1 * g, 0.999 * state[1] + 0.001 * g * g
        if row.optimizer == "lamb":
            step = m / (jnp.sqrt(v) + 1e-6)
            own = tuple(range(1, p.ndim))
            size, length = (jnp.sqrt(jnp.square(a).sum(own, keepdims=True)) for a in (p, step))
            ratio = jnp.where((size > 0) & (length > 0), jnp.minimum(size, 10.0) / length, 1.0)
            return p - row.lr * ratio * step, (m, v)
        p = p * (1 - row.lr * row.weight_decay)  # Adam's rows have none
        step = (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return p - row.lr * step, (m, v)

    def run_steps(carry: Any, data: Any, length: int) -> Any:
        def body(carry: Any, _: Any) -> Any:
            tensors, state, keys, t = carry
            key, batch_key = jax.random.split(keys[0])
            seen = x
            if row.streams:
                seen = JAX_DRAWS[variant.draw](
                    jax, batch_key, shape, probability, n_models=next(iter(tensors.values())).shape[0]
                )
            gradient = jax.grad(
                lambda tensors: loss(tensors | data["fixed"], seen, data.get("target"), data["prices"])
            )(tensors)
            t = t + 1
            moved = {name: update(p, gradient[name], state[name], t) for name, p in tensors.items()}
            tensors = {name: new for name, (new, _) in moved.items()}
            return (tensors, {name: new for name, (_, new) in moved.items()}, key[None], t), None

        return jax.lax.scan(body, carry, None, length=length)[0]

    functions: dict[int, Any] = {}

    of_models = dict.fromkeys(start, split)
    of_states = dict.fromkeys(start, () if row.optimizer == "sgd" else (split, split))
    specs = (of_models, of_states, split, everywhere)

    def compiled(steps: int) -> Any:
        if steps not in functions:
            functions[steps] = jax.jit(
                jax.shard_map(
                    lambda carry, data: run_steps(carry, data, steps),
                    mesh=mesh,
                    in_specs=(specs, data_spec),
                    out_specs=specs,
                    check_vma=False,
                )
            )
        return functions[steps]

    def begin() -> Steps:
        def state_of(p: Any) -> Any:
            return () if row.optimizer == "sgd" else (jnp.zeros_like(p), jnp.zeros_like(p))

        state = {name: state_of(p) for name, p in start.items()}
        carry = placed((start, state, jax.random.split(jax.random.key(0), devices), jnp.zeros(())), specs)

        def run(steps: int) -> dict[str, torch.Tensor]:
            found = compiled(steps)(carry, data)
            jax.block_until_ready(found)
            return {name: torch.from_numpy(np.array(value)) for name, value in found[0].items()}

        return run

    return begin


def _as_jax(value: torch.Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(value.numpy())


def jax_is_here() -> bool:
    """Whether JAX can be imported."""
    return importlib.util.find_spec("jax") is not None


def contenders(row: Row, compiled: bool, jax: bool, threads: int) -> dict[str, dict[str, Contender]]:
    """Every peer's variants, by the peer's name and the variant's."""
    found = {"eager": {str(v): torch_contender(row, v, False) for v in variants(row)}}
    if compiled:
        found["compile"] = {str(v): torch_contender(row, v, True) for v in variants(row)}
    if jax:
        found["jax"] = {str(v): jax_contender(row, v, threads) for v in variants(row)}
    return found
