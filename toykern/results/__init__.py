"""What a call of `toykern.fit` produced, and the stores that keep it."""

from toykern.results.run import Run
from toykern.results.store_format import StoreError

__all__ = ["Run", "StoreError"]
