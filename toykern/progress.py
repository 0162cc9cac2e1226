"""The progress bar of a training run: one line on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 28


class Progress:
    """`████────  42% 4,200 of 10,000 steps, 1.9 M model-steps/s, 3 s left`, redrawn in place.

    Args:
        total: steps of the run.
        done: steps done before this call (a resumed run).
        n_models: for the rate.
        shown: True or False; None shows it only where `stream` is a terminal.
        stream: standard error by default.
    """

    def __init__(
        self, total: int, done: int, n_models: int, shown: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty() if shown is None else shown
        self._total, self._first, self._n_models = total, done, n_models
        self._begin = time.perf_counter()

    def update(self, done: int) -> None:
        """Show that `done` steps of the run are done."""
        if not self._shown or not self._total:
            return
        share = done / self._total
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        rate = (done - self._first) / seconds
        filled = round(share * WIDTH)
        left = f", {_duration((self._total - done) / rate)} left" if rate > 0 and done < self._total else ""
        self._stream.write(
            f"\r{'█' * filled}{'─' * (WIDTH - filled)} {share:4.0%} {done:,} of {self._total:,} steps, "
            f"{_rate(rate * self._n_models)} model-steps/s{left}\033[K"
        )
        self._stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._shown and self._total:
            self._stream.write("\n")
            self._stream.flush()


def _rate(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 90 else f"{minutes} min {rest} s"
