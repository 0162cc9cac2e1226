"""The pictures that commands draw: checked before anything is trained, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from toykern.cli.arguments import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_picture(
    out: str, overwrite: bool, resume: bool, ours: Callable[[Path], bool], of_what: str
) -> Path:
    """The picture's real path, after checking that it can be drawn and written there.

    With `resume` a picture that is there must be `ours`: it says that it is `of_what`.
    """
    from toykern.results.picture import check_writable

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Problem("drawing needs matplotlib: pip install 'toykern[plot]'") from error

    picture = Path(os.path.realpath(out))
    formats = FigureCanvasAgg(Figure()).get_supported_filetypes()
    if picture.suffix.lower().lstrip(".") not in formats:
        raise Problem(f"--out must end in .png, .pdf or .svg, not {out!r}")
    if picture.is_dir():
        raise Problem(f"--out {out} is a directory")
    if os.path.lexists(picture) and not picture.is_file():
        raise Problem(f"--out {out} is no ordinary file")
    if picture.exists() and not overwrite:
        if not resume:
            raise Problem(f"{picture} exists already; --overwrite replaces it, --out names another file")
        try:
            known = ours(picture)
        except OSError as error:
            raise Problem(f"cannot read {picture}: {error.strerror or error}") from error
        if not known:
            raise Problem(
                f"{picture} exists already, and does not say that it is of {of_what}; --resume "
                "replaces no other picture, --out names another file"
            )
    if not picture.parent.is_dir():
        raise Problem(f"cannot write {picture}: there is no directory {picture.parent}")
    try:
        check_writable(picture)
    except OSError as error:
        raise Problem(f"cannot write {picture}: {error.strerror or error}") from error
    return picture


def put_picture(figure: Figure, picture: Path, shown: str | None, replace: bool, kept: str = "") -> None:
    """Write a picture that says it is of `shown`; the Problem where it cannot be ends with `kept`."""
    from toykern.results.picture import write_picture

    try:
        write_picture(figure, picture, shown, replace)
    except FileExistsError as error:
        raise Problem(f"{picture} was made by something else meanwhile, and is left alone{kept}") from error
    except OSError as error:
        raise Problem(f"cannot write {picture}: {error.strerror or error}") from error
