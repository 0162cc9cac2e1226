"""The `toykern` command: train a phase diagram, merge or explore sweeps, tell what is installed.

Exit status: 0 done; 2 the command line, its paths or the machine cannot be used (one line says why); 130
stopped by Ctrl-C (what had been finished by then is saved, and a line says how to go on).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from toykern.terminal import say

if TYPE_CHECKING:
    from toykern.experiments.phase_diagram import PhaseDiagram
    from toykern.sweeps import Sweep

__all__ = ["main"]

_DESCRIPTION = """\
Trains very many, very small networks on sparse features, and looks at what they learned.
"""

_EPILOG = """\
examples:
  toykern phase-diagram                        the picture of Toy Models of Superposition, in seconds
  toykern phase-diagram --features 3           three features in two dimensions
  toykern info                                 versions, instruction set, threads (for bug reports)

`toykern phase-diagram --help` explains its options.
"""

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


_MAX_SIZE = (
    2**31 - 1
)  # toykern.arguments.errors.MAX_SIZE: a bad command line is refused before torch is imported


_PATIENCE = "10s"  # with a scheduler that does not answer


class _Problem(Exception):
    """Something about the command line that its user can mend; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit status.

    Example:
        >>> from toykern.cli import main
        >>> main(["phase-diagram", "--grid", "4x4", "--seeds", "1", "--out", "no/such/directory/a.png"])
        2
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    prog = f"{parser.prog} {arguments.command}"
    from toykern.results.store import StoreError

    try:
        status: int = arguments.execute(arguments)
    except (_Problem, StoreError, ImportError, MemoryError) as problem:
        print(f"{prog}: error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{prog}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="toykern",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    info = commands.add_parser(
        "info",
        help="print versions, instruction-set levels, threads and CUDA state",
        description="Prints versions, instruction-set levels, threads and the state of CUDA.",
    )
    info.set_defaults(execute=_info)
    explore = commands.add_parser(
        "explore",
        help="browse a sweep: its map, and each network on it",
        description="Shows the map of a sweep in a browser, coloured by phase, loss or what else was "
        "recorded; a click shows that network. Follows a sweep that grows. It is served to this machine "
        "alone, and the line is printed that lets another see it through ssh.",
    )
    explore.set_defaults(execute=_explore)
    explore.add_argument("store", metavar="STORE", help="the store of a sweep, finished or not")
    explore.add_argument(
        "--port",
        type=_whole("--port", 0, 65_535),
        metavar="N",
        help="where to serve it (default: 5006, or the next that is free; 0: any that is free)",
    )
    merge = commands.add_parser(
        "merge",
        help="make one store of several sweeps whose grids differ along one axis",
        description="Makes one store of several sweeps whose grids differ along one axis, such as their "
        "seeds. Networks that several of them have must be the same, to the bit.",
    )
    merge.set_defaults(execute=_merge)
    merge.add_argument("stores", nargs="+", metavar="STORE", help="two stores of sweeps, or more")
    merge.add_argument("--store", required=True, metavar="DIR", help="the store to make of them")
    merge.add_argument(
        "--chunk",
        type=_whole("--chunk", 1),
        metavar="N",
        help="networks in a chunk of it (default: as in the largest)",
    )
    merge.add_argument(
        "--overwrite", action="store_true", help="replace an existing toykern store, that of one of them too"
    )
    merge.add_argument(
        "--mixed", action="store_true", help="merge sweeps of different instruction sets, devices or versions"
    )
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
        type=_whole("--seeds", 1),
        default=10,
        metavar="N",
        help="networks trained at each point, of which the best is shown (default: %(default)s)",
    )
    what.add_argument(
        "--steps",
        type=_whole("--steps", 1),
        default=1500,
        metavar="N",
        help="updates of each network (default: %(default)s)",
    )
    what.add_argument(
        "--batch",
        type=_whole("--batch", 1),
        default=1024,
        metavar="N",
        help="samples drawn for each update (default: %(default)s)",
    )
    what.add_argument(
        "--lr",
        type=_learning_rate,
        default=2e-2,
        metavar="X",
        help="learning rate at the start; it falls to 0 along a cosine (default: %(default)s)",
    )
    what.add_argument(
        "--seed",
        type=_whole("--seed", 0, 2**31 - 1),
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
        type=_whole("--chunk", 1),
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
        type=_share_of_text,
        metavar="I/N",
        help="train share I of N, from 0, and help with the others; each share goes on with the store "
        "that is there (default: from SLURM_ARRAY_TASK_ID or RANK, else the whole)",
    )
    how.add_argument(
        "--workers",
        type=_whole("--workers", 1, largest=4096),
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
        type=_whole("--threads", 1, largest=4096),
        metavar="N",
        help="processor threads to use (default: as many as PyTorch uses)",
    )
    return parser


