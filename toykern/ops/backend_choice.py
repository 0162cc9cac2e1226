"""Which back end a sparse layer on a GPU uses: the fastest by a measurement that is kept for the process.

The first call of a kind measures a forward and backward pass of every back end that can be used, on
tensors of its own, and remembers the fastest. A kind is: device, dtype (and whether float32 products may be
TF32), number of models, inputs, outputs, slots, group, and the power of two at or above the batch size.
While a CUDA graph is being captured nothing can be measured: there a rule of thumb decides, and is not
remembered.

The choice changes no result but for the order of sums. Where bits must repeat between processes, name the
back end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from toykern.ops.sparse_backends import Connections, backward, forward

_REPEATS = 5
_chosen: dict[tuple[object, ...], str] = {}
_times: dict[tuple[object, ...], dict[str, float]] = {}


def choose(x: torch.Tensor, values: torch.Tensor, c: Connections) -> str:
    """The name of the back end for inputs and connections like these."""
    found = candidates(x, c)
    if len(found) == 1:
        return found[0]
    key = _key(x, c)
    name = _chosen.get(key)
    if name is None:
        if x.device.type != "cuda" or torch.cuda.is_current_stream_capturing() or x.shape[1] == 0:
            return rule_of_thumb(c)
        _times[key] = measured(found, x, values, c)
        name = _chosen[key] = min(_times[key], key=_times[key].__getitem__)
    return name


def measurements() -> dict[tuple[object, ...], dict[str, float]]:
    """Milliseconds of every back end, by kind, of all that was measured so far (∞: out of memory)."""
    return {key: dict(times) for key, times in _times.items()}


def forget_measurements() -> None:
    """Measure anew at the next calls."""
    _chosen.clear()
    _times.clear()


def candidates(x: torch.Tensor, c: Connections) -> list[str]:
    """The back ends that can be used."""
    can_group = c.group > 1 and c.width > 0
    return ["dense", "slots", *(["groups"] if can_group else [])]


def rule_of_thumb(c: Connections) -> str:
    """Without a measurement: groups where there are some; slots at up to 3% of all connections, else dense.

    >>> row_start, column = torch.tensor([[0, 1]]), torch.zeros(1, dtype=torch.int32)
    >>> rule_of_thumb(Connections(100, row_start, column)), rule_of_thumb(Connections(10, row_start, column))
    ('slots', 'dense')
    """
    if c.group > 1 and c.width > 0:
        return "groups"
    return "slots" if c.capacity <= 0.03 * c.in_features * c.out_features else "dense"


def measured(
    found: Sequence[str],
    x: torch.Tensor,
    values: torch.Tensor,
    c: Connections,
    timer: Callable[[Callable[[], object], torch.device], float] | None = None,
) -> dict[str, float]:
    """Milliseconds of a forward and backward pass by each back end; ∞ where memory is used up."""
    timer = _milliseconds if timer is None else timer
    x, values = torch.ones_like(x), torch.ones_like(values)
    dy = x.new_ones(c.n_models, x.shape[1], c.out_features)

    def step(name: str) -> None:
        forward(name, x, values, None, c, False)
        backward(name, dy, x, values, c, True, True)

    times = {}
    for name in found:
        try:
            times[name] = timer(lambda name=name: step(name), x.device)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            times[name] = float("inf")
    return times


def _key(x: torch.Tensor, c: Connections) -> tuple[object, ...]:
    precision = torch.get_float32_matmul_precision() if x.dtype == torch.float32 else ""
    batch = 1 << (max(x.shape[1], 1) - 1).bit_length()
    shape = (c.n_models, c.in_features, c.out_features, c.capacity, c.group, c.width)
    return (str(x.device), x.dtype, precision, batch, x.shape[0] == 1, *shape)


def _milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """The shortest of some runs, by the device's clock."""
    with torch.cuda.device(device):
        step()
        best = float("inf")
        for _ in range(_REPEATS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            step()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end))
    return best
