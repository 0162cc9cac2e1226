"""How the CUDA layer cuts a large model's work, so that scratch memory stays within its budget.

Tiles are models × rows (samples) × features. While a tile of features is worked on, these are in memory
beside the caller's tensors (m hidden units; s bytes of an element of the weights, 4 or 2):

    codes and their gradient     models · rows · m · (8, or 16 in bfloat16); 4 more for slopes that are kept
    pre-outputs and gradient     models · rows · features · (4, or 6)
    the encoder's rows           models · features · m · s         entries or gradients by entry alone
    sums                         models · (n + m), and by block of 32 rows

The first two are kept near each other: rows are only cut where a whole batch of codes would take most of the
budget.
"""

from __future__ import annotations

from dataclasses import dataclass

SCRATCH_BYTES = 224 << 20
"""Of a plan; a little below the 256 MiB that a call may use."""

CHUNK_BYTES = 64 << 20
"""Of a tile's pre-outputs: enough for products at full speed, and little more than a GPU's second cache."""

TILE_ROWS, TILE_COLUMNS = 32, 256
"""Of a block of the kernels (csrc/include/toykern/layer_cuda.h)."""

_ALIGN = 256  # features of a chunk, where there are that many


@dataclass(frozen=True)
class Plan:
    """Sizes of a tile, and the scratch memory that they come to.

    Attributes:
        models, rows, features: of a tile, at most.
        bytes: of scratch memory, all tensors together.
    """

    models: int
    rows: int
    features: int
    bytes: int


def plan(
    n_models: int,
    batch: int,
    n_features: int,
    n_hidden: int,
    *,
    bf16: bool = False,
    entries: int = 0,
    gradients: bool = True,
    rows_of_encoder: bool = False,
    slopes: bool = False,
    budget: int = SCRATCH_BYTES,
) -> Plan:
    """The tiles of a call.

    Args:
        n_models, batch, n_features, n_hidden: the shape.
        bf16: whether weights are bfloat16.
        entries: of a sparse input; 0 for a dense one. Sorting them takes 40 bytes each, beyond the budget
            where they are very many.
        gradients: whether any are wanted.
        rows_of_encoder: whether a tile needs the encoder's rows, transposed.
        slopes: whether the codes' slopes are kept beside them.
        budget: bytes for everything.

    >>> plan(1, 1024, 262_144, 512).bytes < 256 << 20
    True
    """
    sorting = 40 * entries if entries and gradients else 0
    fixed = 4 * n_models * (2 * n_features + 3 * n_hidden + 2) + sorting
    left = max(budget - fixed, budget // 4)
    models, rows, features = n_models, batch, n_features
    size = _Sizes(n_hidden, 2 if bf16 else 4, bool(entries) or rows_of_encoder, gradients, slopes)
    while models > 1 and size.of(models, min(rows, 256), min(features, _ALIGN)) > left:
        models = (models + 1) // 2
    while rows > TILE_ROWS and size.codes(models, rows) > left // 2:
        rows = _up((rows + 1) // 2, TILE_ROWS)
    chunk = max(1, min(CHUNK_BYTES, left) // (size.element * models * rows))
    features = min(features, max(_down(chunk, _ALIGN), 1 if chunk < _ALIGN else _ALIGN))
    while features > 1 and size.of(models, rows, features) > left:
        features = _down(features // 2, _ALIGN) if features > 2 * _ALIGN else features // 2
    return Plan(models, rows, features, fixed + size.of(models, rows, features))


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    storage: int
    rows_of_encoder: bool
    gradients: bool
    slopes: bool

    @property
    def element(self) -> int:
        """Of a pre-output: as float, and its gradient where that is stored otherwise."""
        return 4 if self.storage == 4 else 6

    def codes(self, models: int, rows: int) -> int:
        own, gradient = (4, 4) if self.storage == 4 else (6, 10)  # one product of a stack is added by hand
        kept = 4 if self.slopes else 0
        return models * rows * self.hidden * (own + (gradient if self.gradients else 0) + kept)

    def of(self, models: int, rows: int, features: int) -> int:
        blocks = -(-rows // TILE_ROWS)
        sums = 4 * models * (blocks * (max(features, self.hidden) + -(-features // TILE_COLUMNS)) + rows)
        encoder = models * features * self.hidden * self.storage if self.rows_of_encoder else 0
        return self.codes(models, rows) + models * rows * features * self.element + encoder + sums


def _up(size: int, to: int) -> int:
    return -(-size // to) * to


def _down(size: int, to: int) -> int:
    return size // to * to if size >= to else size
