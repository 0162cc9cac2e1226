"""The meaning of the package in plain float64 PyTorch: the oracle that every kernel is tested against.

Nothing here is fast, and nothing here calls autograd or `torch.optim`: the formulas are written out, and
`tests/test_reference.py` and `tests/test_reference_family.py` check them against both. Parameters are
dictionaries of stacked float64 tensors, {"weight" [models, m, n]} for a tied network and {"encoder" [models,
m, n], "decoder" [models, n_outputs, m]} for an untied one, with "bias" [models, n_outputs] and "hidden_bias"
[models, m] or without.

Notation, per model: E the encoder (m × n), D the decoder (n_outputs × m; tied: D = Eᵀ = Wᵀ), b and c the
biases, P and Q the fixed embedding (d × n) and un-embedding (n_outputs × d) where there are some,

    e = P x,   a = E (e − b) + c,   h = f(a),   z = Q (D h + e) + b,   y = g(z)

where − b is there of a centred network alone and + e of a residual one; without P, e = x, and without Q the
output is z = D h + e + b. f and g are the identity, ReLU (ReLU′(0) = 0), leaky ReLU (its slope at 0 is the
negative one), GELU (z·Φ(z)), softplus (log(1 + e^z)), the square, z·e^z, and, f alone, top-k (the k largest
codes of a sample stay, of equal ones the first; slope 1 where one stays) and SoLU, z·softmax(z) over a
sample's codes. With importance I, targets t and B samples

    squared_error         1/N · Σ_samples Σ_j I_j (y_j − t_j)²,   N = B · n_outputs ("mean") or B ("sum")
    cross_entropy         1/B · Σ_samples Σ_j I_j t_j (log Σ_i exp y_i − y_j)
    batch_cross_entropy   Σ_samples Σ_j I_j s_j (log Σ exp y − y_j), s = softmax(t) and the sum in the
                          logarithm over all outputs of all samples

and l1 · mean over samples of Σ_k |h_k| beside it (its slope 0 at 0).
"""

from toykern.reference.network import (
    Activity,
    Network,
    Parameters,
    forward,
    loss_and_gradients,
    network_of,
    one_hot,
    parameters_of,
    target_of,
)
from toykern.reference.training import State, Trained, initial_state, optimizer_step, record_means, train

__all__ = [
    "Activity",
    "Network",
    "Parameters",
    "State",
    "Trained",
    "forward",
    "initial_state",
    "loss_and_gradients",
    "network_of",
    "one_hot",
    "optimizer_step",
    "parameters_of",
    "record_means",
    "target_of",
    "train",
]
