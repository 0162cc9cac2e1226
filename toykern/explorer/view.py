"""The explorer in a browser: Bokeh's figures and widgets around an `Atlas`."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    Div,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    LogTicker,
    PreText,
    Select,
    Slider,
    Span,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

from toykern.explorer.atlas import PHASE, Atlas, View
from toykern.explorer.axis import MapAxis
from toykern.explorer.model import Details
from toykern.plot.axes import BLUE, GREY, VERMILLION, rgb
from toykern.plot.geometry import POLYTOPES
from toykern.results.store_format import StoreError

_NONE = "one of them"
_TICK_MS, _READ_S = 250, 0.1
_SIDE, _SMALL = 480, 300
_EMPTY = "#d1d1d1"


class Explorer:
    """What one visitor sees, and what their clicks do."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas, self.view = atlas, atlas.check(atlas.first_view())
        self.number: int | None = None
        dims = list(atlas.sweep.grid.dims)
        self.across = Select(title="across", options=dims, name="across")
        self.up = Select(title="up", options=dims, name="up", visible=len(dims) > 1)
        self.colour = Select(title="colour", options=list(atlas.colours), name="colour")
        self.best = Select(title="best by loss of all", options=[_NONE, *dims], name="best")
        self.sliders = {name: _slider(atlas.axis(name)) for name in dims}
        self.status = Div(name="status", width=_SIDE)
        self.words = Div(name="words", width=2 * _SMALL, text="A click on the map shows that model.")
        self.snippet = PreText(
            name="snippet", width=2 * _SMALL + 120, styles={"font-size": "12px"}, visible=False
        )
        self._map = _MapFigure()
        self._model = _ModelFigures()
        self._showing = False
        for select, name in ((self.across, "across"), (self.up, "up"), (self.colour, "colour")):
            select.on_change("value", self._changed(name))
        self.best.on_change("value", self._best_changed)
        for name, slider in self.sliders.items():
            slider.on_change("value", self._slid(name))
        self._map.figure.on_event(Tap, self._tapped)
        self.show(self.view)
        self.tick()

    @property
    def layout(self) -> Any:
        """All of it."""
        controls = row(self.across, self.up, self.colour, self.best)
        left = column(controls, self._map.figure, *self.sliders.values(), self.status)
        right = column(self.words, *self._model.rows, self.snippet)
        return row(left, right, name="explorer")

    def show(self, view: View) -> None:
        """Show another view of the map, and set all controls to it."""
        self.view = self.atlas.check(view)
        self._showing = True  # what the controls say now is no wish of the visitor
        try:
            self.across.value, self.colour.value = self.view.across, self.view.colour
            if self.view.up is not None:
                self.up.value = self.view.up
            self.best.value = _NONE if self.view.best is None else self.view.best
            taken = (self.view.across, self.view.up, self.view.best)
            for name, slider in self.sliders.items():
                slider.visible = name not in taken and len(self.atlas.axis(name).values) > 1
                slider.value = self.view.at[name]
                slider.title = f"{name} = {self.atlas.axis(name).values[self.view.at[name]]:.6g}"
        finally:
            self._showing = False
        self._draw()

    def tick(self) -> None:
        """Read on, and draw what is new."""
        if self.atlas.advance(self.view.colour, _READ_S):
            self._draw()

    def pick(self, x: float, y: float) -> None:
        """Show the model at a place on the map."""
        number = int(self._map.shown.number[self._map.shown.up.place(y), self._map.shown.across.place(x)])
        if number < 0:
            self.words.text = "<b>Nothing is there yet.</b>"
            return
        try:
            details = self.atlas.details(number)
        except StoreError as error:
            self.words.text = f"<b>{html.escape(str(error))}</b>"
            return
        self.number = number
        self._map.mark(self._map.shown.across.place(x), self._map.shown.up.place(y))
        values = ", ".join(f"{name} = {value:.6g}" for name, value in details.point.items())
        results = ", ".join(f"{name} {value:.6g}" for name, value in details.results.items())
        self.words.text = (
            f"<b>model {number}</b>: {html.escape(values)}<br>last loss "
            f"{details.loss[-1]:.6g}{', ' + html.escape(results) if results else ''}"
            f"{f', diverged at step {details.diverged_at}' if details.diverged_at >= 0 else ''}"
        )
        self.snippet.update(text=details.snippet, visible=True)
        self._model.show(details)

    def _draw(self) -> None:
        self._map.show(self.atlas, self.view)
        done, chunks = self.atlas.progress
        coarse = ", ".join(
            f"every {step}. point of {name}"
            for name, step in zip(self.atlas.sweep.grid.dims, self.atlas.coarse, strict=True)
            if step > 1
        )
        words = [f"{done:,} of {chunks:,} chunks finished"]
        words += ["reading …"] * self.atlas.waiting(self.view.colour)
        words += [f"the map shows {coarse}"] * bool(coarse)
        if self.view.best is not None:
            words.append(f"best {self.view.best} by {self.atlas.judge}")
        if self.view.colour == PHASE:
            words.append("white: not represented, blue: own dimension, red: in superposition")
        if self.atlas.problem is not None:
            words.append(f"<b>{html.escape(self.atlas.problem)}</b>")
        self.status.text = "; ".join(words)

    def _changed(self, name: str) -> Callable[[str, Any, Any], None]:
        def changed(_: str, before: Any, value: Any) -> None:
            if self._showing:
                return
            view = replace(self.view, **{name: value})
            if view.across == view.up:  # the axes change places
                view = replace(view, **{"up" if name == "across" else "across": before})
            self.show(view)
            self.tick()

        return changed

    def _best_changed(self, _: str, __: Any, value: str) -> None:
        if not self._showing:
            self.show(replace(self.view, best=None if value == _NONE else value))

    def _slid(self, name: str) -> Callable[[str, Any, Any], None]:
        def slid(_: str, __: Any, value: int) -> None:
            if not self._showing:
                self.show(replace(self.view, at={**self.view.at, name: int(value)}))

        return slid

    def _tapped(self, event: Any) -> None:
        self.pick(event.x, event.y)


