"""Of which features the neurons of a hidden layer are, counted and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toykern.plot.axes import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def features_of_neurons(strength: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """Which features belong to which neuron: at least `share` of its strongest one, `[…, neurons, features]`.

    A neuron whose strengths are all 0 has none.

    >>> features_of_neurons(np.array([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0]]), share=0.2).sum(axis=-1).tolist()
    [2, 0]
    """
    size = np.abs(strength)
    largest = size.max(axis=-1, keepdims=True)
    found: NDArray[np.bool_] = (size >= share * largest) & (largest > 0)
    return found


def scaled_to_one(
    encoder: NDArray[Any], decoder: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same network, each neuron's largest weight from the inputs of magnitude 1.

    A neuron's row of the encoder `[…, neurons, features]` may be divided by a positive number that its column
    of the decoder `[…, outputs, neurons]` is multiplied with: behind a ReLU the outputs are the same.

    >>> e, d = scaled_to_one(np.array([[2.0, -4.0]]), np.array([[0.5], [0.25]]))
    >>> e.tolist(), d.tolist()
    ([[0.5, -1.0]], [[2.0], [1.0]])
    """
    largest = np.abs(encoder).max(axis=-1, keepdims=True)
    factor = np.where(largest > 0, largest, 1.0)
    return encoder / factor, decoder * np.moveaxis(factor, -1, -2)


def draw_neurons(panel: Axes, weight: NDArray[Any], colours: NDArray[Any]) -> None:
    """A bar for each neuron, made of its weights `[neurons, features]` by feature: positive ones above the
    axis, negative ones below; `colours` `[features, …]`."""
    neurons = np.arange(len(weight))
    for side in (1.0, -1.0):
        base = np.zeros(len(weight))
        for feature in range(weight.shape[1]):
            height = np.maximum(side * weight[:, feature], 0.0)
            panel.bar(
                neurons, side * height, bottom=side * base, color=colours[feature], edgecolor="white",
                linewidth=0.3, width=0.85,
            )  # fmt: skip
            base += height
    panel.axhline(0, color=GREY, linewidth=0.8)
    panel.set_xticks([])
