"""`toykern phase-diagram`: options, training, picture and store of the phase diagram."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toykern.cli.arguments import (
    MAX_SIZE,
    Problem,
    check_device,
    learning_rate,
    share_of_text,
    short,
    whole,
)
from toykern.cli.pictures import check_picture, put_picture
from toykern.cli.workers import scheduler, workers
from toykern.terminal import say

if TYPE_CHECKING:
    from toykern.experiments.phase_diagram import PhaseDiagram
    from toykern.sweeps import Sweep

_PHASE_DESCRIPTION = """\
Trains the phase diagram of "Toy Models of Superposition" (Elhage et al. 2022) from scratch and draws it.

Every point of the diagram is a tiny network that must squeeze n features into n - 1 dimensions. How often
features are active (the density, 1 - sparsity) varies from bottom to top, how much the last feature matters
(its relative importance) from left to right. The colour shows what the trained network does with the last
feature: leave it out, give it a dimension of its own, or store it in superposition with another one. At each
point several networks with different seeds are trained, and the best is shown. Black lines are where the
best solution that can be made by hand changes, computed exactly.
"""

_PHASE_EPILOG = """\
examples:
  toykern phase-diagram
      phase_diagram.png and phase_diagram.zarr in this directory
  toykern phase-diagram --features 3 --out three.png --store three.zarr
  toykern phase-diagram --grid 256x256 --seeds 16 --steps 10000 --lr 0.001 --device cuda --resume
      a million networks, finer and longer; stopped by whatever, the same command goes on
  toykern phase-diagram --grid 16x16 --steps 500 --no-store --out quick.png

Networks are trained in chunks, and each finished chunk goes to the store at once. Read it, also while it
grows, with

  sweep = toykern.open_sweep("phase_diagram.zarr")
  sweep.to_xarray()      # losses and weights with dimensions importance, density, seed