def document(atlas: Atlas) -> Callable[[Any], None]:
    """What Bokeh's server calls for each visitor; all of them look at one atlas."""

    def make(doc: Any) -> None:
        explorer = Explorer(atlas)
        doc.title = f"{atlas.sweep.path.name} – toykern"
        doc.add_root(explorer.layout)
        doc.add_periodic_callback(explorer.tick, _TICK_MS)

    return make


def _slider(axis: MapAxis) -> Slider:
    last = len(axis.values) - 1
    return Slider(
        start=0, end=max(1, last), step=1, value=0, show_value=False, name=f"slider {axis.name}",
        width=_SIDE, visible=last > 0,
    )  # fmt: skip


class _MapFigure:
    """The map: an image of numbers with its colours beside it, or one of colours."""

    def __init__(self) -> None:
        self.figure = figure(
            width=_SIDE + 90, height=_SIDE, tools="pan,wheel_zoom,box_zoom,reset", name="map",
            background_fill_color=_EMPTY, x_range=(-0.5, 0.5), y_range=(-0.5, 0.5),
        )  # fmt: skip
        self.figure.grid.visible = False
        self.figure.toolbar.logo = None
        self._numbers, self._logs, self._colours = (ColumnDataSource(_no_image()) for _ in range(3))
        self._mark = ColumnDataSource({"x": [], "y": []})
        self._linear = LinearColorMapper(Viridis256, low=0, high=1, nan_color=_EMPTY)
        self._log = LogColorMapper(Viridis256, low=0.1, high=1, nan_color=_EMPTY)
        where = {"x": "x", "y": "y", "dw": "dw", "dh": "dh"}
        self.figure.image("image", source=self._numbers, color_mapper=self._linear, **where)
        self.figure.image("image", source=self._logs, color_mapper=self._log, **where)
        self.figure.image_rgba("image", source=self._colours, **where)
        self.figure.scatter(
            "x", "y", source=self._mark, marker="square", size=13, fill_alpha=0.0, line_color="black",
            line_width=2,
        )  # fmt: skip
        self._bars = [
            ColorBar(color_mapper=self._linear, width=14, visible=False),
            ColorBar(color_mapper=self._log, ticker=LogTicker(), width=14, visible=False),
        ]
        for bar in self._bars:
            self.figure.add_layout(bar, "right")
        self._axes: tuple[Any, ...] = ()

    def show(self, atlas: Atlas, view: View) -> None:
        """Draw a view."""
        self.shown = atlas.map(view)
        rows, columns = self.shown.values.shape
        where = {"x": [-0.5], "y": [-0.5], "dw": [columns], "dh": [rows]}
        if self.shown.rgb is not None:
            image = np.full((rows, columns, 4), 255, dtype=np.uint8)
            image[..., :3] = self.shown.rgb
            drawn, source = image.view(np.uint32).reshape(rows, columns), self._colours
        else:
            drawn, source = (
                self.shown.values.astype(np.float32),
                self._logs if self.shown.log else self._numbers,
            )
            mapper = self._log if self.shown.log else self._linear
            mapper.update(low=self.shown.low, high=self.shown.high)
        for each in (self._numbers, self._logs, self._colours):
            each.data = {"image": [drawn], **where} if each is source else _no_image()
        self._bars[0].visible = self.shown.rgb is None and not self.shown.log
        self._bars[1].visible = self.shown.rgb is None and self.shown.log
        axes = (view.across, view.up, columns, rows)
        if axes != self._axes:  # what was zoomed in on is of no meaning any more
            self._axes = axes
            _stretch(self.figure.x_range, -0.5, columns - 0.5)
            _stretch(self.figure.y_range, -0.5, rows - 0.5)
            _label(self.figure.xaxis[0], view.across, self.shown.across)
            _label(self.figure.yaxis[0], view.up or "", self.shown.up)
            self._mark.data = {"x": [], "y": []}
        self.figure.title.text = view.colour + (f", best {view.best}" if view.best is not None else "")

    def mark(self, x: int, y: int) -> None:
        """Show which point was picked."""
        self._mark.data = {"x": [x], "y": [y]}


