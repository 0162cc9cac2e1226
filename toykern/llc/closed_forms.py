"""Learning coefficients that are known exactly."""

from __future__ import annotations

from toykern.arguments.errors import check_int, check_size


def reduced_rank_learning_coefficient(n_in: int, n_out: int, n_hidden: int, rank: int) -> tuple[float, int]:
    """(λ, multiplicity) of reduced rank regression, exact (Aoyagi & Watanabe 2005, Main Theorem).

    The model is y = D E x with all of E `[n_hidden, n_in]` and D `[n_out, n_hidden]` free, normal noise and
    inputs that span their space; the truth is a matrix of this `rank`. That is an `MLP` or an `Autoencoder`
    without activations and biases, under the squared error.

    λ is the least of the local learning coefficients at the true parameters. It is that of all of them where
    `rank` = `n_hidden`, or else of those whose superfluous hidden units are 0 on both sides. By the four
    cases of the theorem, with M = `n_in`, N = `n_out`, H = `n_hidden`, r = `rank`:

    1. N + r ≤ M + H, M + r ≤ N + H, H + r ≤ M + N: 8λ = 2(H + r)(M + N) − (M − N)² − (H + r)², and 1 more
       with multiplicity 2 where M + N + H + r is odd.
    2. M + H < N + r: 2λ = HM − Hr + Nr.
    3. N + H < M + r: 2λ = HN − Hr + Mr.
    4. M + N < H + r: 2λ = MN.

    The multiplicity is 1 elsewhere. ValueError or TypeError for what is no positive integer, and for a rank
    that these matrices cannot have.

    >>> reduced_rank_learning_coefficient(n_in=2, n_out=2, n_hidden=1, rank=0)  # |D|²|E|²
    (1.0, 2)
    >>> reduced_rank_learning_coefficient(n_in=4, n_out=4, n_hidden=4, rank=4)  # regular but for GL(4): 16/2
    (8.0, 1)
    """
    m, n, h = check_size("n_in", n_in), check_size("n_out", n_out), check_size("n_hidden", n_hidden)
    r = check_int("rank", rank, minimum=0, maximum=min(m, n, h))
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    if m + n < h + r:
        return m * n / 2, 1
    odd = (m + n + h + r) % 2
    return (2 * (h + r) * (m + n) - (m - n) ** 2 - (h + r) ** 2 + odd) / 8, 1 + odd
