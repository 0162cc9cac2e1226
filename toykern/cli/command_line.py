"""The `toykern` command: its subcommands, and its exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from toykern.cli import experiment, phase_diagram, stores
from toykern.cli.arguments import Parser, Problem

_DESCRIPTION = """\
Trains very many, very small networks on sparse features, and looks at what they learned.
"""

_EPILOG = """\
examples:
  toykern experiment --list                    the experiments of the literature that it runs
  toykern phase-diagram                        the picture of Toy Models of Superposition, in seconds
  toykern phase-diagram --features 3           three features in two dimensions
  toykern info                                 versions, instruction set, threads (for bug reports)

`toykern phase-diagram --help` explains its options.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit status.

    Example:
        >>> from toykern.cli import main
        >>> main(["phase-diagram", "--grid", "4x4", "--seeds", "1", "--out", "no/such/directory/a.png"])
        2
    """
    whole = parser()
    arguments = whole.parse_args(argv)
    prog = f"{whole.prog} {arguments.command}"
    from toykern.results.store import StoreError

    try:
        status: int = arguments.execute(arguments)
    except (Problem, StoreError, ImportError, MemoryError) as problem:
        print(f"{prog}: error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:  # a full disk, a standard output that is gone
        print(f"{prog}: error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{prog}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = Parser(
        prog="toykern",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", metavar="command", required=True)
    experiment.add(commands)
    phase_diagram.add(commands)
    stores.add_explore(commands)
    stores.add_merge(commands)
    info = commands.add_parser(
        "info",
        help="print versions, instruction-set levels, threads and CUDA state",
        description="Prints versions, instruction-set levels, threads and the state of CUDA.",
    )
    info.set_defaults(execute=_info)
    return whole


def _info(arguments: argparse.Namespace) -> int:
    from toykern import info

    return info.main()
