"""What an experiment of the literature is made of: settings, models to train, what came out, a figure.

An experiment is data: a module of this room has one `EXPERIMENT`, whose functions say which models are
trained (`stages`), what is seen in them beside what was published (`look`), and how it is drawn (`draw`).
Training, stores, plans, progress and the command line are the same for all of them (`running.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toykern.arguments.errors import describe
from toykern.arguments.grids import Grid
from toykern.experiments.ranges import check_ranges
from toykern.nn.kinds import AnyModel
from toykern.sweeps.job import Measure, Plan

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Stage:
    """Models of one shape that are trained together.

    Attributes:
        name: of the stage within its experiment; where results are stored, that of its store.
        grid: the models, by named axes.
        plan: (points, index) → the arguments of `toykern.fit` for some of them, as `toykern.sweep` takes it.
            A model's seeds must follow from its point and number alone.
        fit: further arguments of `toykern.fit`, the same for all: steps, optimiser, schedule, records, ….
        measure: (run, points, index) → further results by name, `[models, …]` each; None: there are none.
    """

    name: str
    grid: Grid
    plan: Plan
    fit: Mapping[str, Any]
    measure: Measure | None = None


class Trained(Protocol):
    """The trained models of a stage, in memory or in a store."""

    @property
    def stage(self) -> Stage:
        """What was asked for."""

    def read(self, name: str) -> NDArray[Any]:
        """One result, `[*grid.shape, …]`: "loss" (one for each record), "diverged_at", the parameters by
        name, "<parameter>_snapshots", what `record` and the stage's `measure` name."""

    def model(self) -> AnyModel:
        """All models of the stage as one stack on the CPU."""


@dataclass(frozen=True)
class Outcome:
    """One published outcome, and what was seen here.

    Attributes:
        what: that was looked at.
        published: what the paper says or shows, in our own words, with its figure or equation.
        seen: what came out here, with numbers.
        agrees: whether the two agree, by a criterion that is a number or a regime; None where this budget
            cannot tell, nothing was published to compare with, or a number in `seen` is NaN or infinite.
        note: why, where they differ or it cannot be told.
    """

    what: str
    published: str
    seen: str
    agrees: bool | None
    note: str = ""

    def __post_init__(self) -> None:
        """What was seen as NaN or infinite is no number, whichever way a comparison with it comes out."""
        if self.agrees is not None and re.search(r"\b(nan|inf)\b", self.seen):
            object.__setattr__(self, "agrees", None)
            unknown = "a number is missing (NaN) or infinite: it cannot be told"
            object.__setattr__(self, "note", f"{self.note}; {unknown}" if self.note else unknown)


@dataclass(frozen=True)
class Findings:
    """What an experiment found: labelled numbers, and its outcomes.

    Attributes:
        arrays: name → (names of its dimensions, values).
        coords: name of a dimension → its values, for those that have some.
        outcomes: beside what was published.
    """

    arrays: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]]
    coords: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {name: len(values) for name, values in self.coords.items()}
        for name, (dims, values) in self.arrays.items():
            if len(dims) != values.ndim:
                raise ValueError(f"arrays: {name} has {len(dims)} names for {values.ndim} dimensions")
            for dim, size in zip(dims, values.shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise ValueError(f"arrays: {name} has {size} along {dim!r}, others {sizes[dim]}")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values of one array, or of a coordinate."""
        return self.arrays[name][1] if name in self.arrays else self.coords[name]

    def to_xarray(self) -> xarray.Dataset:
        """The same as a labelled data set; ImportError without xarray (`pip install toykern[results]`)."""
        try:
            import xarray
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: pip install 'toykern[results]'") from error
        return xarray.Dataset(dict(self.arrays), coords=dict(self.coords))


@dataclass(frozen=True)
class Experiment:
    """An experiment of the literature, as it is run here.

    Attributes:
        name: on the command line, as `double-descent`.
        title: a few words.
        source: papers, with year and figure or section.
        summary: what is trained and what there is to see, a short paragraph.
        settings: a frozen dataclass of numbers, texts and tuples of these: the size at which it is to be
            believed. `quick` is the same class for seconds. Every field may be set by its name.
        stages: settings → what to train, in order.
        look: (settings, name of a stage → trained) → what came out. It may train more that depends on it.
        draw: (settings, findings, an empty figure) → None.
        figsize: of the figure, inches.
    """

    name: str
    title: str
    source: str
    summary: str
    settings: Any
    quick: Any
    stages: Callable[[Any], Sequence[Stage]]
    look: Callable[[Any, Mapping[str, Trained]], Findings]
    draw: Callable[[Any, Findings, Figure], None]
    figsize: tuple[float, float] = (7.0, 4.5)

    def configure(self, quick: bool = False, **given: Any) -> Any:
        """Its settings with some of them changed.

        Raises:
            TypeError: a setting that it does not have, or of another kind than the one it replaces.
            ValueError: a setting out of its range (`ranges.py`).
        """
        settings = self.quick if quick else self.settings
        fields = {entry.name for entry in dataclasses.fields(settings)}
        for name, value in given.items():
            if name not in fields:
                raise TypeError(f"{self.name} has no setting {name!r}; it has {', '.join(sorted(fields))}")
            given[name] = _as_before(name, value, getattr(settings, name))
        chosen = dataclasses.replace(settings, **given)
        check_ranges(chosen)
        return chosen


def _as_before(name: str, value: Any, before: Any) -> Any:
    """A setting in the kind of the one it replaces: what is typed at a prompt and what a program gives."""
    if isinstance(before, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) == 0:
            raise TypeError(f"{name} must be some values as {before}, not {describe(value)}")
        return tuple(_as_before(name, part, before[0]) for part in value)
    if isinstance(before, bool) or isinstance(value, bool):
        fits = isinstance(before, bool) and isinstance(value, bool)
    elif isinstance(before, float):
        fits = isinstance(value, int | float | np.integer | np.floating)
    elif isinstance(before, int):
        fits = isinstance(value, int | np.integer)
    else:
        fits = isinstance(value, type(before))
    if not fits:
        raise TypeError(f"{name} must be {type(before).__name__} as {before!r}, not {describe(value)}")
    return type(before)(value)


def labelled(dims: Sequence[str] | str, values: ArrayLike) -> tuple[tuple[str, ...], NDArray[Any]]:
    """An entry of `Findings.arrays`; `dims` as "importance density", or as a sequence."""
    names = tuple(dims.split()) if isinstance(dims, str) else tuple(dims)
    return names, np.asarray(values)
