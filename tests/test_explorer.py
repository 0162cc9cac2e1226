"""Looking at a sweep: what the map shows, what a click shows, and both in a browser without a network."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser_kit import CHROMIUM, Page, until
from hypothesis import given
from hypothesis import strategies as st

import toykern as tk
from toykern import metrics
from toykern.cli import main
from toykern.explorer import Atlas, View
from toykern.explorer.atlas import DENSE, PHASE
from toykern.explorer.axis import MapAxis

DENSITY, IMPORTANCE = np.geomspace(0.01, 1.0, 5), np.array([2.0, 0.5, 1.0])
GRID = tk.grid(density=DENSITY, importance=IMPORTANCE, seed=range(4))
RECORD = ("loss", "features_per_dimension", "feature_dimensionality")


def plan(points, index):
    importance = torch.ones(points.n_models, 4)
    importance[:, -1] = points.importance
    return {
        "model": tk.TiedAutoencoder(4, 3, points.n_models, seed=index),
        "data": tk.SparseFeatures(4, points.density[:, None]),
        "importance": importance,
    }


def measure(run, points, index):
    return {"fresh_loss": tk.evaluate(run.model, run.data, samples=100, seed=0), "number": index}


def swept(path, measure=measure, chunk=12):
    return tk.sweep(
        GRID, plan, path, measure=measure, chunk=chunk, steps=6, batch_size=16, record_every=2, record=RECORD,
        progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tk.Sweep:
    return swept(tmp_path_factory.mktemp("explorer") / "s.zarr")


def read_whole(atlas: Atlas, colour: str) -> None:
    while atlas.advance(colour, 0.0) or atlas.waiting(colour):
        pass


# Axes


@given(
    st.floats(1e-3, 1e3), st.floats(1.01, 100.0), st.integers(3, 40), st.sampled_from(["linear", "log"]),
    st.permutations(range(3)),
)  # fmt: skip
def test_an_axis_is_spaced_as_its_numbers_are(first, ratio, points, scale, order):
    values = (np.linspace if scale == "linear" else np.geomspace)(first, first * ratio, points)
    shuffled = np.concatenate([values[list(order)], values[3:]])
    axis = MapAxis.of("a", shuffled)
    assert axis.scale == scale or np.allclose(np.diff(values), np.diff(values)[0], rtol=1e-3)
    assert np.array_equal(axis.values, np.sort(values)) and np.array_equal(shuffled[axis.order], axis.values)
    ticks = axis.ticks()
    assert all(-1e-6 <= at <= points - 1 + 1e-6 for at in ticks)
    for at, label in ticks.items():  # what stands there is what a point there would have
        low, part = min(int(at), points - 2), at - min(int(at), points - 2)
        between = axis.values[low] + part * (axis.values[low + 1] - axis.values[low])
        assert float(label) == pytest.approx(between, rel=0.3 if axis.scale == "log" else 1e-2)


def test_axes_of_any_numbers_have_a_step_for_each():
    axis = MapAxis.of("a", np.array([7.0, 0.0, 1.0]))
    assert axis.scale == "steps" and axis.ticks() == {0.0: "0", 1.0: "1", 2.0: "7"}
    assert [axis.place(at) for at in (-3.0, 0.4, 1.6, 9.0, np.nan)] == [0, 0, 2, 2, 0]
    assert MapAxis.of("seed", np.arange(100)).ticks()[20.0] == "20"
    assert MapAxis.of("one", np.array([3.0])).ticks() == {0.0: "3"}
    third = 16 * np.log10(3)
    ticks = MapAxis.of("density", np.geomspace(0.01, 1, 33)).ticks()
    assert list(ticks) == pytest.approx([0, third, 16, 16 + third, 32])
    assert list(ticks.values()) == ["0.01", "0.03", "0.1", "0.3", "1"]


# Maps


def test_the_map_shows_the_best_of_all_seeds(done):
    atlas = Atlas(done)
    view = atlas.first_view()
    assert view == View("density", "importance", PHASE, "seed", {"density": 0, "importance": 0, "seed": 0})
    assert atlas.judge == "fresh_loss"
    assert (atlas.map(view).number == -1).all() and np.isnan(atlas.map(view).values).all()
    read_whole(atlas, PHASE)
    shown = atlas.map(view)
    best = done.read("fresh_loss").argmin(axis=2)  # [density, importance]
    order = np.argsort(IMPORTANCE)
    numbers = np.arange(60).reshape(5, 3, 4)
    expected = np.take_along_axis(numbers, best[..., None], axis=2)[..., 0].T[order]
    assert np.array_equal(shown.number, expected)
    weight = torch.from_numpy(done.read("weight").reshape(60, 3, 4))[shown.number.ravel()]
    assert np.allclose(shown.values.ravel(), weight[..., -1].norm(dim=1))
    vermillion = metrics.superposition(weight)[:, -1].reshape(3, 5) >= 1
    assert shown.rgb.shape == (3, 5, 3)
    assert (shown.rgb[vermillion.numpy()][:, 0] >= shown.rgb[vermillion.numpy()][:, 2]).all()
    assert shown.up.values.tolist() == [0.5, 1.0, 2.0] and shown.across.scale == "log"


@pytest.mark.parametrize("colour", ["loss", DENSE, "fresh_loss", "number", *RECORD[1:]])
def test_every_colour_is_what_was_stored(colour, done):
    atlas = Atlas(done)
    assert colour in atlas.colours
    read_whole(atlas, colour)
    shown = atlas.map(View("seed", "density", colour, None, {"importance": 1}))
    name = {DENSE: "features_per_dimension"}.get(colour, colour)
    stored = done.read(name)
    stored = stored[..., -1] if name in ("loss", "features_per_dimension") else stored
    stored = stored[:, :, :, -1].mean(axis=-1) if name == "feature_dimensionality" else stored
    # Places along other axes count in the order of their numbers: 1 is an importance of 1.
    assert np.allclose(shown.values, stored[:, 2], rtol=1e-5) and shown.rgb is None
    assert shown.low == shown.values.min() and shown.high == shown.values.max()
    assert shown.log == (shown.low > 0 and shown.high / shown.low > 30)
    assert np.array_equal(shown.number, np.arange(60).reshape(5, 3, 4)[:, 2])


def test_diverged_models_are_never_the_best_and_are_shown(tmp_path):
    def plan_wild(points, index):
        return {**plan(points, index), "optimizer": tk.SGD(lr=torch.where(points.seed < 3, 1e30, 1e-3))}

    done = tk.sweep(GRID, plan_wild, tmp_path / "s.zarr", steps=6, batch_size=256, progress=False)
    atlas = Atlas(done)
    read_whole(atlas, "diverged at step")
    assert atlas.judge == "loss"
    view = dataclasses.replace(atlas.first_view(), colour="diverged at step")
    finite = done.read("diverged_at") < 0
    shown = atlas.map(view)
    assert not finite[..., :3].any() and finite[..., 3].all()
    assert (shown.number % 4 == 3).all() and np.isnan(shown.values).all()
    one = atlas.map(dataclasses.replace(view, best=None))
    assert np.array_equal(one.values.T, done.read("diverged_at")[:, np.argsort(IMPORTANCE), 0])
    assert atlas.details(0).diverged_at == done.read("diverged_at")[0, 0, 0]


def test_a_map_of_a_growing_sweep_is_grey_where_nothing_is_yet(done, tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("toykern.explorer.atlas.time.monotonic", lambda: 2.0 * next(clock))
    seen = []

    def looking(run, points, index):
        if len(index) > 1:
            if not seen:
                seen.append(Atlas(tk.open_sweep(tmp_path / "s.zarr")))
            seen[0].advance("loss", 1e6)
            seen.append(seen[0].map(dataclasses.replace(seen[0].first_view(), colour="loss")))
        return measure(run, points, index)

    swept(tmp_path / "s.zarr", looking)
    atlas, *maps = seen
    assert [int((shown.number >= 0).sum()) for shown in maps] == [0, 3, 6, 9, 12]
    assert all(np.isnan(shown.values[shown.number < 0]).all() for shown in maps)
    assert atlas.advance("loss", 1e6) and not atlas.advance("loss", 1e6)
    assert atlas.progress == (5, 5) and not atlas.waiting("loss")
    whole = Atlas(done)
    read_whole(whole, "loss")
    view = dataclasses.replace(whole.first_view(), colour="loss")
    assert np.array_equal(atlas.map(view).values, whole.map(view).values)


def test_what_an_extended_sweep_had_before_is_on_the_map(tmp_path):
    def by_point(points, index):
        return {**plan(points, points.seed), "seed": points.seed}

    def failing(run, points, index):
        raise RuntimeError("stop here")

    few = tk.grid(density=DENSITY, importance=IMPORTANCE, seed=[0, 2])
    settings = {"steps": 6, "batch_size": 16, "record_every": 2, "progress": False}
    small = tk.sweep(few, by_point, tmp_path / "s.zarr", **settings)
    loss = small.read("loss")[..., -1]
    with pytest.raises(RuntimeError, match="stop here"):
        tk.sweep(GRID, by_point, small.path, extend=True, chunk=30, measure=failing, **settings)
    atlas = Atlas(tk.open_sweep(small.path))
    read_whole(atlas, "loss")
    assert atlas.progress[0] == 0
    shown = atlas.map(View("seed", "density", "loss", None, {"importance": 1}))
    assert np.array_equal(shown.values[:, [0, 2]], loss[:, 2]) and (shown.number[:, [1, 3]] == -1).all()
    assert np.isnan(shown.values[:, [1, 3]]).all()
    assert atlas.details(int(shown.number[1, 2])).loss[-1] == loss[1, 2, 1]


def test_a_large_sweep_has_a_coarser_map(done):
    atlas = Atlas(done, models=20)
    assert atlas.coarse == (2, 1, 2)
    read_whole(atlas, "number")
    shown = atlas.map(View("density", "importance", "number", None, {"seed": 1}))
    places = np.arange(60).reshape(5, 3, 4)[::2, :, 2].T[np.argsort(IMPORTANCE)]
    assert np.array_equal(shown.number, places) and np.array_equal(shown.values, places)
    assert shown.across.values.tolist() == DENSITY[::2].tolist()


def test_a_picture_has_at_most_so_many_pixels(done, monkeypatch):
    monkeypatch.setattr("toykern.explorer.atlas.PIXELS", 2)
    atlas = Atlas(done)
    read_whole(atlas, "number")
    shown = atlas.map(View("density", "seed", "number", None, {"importance": 2}))
    assert shown.number.tolist() == [[0, 36], [2, 38]]
    assert shown.across.values.tolist() == DENSITY[[0, 3]].tolist()


def test_views_that_cannot_be_are_put_right(done):
    atlas = Atlas(done)
    assert atlas.check(View("seed", "seed", "loss", "seed")).up == "density"
    assert atlas.check(View("seed", "density", "loss", "seed")).best is None
    assert atlas.check(View("seed", "density", "loss", None, {"importance": 4})).at["importance"] == 1


def test_a_grid_of_one_axis_is_a_line(tmp_path):
    def plan_small(points, index):
        model = tk.TiedAutoencoder(2, 1, points.n_models, seed=index)
        return {"model": model, "data": tk.SparseFeatures(2, 0.1)}

    grid = tk.grid(seed=range(5))
    done = tk.sweep(grid, plan_small, tmp_path / "s.zarr", steps=2, batch_size=4, progress=False)
    atlas = Atlas(done)
    read_whole(atlas, "loss")
    shown = atlas.map(atlas.check(dataclasses.replace(atlas.first_view(), colour="loss")))
    assert shown.number.tolist() == [[0, 1, 2, 3, 4]]
    assert np.array_equal(shown.values[0], done.read("loss")[:, -1])


def test_damage_is_said_and_the_rest_is_shown(tmp_path):
    done = swept(tmp_path / "s.zarr")
    piece = done.path / "loss" / "c" / "1" / "0" / "0" / "0"
    piece.write_bytes(piece.read_bytes()[:-3])
    atlas = Atlas(tk.open_sweep(done.path))
    read_whole(atlas, "loss")
    assert "chunk 1 of array loss cannot be read" in atlas.problem
    shown = atlas.map(dataclasses.replace(atlas.first_view(), colour="loss"))
    assert np.isnan(shown.values[:, 1]).all() and np.isfinite(shown.values[:, 2:]).all()
    with pytest.raises(tk.StoreError, match="chunk 1 of array loss cannot be read"):
        atlas.details(12)
    (tmp_path / "s.zarr").rename(tmp_path / "t.zarr")
    gone = Atlas(done)
    assert gone.advance("loss") and "s.zarr is gone" in gone.problem


# One model


def test_a_model_is_shown_as_it_is_stored(done):
    details = Atlas(done).details(17)  # [1, 1, 1]
    assert details.point == {"density": DENSITY[1], "importance": 0.5, "seed": 1}
    weight = done.read("weight")[1, 1, 1]
    assert np.array_equal(details.weight, weight) and np.array_equal(details.bias, done.read("bias")[1, 1, 1])
    assert np.allclose(details.gram, weight.T @ weight, atol=1e-6)
    assert np.allclose(details.norm, np.linalg.norm(weight, axis=0))
    expected = metrics.feature_dimensionality(torch.from_numpy(weight).double())
    assert np.allclose(details.dimensionality, expected)
    assert np.array_equal(details.loss, done.read("loss")[1, 1, 1]) and details.steps.tolist() == [2, 4, 6]
    assert details.importance.tolist() == [1, 1, 1, 0.5] and details.diverged_at == -1
    assert details.results == {"fresh_loss": float(done.read("fresh_loss")[1, 1, 1]), "number": 17.0}
    along, principal = details.plane
    assert np.array_equal(along, details.weight) and not principal
    with pytest.raises(IndexError, match="number must be from 0 to 59, not 60"):
        Atlas(done).details(60)


@pytest.mark.parametrize("hidden", [1, 2, 5])
def test_other_sizes_are_shown_in_three_dimensions(hidden, done):
    generator = torch.Generator().manual_seed(hidden)
    weight = torch.randn(hidden, 6, generator=generator, dtype=torch.float64).numpy()
    along, principal = dataclasses.replace(Atlas(done).details(0), weight=weight).plane
    assert along.shape == (3, 6) and principal == (hidden > 3)
    if hidden <= 3:
        assert np.array_equal(along[:hidden], weight) and not along[hidden:].any()
    else:  # no other three directions hold more of it
        held = np.linalg.svd(weight, compute_uv=False)[:3]
        assert np.allclose(np.linalg.svd(along, compute_uv=False), held)
        assert np.all(np.linalg.norm(along, axis=0) <= np.linalg.norm(weight, axis=0) + 1e-12)


def test_the_snippet_loads_and_trains_the_model_again(done):
    details = Atlas(done).details(17)
    names = {"plan": plan}
    exec(details.snippet, names)
    assert np.array_equal(names["model"]["weight"], details.weight)
    assert float(names["model"]["density"]) == details.point["density"]
    assert np.array_equal(names["run"].model.weight[0].detach(), details.weight)
    assert np.array_equal(names["run"].loss[0], details.loss)


def test_a_model_that_is_not_there_yet_is_said(tmp_path):
    def stopping(run, points, index):
        if int(index[0]) == 12:
            raise RuntimeError("stop here")
        return measure(run, points, index)

    with pytest.raises(RuntimeError, match="stop here"):
        swept(tmp_path / "s.zarr", stopping)
    with pytest.raises(tk.StoreError, match="model 12 of .* is not finished"):
        Atlas(tk.open_sweep(tmp_path / "s.zarr")).details(12)


def test_a_figure_for_where_there_is_no_browser(done, capsys):
    figure = done.explore()
    assert f"toykern explore {done.path}" in capsys.readouterr().out
    left, middle, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("density", "importance")
    best = int(done.read("fresh_loss").argmin())
    assert f"the best: model {best}," in figure.get_supxlabel()
    assert np.array_equal(right.lines[0].get_ydata(), done.read("loss").reshape(60, 3)[best])
    figure.canvas.draw()


# The command and the browser


def test_what_cannot_be_explored_is_refused(tmp_path, capsys):
    assert main(["explore", str(tmp_path / "nothing.zarr")]) == 2
    assert "nothing.zarr does not exist" in capsys.readouterr().err
    for port in ("-1", "65536", "x"):
        with pytest.raises(SystemExit):
            main(["explore", "s.zarr", "--port", port])
        assert "--port: must be a whole number from 0 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(done, capsys):
    pytest.importorskip("bokeh", reason="bokeh is not installed")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["explore", str(done.path), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


def test_controls_and_clicks_without_a_browser(done):
    pytest.importorskip("bokeh", reason="bokeh is not installed")
    from toykern.explorer.view import Explorer

    explorer = Explorer(Atlas(done))
    while explorer.atlas.waiting(PHASE):
        explorer.tick()
    assert "5 of 5 chunks finished; best seed by fresh_loss" in explorer.status.text
    assert [name for name, slider in explorer.sliders.items() if slider.visible] == []
    explorer.pick(1.2, 2.1)
    shown = explorer.atlas.map(explorer.view)
    assert explorer.number == shown.number[2, 1] and f"model {explorer.number}" in explorer.words.text
    assert explorer.snippet.text == explorer.atlas.details(explorer.number).snippet
    explorer.across.value = "importance"  # the other axis takes the place that is free
    assert (explorer.view.across, explorer.view.up) == ("importance", "density")
    assert explorer.up.value == "density"
    explorer.best.value = "one of them"
    assert explorer.sliders["seed"].visible and explorer.view.best is None
    explorer.sliders["seed"].value = 3
    explorer.colour.value = "number"
    while explorer.atlas.waiting("number"):
        explorer.tick()
    explorer.pick(0.0, 4.0)
    assert explorer.number == 4 * 12 + 1 * 4 + 3 and "number 55" in explorer.words.text
    explorer.up.value = "seed"
    assert (explorer.view.across, explorer.view.up) == ("importance", "seed")
    assert explorer.sliders["density"].visible and not explorer.sliders["seed"].visible


NAMED = "Bokeh.documents[0].get_model_by_name"
SELECT = """(() => {{
  const input = Bokeh.index.find_one({named}('{name}')).input_el;
  input.value = '{value}';
  input.dispatchEvent(new Event('change'));
}})()"""
WHERE = """(() => {{
  const view = Bokeh.index.find_one({named}('map')), box = view.el.getBoundingClientRect();
  return [box.x + view.frame.x_scale.compute({x}), box.y + view.frame.y_scale.compute({y})];
}})()"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_in_a_browser(done, tmp_path):
    pytest.importorskip("bokeh", reason="bokeh is not installed")
    program = subprocess.Popen(
        [sys.executable, "-u", "-m", "toykern", "explore", str(done.path), "--port", "0"],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tk.__file__).parents[1]), "BOKEH_RESOURCES": "cdn"},
    )  # fmt: skip
    try:
        url = re.search(r"http://127\.0\.0\.1:(\d+)/", program.stdout.readline())
        port = url[1]
        assert f"ssh -L {port}:127.0.0.1:{port} " in program.stdout.readline()
        asyncio.run(_browse(url[0], Atlas(done), tmp_path))
    finally:
        program.send_signal(signal.SIGINT)
        assert program.wait() == 0


