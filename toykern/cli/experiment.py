"""`toykern experiment`: an experiment of the literature, its figure, its outcomes beside the published."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toykern.cli.arguments import Problem, short, whole
from toykern.cli.pictures import check_picture, put_picture
from toykern.terminal import say

if TYPE_CHECKING:
    from toykern.experiments import Experiment

_DESCRIPTION = """\
Trains an experiment of the literature from scratch, draws its figure, and says what was published and what
came out. `--list` names them; `toykern experiment NAME --describe` tells what one is and what may be set.
"""

_EPILOG = """\
examples:
  toykern experiment --list
  toykern experiment intro-polygons --quick        intro-polygons.png in this directory, in seconds
  toykern experiment double-descent --plan         what it would take
  toykern experiment double-descent --store dd --resume
      trained in chunks that are kept; stopped by whatever, the same command goes on
  toykern experiment intro-polygons --set steps=2000 --set densities=1,0.3,0.05
"""


def add(commands: Any) -> None:
    """Its options."""
    experiment = commands.add_parser(
        "experiment",
        help="train an experiment of the literature and draw it; --list names them",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiment.set_defaults(execute=run)
    experiment.add_argument("name", nargs="?", metavar="NAME", help="which; --list names them")
    experiment.add_argument("--list", action="store_true", help="name all experiments, and end")
    experiment.add_argument(
        "--describe", action="store_true", help="say what it is and what may be set; then end"
    )
    experiment.add_argument("--quick", action="store_true", help="with its settings for seconds")
    experiment.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="another value; of several, with commas",
    )
    experiment.add_argument(
        "--out", metavar="FILE", help="the picture; png, pdf or svg by its ending (default: NAME.png)"
    )
    experiment.add_argument(
        "--summary", metavar="FILE", help="write settings, outcomes and time there, as JSON"
    )
    experiment.add_argument(
        "--store",
        metavar="DIR",
        help="keep all networks there, a Zarr store for each stage (default: nowhere)",
    )
    experiment.add_argument(
        "--resume", action="store_true", help="go on with what is in the store; begin it if there is none"
    )
    experiment.add_argument(
        "--overwrite", action="store_true", help="replace an existing picture, summary and stores of toykern"
    )
    experiment.add_argument("--plan", action="store_true", help="say what it will take; then end")
    experiment.add_argument(
        "--threads", type=whole("--threads", 1, largest=4096), metavar="N", help="processor threads to use"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one, and say where everything is."""
    from toykern import experiments
    from toykern.results.picture import is_picture_of, picture_of
    from toykern.results.store_format import StoreError

    if arguments.list:
        for name in experiments.names():
            say(f"{name:<30} {experiments.get(name).title}")
        return 0
    if arguments.name is None:
        raise Problem("NAME is missing; --list names the experiments")
    if arguments.name not in experiments.names():
        raise Problem(f"there is no experiment {short(arguments.name)}; --list names those there are")
    experiment = experiments.get(arguments.name)
    if arguments.describe:
        _describe(experiment)
        return 0
    given = _given(experiment, arguments.set)
    if arguments.threads is not None:  # first: what stages are made from may be trained too
        import torch

        torch.set_num_threads(arguments.threads)
    try:
        settings = experiment.configure(arguments.quick, **given)
        networks = experiments.check(experiment, settings)
    except (ValueError, TypeError) as error:
        raise _unfit(error) from error
    if arguments.plan:
        for name, planned in experiments.plan(experiment.name, quick=arguments.quick, **given).items():
            say(f"{name}\n{textwrap.indent(str(planned), '  ')}")
        return 0
    if arguments.resume and arguments.store is None:
        raise Problem("--resume needs a --store to go on with")
    if arguments.resume and arguments.overwrite:
        raise Problem("--resume goes on with a store and --overwrite replaces it; give one of them")
    shown = picture_of(f"experiment {experiment.name}", dataclasses.asdict(settings))
    picture = check_picture(
        arguments.out or f"{experiment.name}.png",
        arguments.overwrite,
        arguments.resume,
        lambda there: is_picture_of(there, shown),
        "this experiment with these settings",
    )
    summary = None if arguments.summary is None else _check_summary(arguments)
    say(f"{experiment.title}: {networks:,} networks")
    try:
        result = experiments.run(
            experiment.name, quick=arguments.quick, store=arguments.store, resume=arguments.resume,
            overwrite=arguments.overwrite and arguments.store is not None, **given,
        )  # fmt: skip
    except experiments.Unfinished as others:
        say(str(others))
        return 0
    except StoreError:
        raise
    except (ValueError, TypeError) as error:  # of what it trains and measures after its stages
        raise _unfit(error) from error
    kept = "" if arguments.store is None else "; all networks are in the store, from which --resume draws"
    put_picture(result.figure(), picture, shown, arguments.overwrite, kept)
    say(str(result))
    if summary is not None:
        text = json.dumps(result.summary(), indent=1, ensure_ascii=False) + "\n"
        try:
            summary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise Problem(f"cannot write --summary {summary}: {error.strerror or error}{kept}") from error
        say(f"summary  {summary}")
    say(f"elapsed  {result.seconds:.1f} s")
    say(f"picture  {picture}")
    if arguments.store is not None:
        say(f"stores   {Path(arguments.store).resolve()}")
    return 0


def _unfit(error: Exception) -> Problem:
    return Problem(f"with these settings it cannot be run: {' '.join(str(error).split())}")


def _describe(experiment: Experiment) -> None:
    """Title, source, summary and settings with the values they have."""
    say(f"{experiment.title}\n{experiment.source}\n\n{textwrap.fill(experiment.summary, 100)}\n")
    say("settings (and with --quick, where it differs)")
    for entry in dataclasses.fields(experiment.settings):
        full, quick = (_text(getattr(of, entry.name)) for of in (experiment.settings, experiment.quick))
        say(f"  {entry.name} = {full}" + ("" if quick == full else f"  (--quick: {quick})"))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _given(experiment: Experiment, texts: list[str]) -> dict[str, Any]:
    """The settings that are given as texts, in the kind of those they replace."""
    known = {
        entry.name: getattr(experiment.settings, entry.name)
        for entry in dataclasses.fields(experiment.settings)
    }
    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise Problem(f"--set must be SETTING=VALUE of {', '.join(known)}, not {short(text)}")
        try:
            given[name] = _read(value, known[name])
        except ValueError as error:
            raise Problem(f"--set {name} must be as {_text(known[name])}, not {short(value)}") from error
    return given


def _read(text: str, before: Any) -> Any:
    """A value from its text; ValueError where it is none of the kind of `before`."""
    if isinstance(before, tuple):
        return tuple(_read(part, before[0]) for part in text.split(","))
    if isinstance(before, bool):
        if text not in ("true", "false", "True", "False"):
            raise ValueError(text)
        return text in ("true", "True")
    return type(before)(text)


def _check_summary(arguments: argparse.Namespace) -> Path:
    from toykern.results.picture import check_writable

    path = Path(arguments.summary).resolve()
    if not path.parent.is_dir() or path.is_dir():
        raise Problem(f"--summary must be a file in a directory that exists, not {short(arguments.summary)}")
    if path.exists() and not (arguments.overwrite or arguments.resume):
        raise Problem(f"{path} exists already; --overwrite replaces it")
    try:
        check_writable(path)
    except OSError as error:
        raise Problem(f"cannot write --summary {path}: {error.strerror or error}") from error
    return path