"""


def add(commands: Any) -> None:
    """Its options."""
    phase = commands.add_parser(
        "phase-diagram",
        help="train and draw the phase diagram of Toy Models of Superposition",
        description=_PHASE_DESCRIPTION,
        epilog=_PHASE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    phase.set_defaults(execute=_phase_diagram)
    what = phase.add_argument_group("what to train")
    what.add_argument(
        "--features",
        type=int,
        choices=(2, 3),
        default=2,
        metavar="{2,3}",
        help="number of features: 2 in one dimension or 3 in two (default: %(default)s)",
    )
    what.add_argument(
        "--grid",
        nargs="+",
        default=["48x48"],
        metavar="N",
        help="points along importance and density, as 48x48 or 48 48 (default: 48x48)",
    )
    what.add_argument(
        "--seeds",
        type=whole("--seeds", 1),
        default=10,
        metavar="N",
        help="networks trained at each point, of which the best is shown (default: %(default)s)",
    )
    what.add_argument(
        "--steps",
        type=whole("--steps", 1),
        default=1500,
        metavar="N",
        help="updates of each network (default: %(default)s)",
    )
    what.add_argument(
        "--batch",
        type=whole("--batch", 1),
        default=1024,
        metavar="N",
        help="samples drawn for each update (default: %(default)s)",
    )
    what.add_argument(
        "--lr",
        type=learning_rate,
        default=2e-2,
        metavar="X",
        help="learning rate at the start; it falls to 0 along a cosine (default: %(default)s)",
    )
    what.add_argument(
        "--seed",
        type=whole("--seed", 0, 2**31 - 1),
        default=0,
        metavar="N",
        help="another number trains other networks on other data (default: %(default)s)",
    )
    where = phase.add_argument_group("where to put it")
    where.add_argument(
        "--out",
        default="phase_diagram.png",
        metavar="FILE",
        help="the picture; png, pdf or svg by its ending (default: %(default)s)",
    )
    where.add_argument(
        "--store",
        default="phase_diagram.zarr",
        metavar="DIR",
        help="the result store, a Zarr directory with all networks (default: %(default)s)",
    )
    where.add_argument("--no-store", action="store_true", help="write the picture only")
    where.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing picture and an existing toykern store, unless something else lies in it",
    )
    how = phase.add_argument_group("how to run it")
    how.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: %(default)s)"
    )
    how.add_argument(
        "--chunk",
        type=whole("--chunk", 1),
        metavar="N",
        help="networks trained at once (default: by the free memory); the results do not depend on it",
    )
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on with the sweep in the store, whose finished chunks are kept; begin it if there is none; "
        "replaces a picture that was drawn from it, and no other",
    )
    how.add_argument(
        "--extend",
        action="store_true",
        help="as --resume, and --seeds may be more than in the store: only the further networks are trained",
    )
    how.add_argument(
        "--share",
        type=share_of_text,
        metavar="I/N",
        help="train share I of N, from 0, and help with the others; each share goes on with the store "
        "that is there (default: from SLURM_ARRAY_TASK_ID or RANK, else the whole)",
    )
    how.add_argument(
        "--workers",
        type=whole("--workers", 1, largest=4096),
        metavar="N",
        help="processes that train, a chunk at a time each, with a part of the threads (default: this one)",
    )
    how.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="have the workers of a Dask scheduler train, as tcp://host:8786; all must see the store",
    )
    how.add_argument("--check", action="store_true", help="with --resume: read all that is finished")
    how.add_argument(
        "--mixed",
        action="store_true",
        help="go on with a sweep that was begun on another instruction set or kind of device",
    )
    how.add_argument(
        "--plan", action="store_true", help="say what it will take: chunks, memory, store, time; then end"
    )
    how.add_argument(
        "--threads",
        type=whole("--threads", 1, largest=4096),
        metavar="N",
        help="processor threads to use (default: as many as PyTorch uses)",
    )


def _phase_diagram(arguments: argparse.Namespace) -> int:
    shape = _grid_shape(arguments.grid)
    for name in ("resume", "extend", "chunk", "share", "workers", "scheduler", "check", "mixed", "plan"):
        if arguments.no_store and getattr(arguments, name):
            raise Problem(f"--{name} needs a store; leave out --no-store")
    part, arguments.shown = _share(arguments), None
    arguments.resume = arguments.resume or arguments.extend
    if arguments.resume and arguments.overwrite:
        raise Problem("--resume goes on with a store and --overwrite replaces it; give one of them")
    if arguments.workers is not None and arguments.scheduler is not None:
        raise Problem("--workers has processes of its own and --scheduler others'; give one of them")
    picture = check_picture(
        arguments.out,
        arguments.overwrite,
        arguments.resume,
        lambda picture: _is_of_the_sweep(picture, arguments),
        "the sweep in --store",
    )
    store = None if arguments.no_store else _check_store(arguments)
    if store == picture:
        raise Problem(f"--out and --store are both {picture}")
    check_device(arguments.device)

    import torch

    from toykern.experiments.phase_diagram import MAX_POINTS, train_phase_diagram
    from toykern.sweeps import SweepPlan

    if max(shape) > MAX_POINTS:
        given = short(" ".join(arguments.grid))
        raise Problem(f"--grid must have at most {MAX_POINTS} points a side, not {given}")
    if arguments.no_store and shape[0] * shape[1] * arguments.seeds > MAX_SIZE:
        raise Problem(
            f"--grid and --seeds make {shape[0] * shape[1] * arguments.seeds:,} networks, of which at most "
            f"{MAX_SIZE:,} can be trained without a store"
        )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    features, models = arguments.features, shape[0] * shape[1] * arguments.seeds
    say(
        f"{features} features in {features - 1} dimension{'s' * (features > 2)}: "
        f"{shape[0]} × {shape[1]} points × {arguments.seeds} seeds = {models:,} networks, "
        f"{arguments.steps:,} steps of batch {arguments.batch:,}"
    )
    if part is not None and part[1] > 1:
        say(f"this is share {part[0]} of {part[1]}, counted from 0")
    began = time.perf_counter()
    with scheduler(arguments.scheduler) as others, workers(arguments.workers) as pool:
        diagram = train_phase_diagram(
            features,
            features - 1,
            shape=shape,
            seeds=arguments.seeds,
            steps=arguments.steps,
            batch_size=arguments.batch,
            lr=arguments.lr,
            seed=arguments.seed,
            device=arguments.device,
            store=store,
            chunk=arguments.chunk,
            resume=arguments.resume,
            overwrite=store is not None and arguments.overwrite,
            options=None
            if store is None
            else {
                "share": part,
                "extend": arguments.extend,
                "check": arguments.check,
                "mixed": arguments.mixed,
                "dry_run": arguments.plan,
                "executor": pool or others,
            },
        )
    if isinstance(diagram, SweepPlan):
        say(str(diagram))
        return 0
    _say_how_it_went(diagram, arguments)
    say(f"elapsed  {time.perf_counter() - began:.1f} s with evaluation and store")
    if diagram.sweep is not None and not (diagram.sweep.complete or diagram.interrupted):
        say(f"others   train {int((~diagram.sweep.finished).sum())} of {len(diagram.sweep.boxes)} chunks yet")
        say(f"store    {store}")
        return 0
    if diagram.sweep is not None and not diagram.sweep.complete:
        chunks = f"{int(diagram.sweep.finished.sum())} of {len(diagram.sweep.boxes)} chunks"
        say(f"stopped by Ctrl-C with {chunks} finished; the same command with --resume goes on")
        say(f"store    {store}")
        return 130
    counts = [float((diagram.phase == phase).mean()) for phase in range(3)]
    say("phases   not represented {:.0%}, own dimension {:.0%}, in superposition {:.0%}".format(*counts))
    say(f"theory   {diagram.agreement:.0%} of the points are in the phase of the best exact solution")
    _draw(diagram, picture, arguments)
    say(f"picture  {picture}")
    if store is not None:
        say(f"store    {store}")
    return 130 if diagram.interrupted else 0


def _say_how_it_went(diagram: PhaseDiagram, arguments: argparse.Namespace) -> None:
    """How much was trained, how fast, and where."""
    import torch

    models, steps = diagram.loss.numel(), arguments.steps
    if diagram.sweep is not None:
        seconds = diagram.sweep.seconds
        trained = [box.n_models for box in diagram.sweep.boxes if math.isfinite(seconds[box.number])]
        models, total = sum(trained), float(sum(s for s in seconds if math.isfinite(s)))
    else:
        assert diagram.run is not None
        steps, total = diagram.run.step, diagram.run.seconds
        if diagram.run.interrupted:
            say(f"stopped by Ctrl-C after {steps:,} of {arguments.steps:,} steps; keeping what was trained")
    where = f"{torch.get_num_threads()} threads"
    if arguments.device == "cuda":
        where = torch.cuda.get_device_name()
    say(
        f"trained  {models * steps:,} model-steps in {total:.1f} s: {models * steps / max(total, 1e-9):,.0f} "
        f"model-steps/s on {arguments.device}, {where}"
    )


def _draw(diagram: PhaseDiagram, picture: Path, arguments: argparse.Namespace) -> None:
    """Draw the diagram; the picture says of which sweep it is, if it is in a store."""
    from matplotlib.figure import Figure

    from toykern import plot
    from toykern.results.picture import is_picture_of

    hidden, features = diagram.weight.shape[-2:]
    steps = arguments.steps if diagram.run is None else diagram.run.step
    figure = Figure(figsize=(6.8, 4.9), layout="constrained")
    ax = plot.phase_diagram(
        diagram.weight,
        diagram.importance,
        diagram.density,
        title=f"{features} features in {hidden} dimension{'s' * (hidden > 1)}, "
        f"best of {arguments.seeds}, {steps:,} steps",
        ax=figure.subplots(),
    )
    ax.title.set_fontsize("medium")
    shown = None if diagram.sweep is None else _shown(diagram.sweep, arguments)
    # With --extend the picture that is there is of the sweep as it was.
    former = arguments.shown is not None and is_picture_of(picture, arguments.shown)
    again = "" if diagram.sweep is None else "; all networks are in the store, from which --resume draws"
    put_picture(figure, picture, shown, arguments.overwrite or former, again)


def _shown(sweep: Sweep, arguments: argparse.Namespace) -> str:
    """What the picture of a sweep says that it shows."""
    from toykern.results.picture import picture_of

    shown = {**sweep.attributes["settings"], "seed": arguments.seed}
    shown.pop("device", None)  # which does not change it
    return picture_of("phase-diagram", {"grid": sweep.grid.config(), **shown})


def _check_store(arguments: argparse.Namespace) -> Path:
    """The store's real path, after checking that it can be written or gone on with."""
    from toykern.results.store import check_target, import_zarr
    from toykern.sweeps import open_sweep

    import_zarr()
    if arguments.resume and os.path.lexists(arguments.store):
        return open_sweep(arguments.store).path
    return check_target(arguments.store, overwrite=arguments.overwrite)