def _explore(arguments: argparse.Namespace) -> int:
    from toykern.explorer import Atlas
    from toykern.explorer.server import serve
    from toykern.sweeps import open_sweep

    try:
        serve(Atlas(open_sweep(arguments.store)), arguments.port)
    except OSError as error:
        raise _Problem(f"--port {arguments.port}: {error.strerror or error}") from error
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from toykern.sweeps import merge_sweeps

    done = merge_sweeps(
        arguments.stores, arguments.store, chunk=arguments.chunk, overwrite=arguments.overwrite,
        mixed=arguments.mixed,
    )  # fmt: skip
    say(str(done))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from toykern import info

    return info.main()


def _phase_diagram(arguments: argparse.Namespace) -> int:
    shape = _grid_shape(arguments.grid)
    for name in ("resume", "extend", "chunk", "share", "workers", "scheduler", "check", "mixed", "plan"):
        if arguments.no_store and getattr(arguments, name):
            raise _Problem(f"--{name} needs a store; leave out --no-store")
    part, arguments.shown = _share(arguments), None
    arguments.resume = arguments.resume or arguments.extend
    if arguments.resume and arguments.overwrite:
        raise _Problem("--resume goes on with a store and --overwrite replaces it; give one of them")
    if arguments.workers is not None and arguments.scheduler is not None:
        raise _Problem("--workers has processes of its own and --scheduler others'; give one of them")
    picture = _check_picture(arguments)
    store = None if arguments.no_store else _check_store(arguments)
    if store == picture:
        raise _Problem(f"--out and --store are both {picture}")
    _check_device(arguments.device)

    import torch

    from toykern.experiments.phase_diagram import MAX_POINTS, train_phase_diagram
    from toykern.sweeps import SweepPlan

    if max(shape) > MAX_POINTS:
        given = _short(" ".join(arguments.grid))
        raise _Problem(f"--grid must have at most {MAX_POINTS} points a side, not {given}")
    if arguments.no_store and shape[0] * shape[1] * arguments.seeds > _MAX_SIZE:
        raise _Problem(
            f"--grid and --seeds make {shape[0] * shape[1] * arguments.seeds:,} networks, of which at most "
            f"{_MAX_SIZE:,} can be trained without a store"
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
    with _scheduler(arguments.scheduler) as others, _workers(arguments.workers) as pool:
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


@contextlib.contextmanager
def _workers(count: int | None) -> Iterator[Executor | None]:
    """So many processes that share the threads of this one; None for None."""
    if count is None:
        yield None
        return
    import torch

    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            yield pool
        except RuntimeError as error:  # a worker failed; it says which chunks are missing
            raise _Problem(str(error)) from error


@contextlib.contextmanager
def _scheduler(address: str | None) -> Iterator[Executor | None]:
    """The workers of a Dask scheduler; None for None."""
    if address is None:
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise _Problem("--scheduler needs Dask: pip install 'toykern[dask]'") from error
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a TimeoutError is an OSError
        raise _Problem(f"--scheduler {_short(address)} does not answer: {_short(str(error))}") from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise _Problem(f"--scheduler {_short(address)} has no workers")
        try:
            yield client.get_executor()
        except RuntimeError as error:  # as in `_workers`
            raise _Problem(str(error)) from error


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
    from toykern.results.picture import is_picture_of, write_picture

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
    try:
        # With --extend the picture that is there is of the sweep as it was.
        former = arguments.shown is not None and is_picture_of(picture, arguments.shown)
        write_picture(figure, picture, shown, arguments.overwrite or former)
    except FileExistsError as error:
        again = "" if diagram.sweep is None else "; all networks are in the store, from which --resume draws"
        raise _Problem(f"{picture} was made by something else meanwhile, and is left alone{again}") from error
    except OSError as error:
        raise _Problem(f"cannot write {picture}: {error.strerror or error}") from error


def _shown(sweep: Sweep, arguments: argparse.Namespace) -> str:
    """What the picture of a sweep says that it shows."""
    from toykern.results.picture import picture_of

    return picture_of(sweep.grid, {**sweep.attributes["settings"], "seed": arguments.seed})


def _check_store(arguments: argparse.Namespace) -> Path:
    """The store's real path, after checking that it can be written or gone on with."""
    from toykern.results.store import check_target, import_zarr
    from toykern.sweeps import open_sweep

    import_zarr()
    if arguments.resume and os.path.lexists(arguments.store):
        return open_sweep(arguments.store).path
    return check_target(arguments.store, overwrite=arguments.overwrite)


def _check_picture(arguments: argparse.Namespace) -> Path:
    """The picture's real path, after checking that it can be drawn and written there."""
    from toykern.results.picture import check_writable

    out = arguments.out
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _Problem("drawing needs matplotlib: pip install 'toykern[plot]'") from error

    picture = Path(os.path.realpath(out))
    formats = FigureCanvasAgg(Figure()).get_supported_filetypes()
    if picture.suffix.lower().lstrip(".") not in formats:
        raise _Problem(f"--out must end in .png, .pdf or .svg, not {out!r}")
    if picture.is_dir():
        raise _Problem(f"--out {out} is a directory")
    if os.path.lexists(picture) and not picture.is_file():
        raise _Problem(f"--out {out} is no ordinary file")
    if picture.exists() and not arguments.overwrite:
        if not arguments.resume:
            raise _Problem(f"{picture} exists already; --overwrite replaces it, --out names another file")
        if not _is_of_the_sweep(picture, arguments):
            raise _Problem(
                f"{picture} exists already, and does not say that it is of the sweep in --store; --resume "
                "replaces no other picture, --out names another file"
            )
    if not picture.parent.is_dir():
        raise _Problem(f"cannot write {picture}: there is no directory {picture.parent}")
    try:
        check_writable(picture)
    except OSError as error:
        raise _Problem(f"cannot write {picture}: {error.strerror or error}") from error
    return picture


def _is_of_the_sweep(picture: Path, arguments: argparse.Namespace) -> bool:
    """Whether the picture was drawn from the sweep in the store."""
    from toykern.results.picture import is_picture_of
    from toykern.sweeps import open_sweep

    if not os.path.lexists(arguments.store):
        return False
    try:
        arguments.shown = _shown(open_sweep(arguments.store), arguments)
        return is_picture_of(picture, arguments.shown)
    except OSError as error:
        raise _Problem(f"cannot read {picture}: {error.strerror or error}") from error


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    from toykern.native.devices import check_kernels

    try:
        check_kernels(device)
    except RuntimeError as error:
        raise _Problem(f"--device {device} is not available: {error}") from error


def _grid_shape(given: Sequence[str]) -> tuple[int, int]:
    """(importances, densities) from `48x48` or `48 48`."""
    parts = given[0].lower().split("x") if len(given) == 1 else list(given)
    if len(parts) != 2 or not all(part.isdecimal() and int(part[:10]) >= 2 for part in parts):
        raise _Problem(
            f"--grid must be two numbers of at least 2, as 48x48 or 48 48, not {_short(' '.join(given))}"
        )
    return int(parts[0][:10]), int(parts[1][:10])  # ten digits are too many anyhow


def _whole(
    name: str, minimum: int, maximum: int | None = None, largest: int = _MAX_SIZE
) -> Callable[[str], int]:
    """An argparse type: a whole number in a range; `largest` is for what has no maximum worth telling."""

    def parse(text: str) -> int:
        allowed = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        most = largest if maximum is None else maximum
        try:
            value = int(text)
        except ValueError:  # of no number, and of one with thousands of digits
            value = minimum - 1
        if value > most and maximum is None:
            allowed = f"at most {most}"
        if not minimum <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, not {_short(text)}")
        return value

    return parse


def _share_of_text(text: str) -> tuple[int, int]:
    """An argparse type: `3/32`."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() and part.isascii() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"must be I/N, as 3/32, not {_short(text)}")
    i, n = int(parts[0]), int(parts[1])
    if not i < n:
        raise argparse.ArgumentTypeError(f"must be one of the {n} shares from 0/{n} on, not {_short(text)}")
    return i, n


def _share(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """The share that is given or that the environment says; one of several implies --resume."""
    from toykern.sweeps.shares import share_of

    if arguments.no_store:
        return None
    try:
        part = share_of(arguments.share)
    except ValueError as error:
        raise _Problem(str(error)) from error
    if part.n == 1:
        return None if arguments.share is None else (0, 1)
    if arguments.overwrite:
        raise _Problem(f"--overwrite would have every share replace the store, and this is {part}")
    arguments.resume = True
    return part.i, part.n


def _learning_rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {_short(text)}")
    return value


def _short(text: str) -> str:
    """What was given, fit for a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