async def _browse(url: str, atlas: Atlas, folder: Path) -> None:
    read_whole(atlas, PHASE)
    read_whole(atlas, "loss")

    async def text(name: str) -> str:
        return await page.run(f"{NAMED}('{name}').text")

    async def pick(x: int, y: int) -> None:
        await page.click(*await page.run(WHERE.format(named=NAMED, x=x, y=y)))

    async def says(words: str) -> None:
        async def said() -> bool:
            return words in await text("words")

        await until(said)

    async def drawn() -> bool:
        return await page.run(
            "window.Bokeh !== undefined && Bokeh.documents.length > 0 && "
            f"Bokeh.index.find_one({NAMED}('map')) !== null && "
            f"{NAMED}('status').text.startsWith('5 of 5 chunks finished; best')"
        )

    async with Page(folder / "profile") as page:
        await page.send("Page.navigate", url=url)
        await until(drawn)
        first = await page.run(WHERE.format(named=NAMED, x=0, y=0))
        last = await page.run(WHERE.format(named=NAMED, x=4, y=2))
        assert last[0] > first[0] + 200 and last[1] < first[1] - 100
        shown = atlas.map(atlas.first_view())
        await pick(3, 1)
        details = atlas.details(int(shown.number[1, 3]))
        await says(f"model {details.number}</b>")
        assert f"last loss {details.loss[-1]:.6g}" in await text("words")
        assert await text("snippet") == details.snippet
        seen = await page.run(f"Array.from({NAMED}('norm').renderers[0].data_source.get_column('norm'))")
        assert np.allclose(seen, details.norm)

        await page.run(SELECT.format(named=NAMED, name="across", value="seed"))
        await page.run(SELECT.format(named=NAMED, name="colour", value="loss"))

        async def changed() -> bool:
            return await page.run(f"{NAMED}('map').title.text === 'loss'")

        await until(changed)
        await pick(3, 2)
        view = View("seed", "importance", "loss", None, {"density": 0})
        number = int(atlas.map(view).number[2, 3])
        await says(f"model {number}</b>")
        await page.picture(folder / "explorer.png")
        assert (folder / "explorer.png").stat().st_size > 20_000
        outside = [one for one in page.asked if not one.startswith(("data:", url, url.replace("http", "ws")))]
        assert outside == [] and page.errors == []


def test_a_store_is_shown_to_this_machine_alone(done):
    pytest.importorskip("bokeh", reason="bokeh is not installed")
    from toykern.explorer.server import server_of

    async def listen() -> None:
        server = server_of(Atlas(done), 0)
        try:
            addresses = [each.getsockname()[0] for each in server._http._sockets.values()]
            assert addresses == ["127.0.0.1"]
        finally:
            server.stop()

    asyncio.run(listen())
