"""A progress bar on one line, where somebody can see it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from toykern.arguments.errors import describe

WIDTH = 28


class Bar(Protocol):
    """What `toykern.fit` tells how far it is."""

    def update(self, done: int) -> None:
        """Say that `done` steps of the run are done."""

    def close(self) -> None:
        """Say that no more will come."""


BarMaker = Callable[[int, int, int], Bar]
"""(steps of the run, steps done before, models) → the bar of one run."""


def bar_for(progress: bool | None | BarMaker, total: int, done: int, n_models: int) -> Bar:
    """The bar of a run: its own, or what a sweep of many runs makes of it."""
    if progress is None or isinstance(progress, bool):
        return Progress(total, done, n_models, progress)
    if not callable(progress) or isinstance(progress, type):
        raise TypeError(f"progress must be True, False, None or what makes a bar, not {describe(progress)}")
    try:
        return progress(total, done, n_models)
    except TypeError as error:
        raise TypeError(
            f"progress must be a callable (steps, done, models) -> bar; called so it raised: {error}"
        ) from error


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
        self._line = _Line(shown, stream)
        self._total, self._first, self._n_models = total, done, n_models
        self._begin = time.perf_counter()

    def update(self, done: int) -> None:
        """Show that `done` steps of the run are done."""
        if not self._total:
            return
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        rate = (done - self._first) / seconds
        left = (self._total - done) / rate if rate > 0 and done < self._total else None
        what = f"{done:,} of {self._total:,} steps"
        self._line.draw(done / self._total, what, rate * self._n_models, left)

    def close(self) -> None:
        """End the line."""
        self._line.end()


class SweepProgress:
    """One bar over all chunks of a sweep: `██──  31% chunk 5 of 16, 1.9 M model-steps/s, 3 s left`.

    Args:
        steps: of each model.
        n_models: of the whole sweep.
        chunks: of the whole sweep.
        done: models that were finished before.
        shown, stream: as for `Progress`.
        label: which part of the sweep this process has.
    """

    def __init__(
        self,
        steps: int,
        n_models: int,
        chunks: int,
        done: int = 0,
        shown: bool | None = None,
        stream: TextIO | None = None,
        label: str = "",
    ) -> None:
        self._line = _Line(shown, stream)
        self._total, self._chunks, self._label = steps * n_models, chunks, label
        self._steps = steps
        self._done = self._first = steps * done
        self._begin = time.perf_counter()

    def of_chunk(self, number: int) -> BarMaker:
        """The `progress` of the run that trains chunk `number`."""

        def make(total: int, done: int, n_models: int) -> Bar:
            return _Part(self, number, total * n_models, n_models)

        return make

    def others_finished(self, n_models: int) -> None:
        """Say that so many models are finished by now, whoever trained them."""
        self._done = max(self._done, self._steps * n_models)

    def finished(self, chunks: int, n_models: int) -> None:
        """Show that so many chunks, with so many models in all, are finished."""
        self._done = self._steps * n_models
        self._show(0, f"{chunks:,} of {self._chunks:,} chunks")

    def close(self) -> None:
        """End the line."""
        self._line.end()

    def _draw(self, number: int, part: int) -> None:
        self._show(part, f"chunk {number + 1:,} of {self._chunks:,}")

    def _show(self, part: int, what: str) -> None:
        done = self._done + part
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        rate = (done - self._first) / seconds
        left = (self._total - done) / rate if rate > 0 and done < self._total else None
        self._line.draw(done / self._total, self._label + what, rate, left)


class _Part:
    """The bar of one chunk's run."""

    def __init__(self, whole: SweepProgress, number: int, model_steps: int, n_models: int) -> None:
        self._whole, self._number = whole, number
        self._model_steps, self._n_models = model_steps, n_models
        self._done = 0

    def update(self, done: int) -> None:
        self._done = done * self._n_models
        self._whole._draw(self._number, self._done)

    def close(self) -> None:
        if self._done == self._model_steps:
            self._whole._done += self._model_steps


class _Line:
    """One line of a terminal, redrawn in place."""

    def __init__(self, shown: bool | None, stream: TextIO | None) -> None:
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty() if shown is None else shown
        self._begun = False

    def draw(self, share: float, what: str, rate: float, left: float | None) -> None:
        """The bar, what is done, model-steps a second, seconds left."""
        if not self._shown:
            return
        filled = round(share * WIDTH)
        remaining = "" if left is None else f", {_duration(left)} left"
        self._stream.write(
            f"\r{'█' * filled}{'─' * (WIDTH - filled)} {share:4.0%} {what}, "
            f"{_rate(rate)} model-steps/s{remaining}\033[K"
        )
        self._stream.flush()
        self._begun = True

    def end(self) -> None:
        if self._shown and self._begun:
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
