"""How the command line refuses: one line, and the status of a command that cannot be used."""

from __future__ import annotations

from toykern import cli


def refused(arguments: list[str], capsys, silent: bool = True) -> str:
    """The one line that `arguments` are refused with; `silent`: before anything else is said."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == "" or not silent
    assert shown.err.count("\n") == 1 and shown.err.startswith("toykern"), shown.err
    return shown.err
