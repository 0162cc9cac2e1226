"""Pictures that a command writes: whole or not at all, and never in the place of somebody else's.

A picture says what it shows: `picture_of` is a digest of the grid and the settings, which decide
what is drawn, and it stands in the file's own metadata (PNG, SVG and PDF have room for it). So a command that
goes on with a sweep can tell the picture that it drew of it before, which it may draw anew, from any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toykern.results import placing
from toykern.results.store_format import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_writable", "is_picture_of", "picture_of", "write_picture"]

_WHERE = {".png": "Source", ".svg": "Source", ".pdf": "Keywords"}  # entries of the formats' metadata


def picture_of(what: str, settings: Mapping[str, Any]) -> str:
    """What a picture says that it shows: a digest of all that decides what is drawn."""
    return f"toykern {what} {digest(dict(settings))}"


def is_picture_of(path: Path, shown: str) -> bool:
    """Whether the file at `path` is a picture that says it is of `shown`."""
    return path.suffix.lower() in _WHERE and path.is_file() and shown.encode() in path.read_bytes()


def check_writable(path: Path) -> None:
    """OSError if there is no writing at `path`; what killed processes left there is removed."""
    for _, left in placing.leftovers(path):
        left.unlink(missing_ok=True)
    probe = placing.beside(path, "probe")
    probe.touch(exist_ok=False)
    probe.unlink()


def write_picture(figure: Figure, path: Path, shown: str | None, replace: bool) -> None:
    """Draw to a file beside `path`, and put it there when it is on the disk.

    Args:
        figure: what to draw; the format is that of the ending of `path`.
        path: the file.
        shown: what the picture should say that it shows, or None.
        replace: a file that is there: of any kind if True, else only one that says it is of `shown`.

    Raises:
        FileExistsError: there is something else at `path`, maybe since a moment ago; it has been left alone.
        OSError: it cannot be written.
    """
    partial = placing.beside(path, "partial")
    ending = path.suffix.lower()
    metadata = {_WHERE[ending]: shown} if shown is not None and ending in _WHERE else None
    try:
        figure.savefig(partial, dpi=160, format=ending[1:], metadata=metadata)
        placing.sync(partial)
        if replace or (shown is not None and is_picture_of(path, shown)):
            os.replace(partial, path)
        else:
            placing.rename_new(partial, path)
    finally:
        partial.unlink(missing_ok=True)
