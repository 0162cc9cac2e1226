"""Pictures: what is drawn where, in which colours, and what is refused. Everything on the Agg backend."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toykern import metrics, plot
from toykern.arguments.grids import grid
from toykern.plot.axes import BLUE, VERMILLION
from toykern.plot.phases import phase_colours

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

IMPORTANCE, DENSITY = np.geomspace(0.1, 10.0, 7), np.geomspace(0.01, 1.0, 5)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def ideal_weights(features: int) -> torch.Tensor:
    """The best hand-made solution at every point, [importances, densities, features - 1, features]."""
    phases = metrics.best_solution(DENSITY[None, :], IMPORTANCE[:, None], features)
    hidden = features - 1
    made = {
        metrics.NOT_REPRESENTED: torch.eye(hidden, features),
        metrics.DEDICATED: torch.eye(hidden, features).roll(1, dims=1),
        metrics.SUPERPOSITION: torch.cat([torch.eye(hidden), -torch.eye(hidden)[:, -1:]], dim=1),
    }
    return torch.stack([torch.stack([made[int(phase)] for phase in row]) for row in phases])


def colour_at(ax, importance: float, density: float) -> np.ndarray:
    """Colour drawn at a point, looked up in the mesh by its position on the axes."""
    mesh = ax.collections[0]
    corners = np.asarray(mesh.get_coordinates())
    column = np.searchsorted(corners[0, :, 0], importance) - 1
    row = np.searchsorted(corners[:, 0, 1], density) - 1
    colours = np.asarray(mesh.get_facecolors()).reshape(len(DENSITY), len(IMPORTANCE), 4)
    return colours[row, column, :3]


@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("order", [1, -1], ids=["ascending", "descending"])
def test_phase_diagram_colours_each_point_by_its_phase(features, order):
    weight = ideal_weights(features).numpy()[:, ::order].copy()
    ax = plot.phase_diagram(weight, IMPORTANCE, DENSITY[::order])
    ax.figure.canvas.draw()
    expected = {
        metrics.NOT_REPRESENTED: (1.0, 1.0, 1.0),
        metrics.DEDICATED: to_rgb(BLUE),
        metrics.SUPERPOSITION: to_rgb(VERMILLION),
    }
    seen = set()
    for r in IMPORTANCE:
        for p in DENSITY:
            phase = int(metrics.best_solution(p, r, features))
            seen.add(phase)
            np.testing.assert_allclose(colour_at(ax, r, p), expected[phase], atol=1e-6)
    assert seen == {0, 1, 2}


def test_phase_diagram_axes_are_labelled_and_logarithmic():
    ax = plot.phase_diagram(ideal_weights(2), IMPORTANCE, DENSITY)
    ax.figure.canvas.draw()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlim(), ax.get_ylim()) == ((0.1, 10.0), (0.01, 1.0))
    assert "importance" in ax.get_xlabel() and "1 − S" in ax.get_ylabel()
    labels = [text.get_text() for text in ax.get_xticklabels() if text.get_text()]
    assert {"0.1", "1", "10"} <= set(labels)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["not represented", "own dimension", "in superposition", "theory: equal loss"]


def test_phase_diagram_boundary_is_the_exact_one():
    ax = plot.phase_diagram(ideal_weights(2), IMPORTANCE, DENSITY)
    # The contour of the third phase is the whole border of the superposition region.
    border = np.concatenate([path.vertices for path in ax.collections[3].get_paths()])
    np.testing.assert_allclose(border[:, 1], metrics.phase_boundary(border[:, 0]), rtol=2e-3)
    assert border[:, 0].min() < 0.11 and border[:, 0].max() > 9.0


def test_phase_diagram_without_boundaries_or_key():
    ax = plot.phase_diagram(ideal_weights(2), IMPORTANCE, DENSITY, boundaries=False, key=False, title="t")
    assert len(ax.collections) == 1 and ax.get_legend() is None and ax.get_title() == "t"
    wide = torch.zeros(7, 5, 2, 5)
    assert len(plot.phase_diagram(wide, IMPORTANCE, DENSITY).collections) == 1


def test_phase_colours_span_norm_and_superposition():
    corners = phase_colours([0.0, 1.0, 1.0, 7.0, 0.5], [1.0, 0.0, 1.0, 9.0, 0.0])
    np.testing.assert_allclose(corners[0], (1, 1, 1))
    np.testing.assert_allclose(corners[1], to_rgb(BLUE))
    np.testing.assert_allclose(corners[2], to_rgb(VERMILLION))
    np.testing.assert_allclose(corners[3], to_rgb(VERMILLION))
    np.testing.assert_allclose(corners[4], 0.5 + 0.5 * np.array(to_rgb(BLUE)))
    grey = phase_colours([np.nan], [0.0])[0]
    assert grey[0] == grey[1] == grey[2] and 0.5 < grey[0] < 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 7, 1, 2)}, r"\[7, 5, …\], got \(5, 7, 1, 2\)"),
        ({"weight": torch.zeros(35, 1, 2)}, "weight must be"),
        ({"density": np.linspace(0.0, 1.0, 5)}, "must be positive"),
        ({"weight": torch.zeros(7, 5, 2, 5), "boundaries": True}, "not n=5, m=2"),
    ],
)
def test_phase_diagram_refuses(change, message):
    arguments = {"weight": ideal_weights(2), "importance": IMPORTANCE, "density": DENSITY} | change
    with pytest.raises(ValueError, match=message):
        plot.phase_diagram(**arguments)


def test_loss_curves_draw_few_models_and_summarise_many():
    steps = np.arange(1, 21) * 10
    few = plot.loss_curves(torch.rand(3, 20) + 0.1, steps)
    assert len(few.get_lines()) == 3 and len(few.collections) == 0
    assert few.get_lines()[0].get_xdata().tolist() == steps.tolist()
    losses = torch.rand(50, 20) + 0.1
    many = plot.loss_curves(losses, steps)
    (line,) = many.get_lines()
    np.testing.assert_allclose(line.get_ydata(), np.median(losses.double(), axis=0))
    assert len(many.collections) == 1
    assert "50 models" in many.get_legend().get_texts()[0].get_text()


def test_loss_curves_of_a_run_are_grouped_by_an_axis_of_its_grid():
    points = grid(density=np.geomspace(0.01, 1.0, 30), seed=range(4))
    run = SimpleNamespace(
        grid=points,
        loss=torch.rand(120, 5) + 0.1,
        record_steps=np.arange(1, 6) * 7,
        config={"loss_reduction": "sum"},
    )
    ax = plot.loss_curves(run, by="density")
    assert len(ax.get_lines()) == 10 and len(ax.collections) == 0
    for line, density in ((ax.get_lines()[0], 0.01), (ax.get_lines()[-1], 1.0)):
        expected = np.median(run.loss[points.index(density=density)].double(), axis=0)
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert ax.get_lines()[0].get_xdata().tolist() == [7, 14, 21, 28, 35]
    assert ax.get_ylabel() == "loss (sum over features)"
    assert ax.get_legend().get_texts()[0].get_text() == "density = 0.01"


def test_loss_curves_leave_out_records_not_reached_and_models_that_diverged():
    losses = torch.rand(30, 10) + 0.1
    losses[:, 6:] = torch.nan
    losses[0, 3:] = torch.nan
    ax = plot.loss_curves(losses, range(1, 11))
    assert ax.get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(ax.get_lines()[0].get_ydata()).all()


def test_loss_curves_refuse():
    with pytest.raises(ValueError, match="steps must give the step of each of 4 records"):
        plot.loss_curves(torch.rand(2, 4))
    with pytest.raises(ValueError, match="labels must name 2 curves, got 1"):
        plot.loss_curves(torch.rand(2, 4), range(1, 5), labels=["a"])
    with pytest.raises(ValueError, match="by='seed' is not an axis"):
        plot.loss_curves(torch.rand(2, 4), range(1, 5), by="seed")


def test_feature_directions_put_points_at_the_columns():
    weight = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    ax = plot.feature_directions(weight, importance=0.9 ** np.arange(6))
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets()), weight.T, rtol=1e-6)
    assert sorted(text.get_text() for text in ax.texts) == list("012345")
    assert ax.get_aspect() == 1.0
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("hidden dimension 1", "hidden dimension 2")
    with pytest.raises(ValueError, match=r"weight must be \[2, n_features\], got \(3, 6\)"):
        plot.feature_directions(torch.zeros(3, 6))


def test_interference_shows_the_matrix_the_bias_and_the_norms():
    weight = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.5]])
    bias = torch.tensor([0.0, -0.2, 0.3])
    ax = plot.interference(weight, bias)
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), weight.T @ weight)
    column, bars = ax.child_axes[:2]
    np.testing.assert_allclose(np.asarray(column.images[0].get_array())[:, 0], bias)
    assert [bar.get_width() for bar in bars.patches] == [1.0, 1.0, 0.5]
    colours = [bar.get_facecolor() for bar in bars.patches]
    cividis = matplotlib.colormaps["cividis"]
    assert colours == [cividis(1.0), cividis(1.0), cividis(0.0)]
    assert bars.get_ylim() == ax.get_ylim()  # row i of the bars is row i of the matrix
    with pytest.raises(ValueError, match="weight must be one model"):
        plot.interference(torch.zeros(4, 2, 3))


def test_dimensionality_scatter_places_digons_at_one_half():
    digons = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    alone = torch.eye(2, 4)
    ax = plot.dimensionality_scatter(torch.stack([digons, alone]), density=[0.1, 1.0])
    points = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(points, [[10, 0.5]] * 4 + [[1, 1.0]] * 2)  # absent features are left out
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), [1, 10])
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.5])
    assert "digon 1/2" in [text.get_text() for text in ax.texts]
    with pytest.raises(ValueError, match=r"density \[models\], got \(2, 2, 4\) and \(3,\)"):
        plot.dimensionality_scatter(torch.stack([digons, alone]), density=[0.1, 1.0, 0.2])


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot.phase_diagram(ideal_weights(3), IMPORTANCE, DENSITY, ax=ax),
        lambda ax: plot.loss_curves(torch.rand(12, 4), [1, 2, 3, 4], ax=ax),
        lambda ax: plot.feature_directions(torch.rand(1, 2, 30), ax=ax),
        lambda ax: plot.interference(torch.rand(1, 5, 20), torch.rand(20), ax=ax),
        lambda ax: plot.dimensionality_scatter(torch.rand(4, 5, 20), [0.1, 0.2, 0.4, 1.0], ax=ax),
    ],
)
def test_every_picture_draws_on_the_axes_given_and_returns_them(tmp_path, draw):
    figure = Figure(figsize=(7, 5), layout="constrained")
    ax = figure.subplots()
    assert draw(ax) is ax
    figure.savefig(tmp_path / "picture.png")
    assert ax.get_xlabel() and ax.get_ylabel()