def _is_of_the_sweep(picture: Path, arguments: argparse.Namespace) -> bool:
    """Whether the picture was drawn from the sweep in the store."""
    from toykern.results.picture import is_picture_of
    from toykern.sweeps import open_sweep

    if not os.path.lexists(arguments.store):
        return False
    arguments.shown = _shown(open_sweep(arguments.store), arguments)
    return is_picture_of(picture, arguments.shown)


def _grid_shape(given: Sequence[str]) -> tuple[int, int]:
    """(importances, densities) from `48x48` or `48 48`."""
    parts = given[0].lower().split("x") if len(given) == 1 else list(given)
    if len(parts) != 2 or not all(part.isdecimal() and int(part[:10]) >= 2 for part in parts):
        raise Problem(
            f"--grid must be two numbers of at least 2, as 48x48 or 48 48, not {short(' '.join(given))}"
        )
    return int(parts[0][:10]), int(parts[1][:10])  # ten digits are too many anyhow


def _share(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """The share that is given or that the environment says; one of several implies --resume."""
    from toykern.sweeps.shares import share_of

    if arguments.no_store:
        return None
    try:
        part = share_of(arguments.share)
    except ValueError as error:
        raise Problem(str(error)) from error
    if part.n == 1:
        return None if arguments.share is None else (0, 1)
    if arguments.overwrite:
        raise Problem(f"--overwrite would have every share replace the store, and this is {part}")
    arguments.resume = True
    return part.i, part.n
