"""Prints the path of the newest Python here that the suite is known to pass on, for `make test-newest`.

    python tools/newest_python.py

Looked at are the directories of PATH and what pyenv has installed: its shim `python3.13` does not start where
another version is chosen. Nothing is printed where none is newer than the Python that runs this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TESTED = (3, 13)
"""The newest Python that constraints-newest.txt was made with; what comes later may have no torch yet."""

_QUESTION = """
import ensurepip, sys, sysconfig, venv
usual = sys.version_info.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED")
print(*sys.version_info[:3] if usual else ())
"""

Version = tuple[int, ...]


def folders() -> Iterator[Path]:
    """Where interpreters may be: PATH, then pyenv's versions."""
    yield from (Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part)
    pyenv = shutil.which("pyenv")
    if pyenv:
        answer = subprocess.run([pyenv, "root"], capture_output=True, text=True)
        root = Path(answer.stdout.strip() or Path.home() / ".pyenv")
    else:
        root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(root.glob("versions/*/bin"))


def version_of(python: Path) -> Version | None:
    """What an interpreter says of itself; None if it does not start, or is a preview, without the lock of the
    interpreter, or without `venv`."""
    try:
        answer = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = answer.stdout.split()
    return tuple(map(int, numbers)) if answer.returncode == 0 and numbers else None


def newest(newer_than: Version, at_most: Version = TESTED) -> Path | None:
    """The newest interpreter with newer_than < (major, minor) ≤ at_most; of equals the first of `folders`."""
    found: list[tuple[Version, Path]] = []
    for folder in folders():
        for python in folder.glob("python3.*") if folder.is_dir() else ():
            name = re.fullmatch(r"python3\.(\d+)", python.name)
            if name and newer_than[:2] < (3, int(name[1])) <= at_most and (version := version_of(python)):
                found.append((version, python))
    return max(found, key=lambda pair: pair[0])[1] if found else None


if __name__ == "__main__":
    chosen = newest(sys.version_info[:2])
    if chosen is not None:
        print(chosen)
