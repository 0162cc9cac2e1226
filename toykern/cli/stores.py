"""`toykern explore` and `toykern merge`: what is done with the stores of sweeps."""

from __future__ import annotations

import argparse
from typing import Any

from toykern.cli.arguments import Problem, whole
from toykern.terminal import say


def add_explore(commands: Any) -> None:
    """The options of `toykern explore`."""
    explore = commands.add_parser(
        "explore",
        help="browse a sweep: its map, and each network on it",
        description="Shows the map of a sweep in a browser, coloured by phase, loss or what else was "
        "recorded; a click shows that network. Follows a sweep that grows. It is served to this machine "
        "alone, and the line is printed that lets another see it through ssh.",
    )
    explore.set_defaults(execute=run_explore)
    explore.add_argument("store", metavar="STORE", help="the store of a sweep, finished or not")
    explore.add_argument(
        "--port",
        type=whole("--port", 0, 65_535),
        metavar="N",
        help="where to serve it (default: 5006, or the next that is free; 0: any that is free)",
    )


def add_merge(commands: Any) -> None:
    """The options of `toykern merge`."""
    merge = commands.add_parser(
        "merge",
        help="make one store of several sweeps whose grids differ along one axis",
        description="Makes one store of several sweeps whose grids differ along one axis, such as their "
        "seeds. Networks that several of them have must be the same, to the bit.",
    )
    merge.set_defaults(execute=run_merge)
    merge.add_argument("stores", nargs="+", metavar="STORE", help="two stores of sweeps, or more")
    merge.add_argument("--store", required=True, metavar="DIR", help="the store to make of them")
    merge.add_argument(
        "--chunk",
        type=whole("--chunk", 1),
        metavar="N",
        help="networks in a chunk of it (default: as in the largest)",
    )
    merge.add_argument(
        "--overwrite", action="store_true", help="replace an existing toykern store, that of one of them too"
    )
    merge.add_argument(
        "--mixed", action="store_true", help="merge sweeps of different instruction sets, devices or versions"
    )


def run_explore(arguments: argparse.Namespace) -> int:
    """Serve the map of a sweep until Ctrl-C."""
    from toykern.explorer import Atlas
    from toykern.explorer.server import serve
    from toykern.sweeps import open_sweep

    try:
        serve(Atlas(open_sweep(arguments.store)), arguments.port)
    except OSError as error:
        raise Problem(f"--port {arguments.port}: {error.strerror or error}") from error
    return 0


def run_merge(arguments: argparse.Namespace) -> int:
    """Merge stores, and say what came of it."""
    from toykern.sweeps import merge_sweeps

    done = merge_sweeps(
        arguments.stores, arguments.store, chunk=arguments.chunk, overwrite=arguments.overwrite,
        mixed=arguments.mixed,
    )  # fmt: skip
    say(str(done))
    return 0
