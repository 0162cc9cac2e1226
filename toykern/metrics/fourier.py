"""Weights over residues in Fourier space, as modular tasks have them.

The last dimension are the residues 0 … p − 1: of a model of `toykern.modular_addition(p)` the first number's
are `model.encoder[..., :p]`, the second's `model.encoder[..., p:]`, the sum's `model.decoder.mT`. A
*frequency* k from 0 to p // 2 takes its cosine and its sine together. Results are of the dtype of the
weights, computed in double precision, and can be differentiated unless they are a choice. Bits may depend on
how many rows there are: they are transformed together.
"""

from __future__ import annotations

import torch

from toykern.arguments.broadcast import Values, real_tensor
from toykern.arguments.errors import check_flag, check_number, describe


def fourier_power(weights: Values) -> torch.Tensor:
    """The power at each frequency, `[…, p // 2 + 1]`: its share of Σ w² over the residues (Parseval).

    weights: `[…, p]`, of 2 residues or more. `fourier_power(w)[..., 1:].argmax(-1) + 1` is each row's
    dominant frequency.

    >>> fourier_power(torch.tensor([1.0, 0.0, -1.0, 0.0])).tolist()
    [0.0, 2.0, 0.0]
    """
    w = _check_weights(weights)
    return _power(w).to(w.dtype)


def inverse_participation_ratio(weights: Values, constant: bool = False) -> torch.Tensor:
    """Σ_k P_k² / (Σ_k P_k)², `[…]`: how few frequencies a row of weights has.

    1 for a single frequency, 1/F where F frequencies have the same power. P_k is `fourier_power`: a
    frequency's cosine and sine are one, whatever the phase. (Over all p complex coefficients a cosine counts
    twice, and what is 1 here is 1/2.) NaN for a row that is constant, or not finite. For grokking: Gromov
    2023, *Grokking modular arithmetic*.

    Args:
        weights: `[…, p]`, of 2 residues or more: `[models, n_hidden, p]` for the value of each unit.
        constant: count the frequency 0 too; otherwise the mean over the residues makes no difference.

    >>> angle = 2 * torch.pi * torch.arange(7) / 7
    >>> round(inverse_participation_ratio(torch.cos(3 * angle) + torch.sin(2 * angle)).item(), 6)
    0.5
    """
    w = _check_weights(weights)
    first = 0 if check_flag("constant", constant) else 1
    power = _power(w, first)
    whole = power.sum(-1, keepdim=True)
    known = whole != 0
    share = torch.where(known, power / torch.where(known, whole, 1.0), torch.nan)
    return share.square().sum(-1).to(w.dtype)


def key_frequencies(weights: Values, share: float = 0.9) -> torch.Tensor:
    """The fewest frequencies that together have `share` of the power, bool `[models, p // 2 + 1]`.

    The power is summed over the units, without frequency 0, which is never among them. The strongest come
    first; of equal ones the lower. A model whose weights are constant or not finite has none. For one model,
    `.nonzero().flatten()` are their numbers. After Nanda et al. 2023, *Progress measures for grokking via
    mechanistic interpretability*, who read them off the spectrum by eye.

    Args:
        weights: `[models, units, p]` or `[units, p]`, of 2 residues or more.
        share: above 0, up to 1.

    >>> angle = 2 * torch.pi * torch.arange(7) / 7
    >>> key_frequencies(torch.stack([torch.cos(3 * angle), 0.1 * torch.sin(angle)])).nonzero().tolist()
    [[3]]
    """
    w = _check_weights(weights).detach()
    if w.ndim not in (2, 3):
        raise ValueError(
            f"weights must have the shape [models, units, p] or [units, p], not {describe(weights)}"
        )
    share = check_number("share", share, minimum=0.0, maximum=1.0)
    if share == 0:
        raise ValueError("share must be above 0, not 0")
    power = _power(w, 1).sum(-2)
    known = (power.sum(-1, keepdim=True) != 0) & torch.isfinite(power).all(-1, keepdim=True)
    strongest = power.sort(dim=-1, descending=True, stable=True)
    reached = strongest.values.cumsum(-1)
    # A frequency is needed where those before it fall short; what has no power never is.
    before = reached - strongest.values
    needed = known & (before < share * reached[..., -1:]) & (strongest.values > 0)
    found = torch.zeros_like(needed).scatter(-1, strongest.indices, needed)
    return torch.cat([torch.zeros_like(found[..., :1]), found], dim=-1)


def _power(weights: torch.Tensor, first: int = 0) -> torch.Tensor:
    """float64, from frequency `first` on; without frequency 0 the mean is taken off before."""
    wide = weights.double()
    p = wide.shape[-1]
    if first:
        wide = wide - wide[..., :1]  # so that a row that is constant is 0 to the last bit
        wide = wide - wide.mean(-1, keepdim=True)
    power = torch.view_as_real(torch.fft.rfft(wide, norm="ortho")).square().sum(-1)
    twice = torch.full((p // 2 + 1,), 2.0, dtype=torch.float64, device=wide.device)
    twice[0] = 1.0
    if p % 2 == 0:
        twice[-1] = 1.0  # the frequency p/2 has no sine
    return (power * twice)[..., first:]


def _check_weights(weights: Values) -> torch.Tensor:
    tensor = real_tensor("weights", weights, detach=False)
    if not tensor.is_floating_point():
        raise TypeError(f"weights must hold floating-point numbers, not {describe(weights)}")
    if tensor.ndim == 0 or tensor.shape[-1] < 2 or 0 in tensor.shape:
        raise ValueError(f"weights must have the shape […, p] with p at least 2, not {describe(weights)}")
    return tensor