def _no_image() -> dict[str, Any]:
    return {"image": [], "x": [], "y": [], "dw": [], "dh": []}


def _label(axis: Any, name: str, along: MapAxis) -> None:
    ticks = along.ticks()
    axis.axis_label = name
    axis.ticker = FixedTicker(ticks=list(ticks))
    axis.major_label_overrides = dict(ticks)


class _ModelFigures:
    """The figures of one model."""

    def __init__(self) -> None:
        self._features = ColumnDataSource({name: [] for name in _FEATURE})
        self._spokes = ColumnDataSource({"xs": [], "ys": [], "zs": []})
        self._gram = ColumnDataSource({"image": [], "n": [], "at": []})
        self._loss = ColumnDataSource({"step": [], "loss": []})
        self.plane = self._plane("features", "x", "xs", "y", "ys", "plane")
        self.side = self._plane("the same from the side", "x", "xs", "z", "zs", "side")
        self.gram = _small("WᵀW", "gram", width=_SMALL)
        steps = np.linspace(-1, 1, 256)[:, None]
        away = 1 - np.abs(steps) * (1 - np.where(steps < 0, rgb(BLUE), rgb(VERMILLION)))
        palette = ["#{:02x}{:02x}{:02x}".format(*row) for row in np.round(255 * away).astype(int).tolist()]
        self._shade = LinearColorMapper(palette, low=-1, high=1)
        self.gram.image("image", x="at", y="at", dw="n", dh="n", source=self._gram, color_mapper=self._shade)
        self.gram.add_layout(ColorBar(color_mapper=self._shade, width=10), "right")
        self.norm = _small("norm ‖Wᵢ‖", "norm", width=_SMALL)
        self.norm.vbar("feature", top="norm", width=0.8, source=self._features, color=BLUE)
        self.norm.add_layout(Span(location=1.0, dimension="width", line_color=GREY, line_dash="dotted"))
        self.share = _small("dimensionality of each feature", "dimensionality", width=_SMALL)
        for name, (above, below) in POLYTOPES.items():
            level = above / below
            self.share.add_layout(
                Span(location=level, dimension="width", line_color=GREY, line_dash="dotted", line_width=1)
            )
            self.share.text(
                [0.0], [level], text=[f"{name} {above}/{below}"], text_font_size="9px", text_color=GREY,
                x_offset=2, text_baseline="top" if name == "antiprism" else "bottom",
            )  # fmt: skip
        self.share.scatter("feature", "dimensionality", source=self._features, size=7, color=VERMILLION)
        _stretch(self.share.y_range, 0.0, 1.1)
        for each in (self.plane, self.side, self.norm, self.share):
            each.add_tools(
                HoverTool(tooltips=[("feature", "@feature"), ("norm", "@norm{0.0000}"),
                                    ("dimensionality", "@dimensionality{0.0000}"), ("bias", "@bias{0.0000}")])
            )  # fmt: skip
        self.curve = _small("loss", "loss", width=_SMALL, y_axis_type="log")
        self.curve.line("step", "loss", source=self._loss, color=BLUE, line_width=1.5)
        self.curve.xaxis[0].axis_label = "step"
        self.rows = [row(self.plane, self.side), row(self.gram, self.norm), row(self.share, self.curve)]
        for each in (self.plane, self.side, self.gram, self.norm, self.share, self.curve):
            each.visible = False  # until there is something to be seen

    def show(self, details: Details) -> None:
        """Draw a model."""
        self.curve.visible = True
        self._loss.data = {"step": details.steps, "loss": details.loss}
        there = details.weight is not None and bool(np.isfinite(details.weight).all())
        for each in (self.plane, self.gram, self.norm, self.share):
            each.visible = there
        self.side.visible = there and details.weight is not None and len(details.weight) > 2
        if not there:
            return
        along, principal = details.plane
        n = along.shape[1]
        norm, share = details.norm, details.dimensionality
        importance = np.ones(n) if details.importance is None else details.importance
        bias = np.full(n, np.nan) if details.bias is None else details.bias
        self._features.data = {
            "x": along[0], "y": along[1], "z": along[2], "feature": np.arange(n), "norm": norm, "bias": bias,
            "dimensionality": np.where(norm > 0.1, share, np.nan), "shade": _shades(importance),
            "label": [str(i) if n <= 20 else "" for i in range(n)],
        }  # fmt: skip
        self._spokes.data = {name + "s": [[0.0, float(v)] for v in along[k]] for k, name in enumerate("xyz")}
        gram = details.gram
        reach = max(1.0, float(np.abs(gram).max()))
        self._shade.update(low=-reach, high=reach)
        self._gram.data = {"image": [gram.astype(np.float32)], "n": [n], "at": [-0.5]}
        _stretch(self.gram.x_range, -0.5, n - 0.5)
        _stretch(self.gram.y_range, n - 0.5, -0.5)
        for each in (self.norm, self.share):
            _stretch(each.x_range, -0.5, n - 0.5)
        _stretch(self.norm.y_range, 0.0, max(1.15, 1.05 * float(norm.max())))
        far = 1.2 * max(1.0, float(np.abs(along).max()))
        for each in (self.plane, self.side):
            _stretch(each.x_range, -far, far)
            _stretch(each.y_range, -far, far)
        what = "principal direction" if principal else "hidden dimension"
        for each, k in ((self.plane, 2), (self.side, 3)):
            each.xaxis[0].axis_label, each.yaxis[0].axis_label = f"{what} 1", f"{what} {k}"

    def _plane(self, title: str, x: str, xs: str, y: str, ys: str, name: str) -> Any:
        made = _small(title, name, width=_SMALL, frame_width=_SMALL - 80, frame_height=_SMALL - 80)
        turn = np.linspace(0, 2 * np.pi, 100)
        made.line(np.cos(turn), np.sin(turn), color=GREY, line_dash="dotted")
        made.multi_line(xs, ys, source=self._spokes, color=GREY)
        made.scatter(x, y, source=self._features, size=9, fill_color="shade", line_color="black")
        made.text(x, y, text="label", source=self._features, x_offset=6, y_offset=-4, text_font_size="11px")
        return made


_FEATURE = ("x", "y", "z", "feature", "norm", "bias", "dimensionality", "shade", "label")


def _stretch(along: Any, start: float, end: float) -> None:
    """Let a range go from here to there, also when it is reset."""
    along.update(start=start, end=end, reset_start=start, reset_end=end)


def _small(title: str, name: str, **options: Any) -> Any:
    if name != "loss":  # that one follows its data
        options = {"x_range": (-1.0, 1.0), "y_range": (-1.0, 1.0), **options}
    made = figure(
        title=title, height=_SMALL - 60 if name not in ("plane", "side", "gram") else _SMALL, name=name,
        tools="pan,wheel_zoom,reset", toolbar_location=None, **options,
    )  # fmt: skip
    if name in ("gram", "norm", "dimensionality"):
        made.xaxis[0].axis_label = "feature"
        for axis in made.axis if name == "gram" else made.xaxis:
            axis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    return made


def _shades(values: np.ndarray) -> list[str]:
    """From dark to light, by size."""
    reach = float(np.ptp(values))
    level = (values - values.min()) / reach if reach > 0 else np.full(len(values), 0.6)
    return [Viridis256[int(255 * each)] for each in level]
