"""How far a training is: the one place that says it, whoever trains.

Where somebody is looking, in a terminal or a notebook, it is a bar (tqdm's), redrawn in place. Elsewhere, in
the log of a job that runs for hours, it is a line a minute.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from toykern.arguments.errors import describe

BETWEEN_DRAWINGS = 0.1  # seconds
BETWEEN_LINES = 60.0  # seconds

Clock = Callable[[], float]


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


def labelled(progress: bool | None, label: str) -> BarMaker:
    """The `progress` of a run that is one of several: `label` stands before what is said."""
    return lambda total, done, n_models: Progress(total, done, n_models, progress, label=label)


class Progress:
    """`42%|████    | 4,200 of 10,000 steps, 1.9 M model-steps/s, 3 s left`.

    Args:
        total: steps of the run.
        done: steps done before this call (a resumed run).
        n_models: for the rate.
        shown: False: nothing is said. True or None: a bar in a terminal or a notebook, elsewhere a line a
            minute; True says there also in the end how far it came, if that took less.
        stream: standard error by default.
        clock: seconds.
        label: stands before what is said.
    """

    def __init__(
        self, total: int, done: int, n_models: int, shown: bool | None = None, stream: TextIO | None = None,
        clock: Clock = time.monotonic, label: str = "",
    ) -> None:  # fmt: skip
        self._total, self._n_models = total, n_models
        self._sign = _Sign(total, done, n_models, label, shown, stream, clock)

    def update(self, done: int) -> None:
        """Show that `done` steps of the run are done."""
        self._sign.show(done, f"{done:,} of {self._total:,} steps")

    def close(self) -> None:
        """End the line."""
        self._sign.end()


class SweepProgress:
    """One bar over all chunks of a sweep: `31%|██    | chunk 5 of 16, 1.9 M model-steps/s, 3 s left`.

    Args:
        steps: of each model.
        n_models: of the whole sweep.
        chunks: of the whole sweep.
        done: models that were finished before.
        shown, stream, clock: as for `Progress`.
        label: which part of the sweep this process has.
    """

    def __init__(
        self, steps: int, n_models: int, chunks: int, done: int = 0, shown: bool | None = None,
        stream: TextIO | None = None, clock: Clock = time.monotonic, label: str = "",
    ) -> None:  # fmt: skip
        self._sign = _Sign(steps * n_models, steps * done, 1, label, shown, stream, clock)
        self._steps, self._chunks = steps, chunks
        self._done, self._what = steps * done, f"{chunks:,} chunks"

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
        self.show(0, f"{chunks:,} of {self._chunks:,} chunks")

    def waiting(self) -> None:
        """Say again how far it is, where others are at work and nothing has been heard of them."""
        self.show(0, self._what)

    def show(self, part: int, what: str) -> None:
        """Show `what`, with so many model-steps beyond those of finished chunks."""
        self._what = what
        self._sign.show(self._done + part, what)

    def of_part(self, number: int, part: int) -> None:
        """Show that so many model-steps of chunk `number` are done."""
        self.show(part, f"chunk {number + 1:,} of {self._chunks:,}")

    def part_finished(self, model_steps: int) -> None:
        """Count the model-steps of a chunk that is finished."""
        self._done += model_steps

    def close(self) -> None:
        """End the line."""
        self._sign.end()


class _Part:
    """The bar of one chunk's run."""

    def __init__(self, whole: SweepProgress, number: int, model_steps: int, n_models: int) -> None:
        self._whole, self._number = whole, number
        self._model_steps, self._n_models = model_steps, n_models
        self._done = 0

    def update(self, done: int) -> None:
        self._done = done * self._n_models
        self._whole.of_part(self._number, self._done)

    def close(self) -> None:
        if self._done == self._model_steps:
            self._whole.part_finished(self._model_steps)


class _Sign:
    """What is done of a whole, with the rate and the time that is left, wherever it is to be read."""

    def __init__(
        self, total: int, done: int, weight: int, label: str, shown: bool | None, stream: TextIO | None,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._total, self._first, self._weight, self._clock = total, done, weight, clock
        self._label = label
        self._begin = clock()
        self._drawn: float | None = None
        self._text: tuple[int, str] | None = None  # not drawn yet
        stream = sys.stderr if stream is None else stream
        self._display: _TqdmBar | _Lines | None = None
        if shown is False or stream is None or not total:  # without a console there is no standard error
            return
        in_place = stream.isatty() or (stream is sys.stderr and in_notebook())
        self._display = _TqdmBar(total, stream) if in_place else _Lines(total, stream, shown is True)
        self._every = BETWEEN_DRAWINGS if in_place else BETWEEN_LINES
        if not in_place:
            self._drawn = self._begin  # the first line comes after a minute

    def show(self, done: int, what: str) -> None:
        if self._display is None:
            return
        now = self._clock()
        seconds = max(now - self._begin, 1e-9)
        rate = (done - self._first) / seconds
        left = (self._total - done) / rate if rate > 0 and done < self._total else None
        remaining = "" if left is None else f", {_duration(left)} left"
        self._text = done, f"{self._label}{what}, {_rate(rate * self._weight)} model-steps/s{remaining}"
        if self._drawn is None or now - self._drawn >= self._every:
            self._draw(now)

    def _draw(self, now: float) -> None:
        if self._display is not None and self._text is not None:
            done, text = self._text
            self._display.draw(done, text)
            self._drawn, self._text = now, None

    def end(self) -> None:
        if self._display is not None:
            if self._text is not None and self._display.wants_the_last:
                self._draw(self._clock())
            self._display.close()


class _TqdmBar:
    """tqdm draws: on one line of a terminal, or as a widget of a notebook."""

    wants_the_last = True

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream
        self._bar: Any = None  # made, and by that drawn, when there is something to say

    def draw(self, done: int, text: str) -> None:
        if self._bar is None:
            self._bar = _tqdm()(
                total=self._total, initial=done, desc=text, file=self._stream,
                bar_format="{percentage:3.0f}%|{bar}| {desc}", **_size_of(self._stream),
            )  # fmt: skip
            return
        self._bar.n = done
        self._bar.set_description_str(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """Whole lines, for logs."""

    def __init__(self, total: int, stream: TextIO, to_the_end: bool) -> None:
        self._total, self._stream = total, stream
        self.wants_the_last = to_the_end

    def draw(self, done: int, text: str) -> None:
        self._stream.write(f"toykern: {done / self._total:4.0%} {text}\n")
        self._stream.flush()
        self.wants_the_last = True  # what was begun is ended

    def close(self) -> None:
        pass


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose standard error is no terminal and yet is looked at."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _size_of(stream: TextIO) -> dict[str, Any]:
    """tqdm's arguments for the size: the terminal's; usual ones where it says 0, as in some containers."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # it is no real terminal
        columns = rows = 1
    return {"dynamic_ncols": True} if columns and rows else {"ncols": columns or 80, "nrows": rows or 24}


def _tqdm() -> Any:
    """tqdm's bar for where this runs, without its thread for slow bars: each drawing is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a notebook without widgets, where the bar is a line of text
        from tqdm.auto import tqdm

    return type("Bar", (tqdm,), {"monitor_interval": 0})


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
