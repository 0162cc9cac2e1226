"""Where stores go: what may be replaced, how a new one takes its place, and what killed writers left.

A store is written beside its place and put there in one step (`place_store`). What was there before is only
replaced when asked to, if it is a store of ours, and if nothing lies in it that we did not write; that is
checked before anything is written, and again on what was taken away before it is removed. So a path that held
a store always holds a whole one, and nobody's work is deleted.

Hidden names beside the path, which the next writer cleans up once their process has ended:

    partial   a store that is being written
    new       a whole one, about to be put in place of another; then the other, about to be removed
    old       the other, moved away first, on file systems where two names cannot be exchanged. If the
              process dies just then the path is empty; the next writer to look there puts the old one back
    probe     empty: whether one can write there at all
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toykern.arguments.errors import check_flag
from toykern.results import placing
from toykern.results.store_format import (
    SWEEP_FORMAT,
    OwnStoreError,
    StoreError,
    check_path,
    read_attributes,
    read_description,
)

__all__ = ["check_target", "foreign_entries", "place_store", "remove_store"]

# The names of the files that are ours, by what they lie in. What ends in .partial, zarr was writing when it
# was killed; an array without dimensions has one piece, c.
_METADATA = r"zarr\.(json|[0-9a-f]{32}\.partial)"
_PIECE, _SCALAR = r"\d+(\.[0-9a-f]{32}\.partial)?", r"c(\.[0-9a-f]{32}\.partial)?"
_FILES = {
    "group": (_METADATA,),
    "array": (_METADATA, _SCALAR),
    "pieces": (_PIECE,),
    "free": (_METADATA, _SCALAR, _PIECE),
    "work": (r"\d+\.(claim|begun|origin|kept)(-[0-9a-f]{8})?", r"now-[0-9a-f]{8}"),
}
_WORK = "chunk_seconds/work"  # of those who train a sweep, see toykern/sweeps/claims.py
# Arrays and groups that a store may have beside those of its manifest; version 1 did not list coordinates.
_ALWAYS = {
    "toykern run": ("loss", "diverged_at", "model", "initialization", "records", "snapshots", "topology",
                    "arrays", "optimizer_state", "carry", "record"),
    SWEEP_FORMAT: ("loss", "diverged_at", "inputs", "record", "snapshot", "chunk_seconds"),
}  # fmt: skip


def check_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The real path of a store to be written at `path`, after checking that it can be.

    Nothing is left behind; to be asked before hours of training. What killed writers left there is cleaned
    up.

    Raises:
        StoreError: the parent is missing or not writable, or `path` holds something that may not be replaced.
        TypeError, ValueError: `path` is no path, or `overwrite` neither True nor False.
    """
    overwrite = check_flag("overwrite", overwrite)
    target = Path(os.path.realpath(check_path(path)))
    _clean(target)
    if os.path.lexists(target):
        _check_replaceable(target, overwrite)
    if not target.parent.is_dir():
        raise StoreError(f"cannot write {target}: there is no directory {target.parent}")
    probe = placing.beside(target, "probe")
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def place_store(partial: Path, target: Path, overwrite: bool) -> None:
    """Put the whole store at `partial`, a name beside `target`, in its place.

    It is on the disk before anything that was there goes.

    Raises:
        StoreError: something is at `target` by now that may not be replaced; it is still there.
        OSError: the renaming failed; what was there is still there.
    """
    placing.sync(partial)
    ours = os.lstat(partial).st_ino
    while True:
        try:
            placing.rename_new(partial, target)
            break
        except FileExistsError:
            _check_replaceable(target, overwrite)
        new = placing.beside(target, "new")
        os.rename(partial, new)
        try:
            if _replace(new, target, ours):
                break
        finally:
            # Unless it is in its place: what is here otherwise is not the caller's to remove.
            if os.path.lexists(new) and os.lstat(new).st_ino == ours:
                os.rename(new, partial)
    placing.sync_names(target.parent)


def _replace(new: Path, target: Path, ours: int) -> bool:
    """Exchange `new`, whose inode is `ours`, and the store at `target`, and remove the latter.

    False if there is nothing at `target` any more.
    """
    try:
        placing.exchange(new, target)
    except FileNotFoundError:
        return False
    except placing.Unsupported:
        return _replace_in_two(new, target)
    placing.sync_names(target.parent)
    try:
        _check_replaceable(new, True, called=target)  # what was at the path at that instant
    except StoreError as error:
        # Someone put it there a moment ago: give it its place back, unless ours was taken away already.
        if os.path.lexists(target) and os.lstat(target).st_ino == ours:
            placing.exchange(new, target)
            raise
        raise StoreError(f"{error}; it is now {_keep(new, target)}") from error
    _remove_or_say(new)
    return True


def _replace_in_two(new: Path, target: Path) -> bool:
    """The same where names cannot be exchanged: for a moment the path is empty."""
    old = placing.beside(target, "old")
    try:
        os.rename(target, old)
    except FileNotFoundError:
        return False
    try:
        _check_replaceable(old, True, called=target)
        placing.rename_new(new, target)
    except BaseException:
        try:
            placing.rename_new(old, target)
        except FileExistsError:
            raise StoreError(f"{target} was made meanwhile; what was there is {_keep(old, target)}") from None
        raise
    placing.sync_names(target.parent)
    _remove_or_say(old)
    return True


def _keep(hidden: Path, target: Path) -> Path:
    """Give a thing that lost its place a name that nobody cleans up."""
    kept = target.with_name(f"{target.name}.kept-{hidden.name[-8:]}")
    placing.rename_new(hidden, kept)
    return kept


def _check_replaceable(path: Path, overwrite: bool, called: Path | None = None) -> None:
    """StoreError if what is at `path` (and is to be `called` otherwise) may not be replaced."""
    name = called or path
    try:
        read_description(path)
    except StoreError as error:
        raise StoreError(f"{name} exists and is not a toykern store; it will not be overwritten") from error
    if not overwrite:
        raise StoreError(f"{name} already holds a toykern store; overwrite=True (--overwrite) replaces it")
    foreign = foreign_entries(path)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise StoreError(
            f"{name} is a toykern store, but toykern did not write {', '.join(foreign[:3])}{more} in it; it "
            "will not be overwritten"
        )


# What is ours in a store


def foreign_entries(path: Path) -> list[str]:
    """What lies in a store of ours that we did not write, by its path in the store.

    A store that is damaged cannot say what all of it is called: then only what every store has is ours.
    """
    return sorted(name for name, kind in _entries(path, _known_arrays(path)) if kind == "foreign")


def remove_store(path: Path) -> bool:
    """Remove a store of ours, entry by entry; False if something foreign in it was kept."""
    found: dict[str, list[str]] = {"file": [], "directory": [], "foreign": []}
    for name, kind in _entries(path, _known_arrays(path)):
        found[kind].append(name)
    for name in found["file"]:
        if name != "zarr.json":
            (path / name).unlink(missing_ok=True)
    for name in sorted(found["directory"], key=len, reverse=True):
        with contextlib.suppress(OSError):  # it holds something
            (path / name).rmdir()
    # The root's description last: until then it can be seen what this was.
    (path / "zarr.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()
    return not os.path.lexists(path)


def _remove_or_say(path: Path) -> None:
    try:
        gone = remove_store(path)
    except OSError:
        gone = False
    if not gone:
        warnings.warn(f"the store that was replaced could not be removed and is now {path}", stacklevel=4)


def _known_arrays(path: Path) -> tuple[set[str], set[str]]:
    """Paths of the arrays of a store, and names at its root below which all is ours that looks like it."""
    description = read_description(path)
    coordinates = _axes(description)
    try:
        attributes = read_attributes(path, description["format"])
    except OwnStoreError:
        entries = [*_listed(description, "manifest"), *_listed(description, "coordinates")]
        return {*entries, *coordinates}, set(_ALWAYS[description["format"]])
    entries = [entry["path"] for entry in (*attributes["manifest"], *attributes.get("coordinates", []))]
    if attributes["version"] == 1:
        entries += [*coordinates, "record", "snapshot", "chunk_seconds"]
    # An empty manifest is none that we wrote.
    return set(entries), set() if attributes["manifest"] else set(_ALWAYS[description["format"]])


def _axes(description: dict[str, Any]) -> list[str]:
    try:
        return [axis["name"] for axis in description["grid"]["axes"] if isinstance(axis["name"], str)]
    except (KeyError, TypeError):
        return []


def _listed(description: dict[str, Any], name: str) -> list[str]:
    try:
        return [entry["path"] for entry in description[name] if isinstance(entry["path"], str)]
    except (KeyError, TypeError):
        return []


def _entries(root: Path, known: tuple[set[str], set[str]]) -> Iterator[tuple[str, str]]:
    """Everything in a store: its path, and whether it is a file or directory of ours, or foreign."""
    arrays, roots = known
    groups = {name.rsplit("/", up)[0] for name in arrays for up in range(1, name.count("/") + 1)}

    def below(entry: os.DirEntry[str], name: str, kind: str) -> str | None:
        """What a directory in one of some kind is: group, array, pieces or free; None if it is not ours."""
        if kind == "pieces":
            return kind if entry.name.isdecimal() else None
        if name == _WORK and kind in ("array", "free"):
            return "work"
        if kind == "array":
            return "pieces" if entry.name == "c" else None
        if kind == "work":  # a chunk on its way to its place
            return "free" if entry.name.startswith("write-") else None
        if name in arrays:
            return "array"
        if name in groups:
            return "group"
        return "free" if kind == "free" or name in roots else None

    waiting = [("", "group")] if root.is_dir() and not root.is_symlink() else []
    while waiting:
        where, kind = waiting.pop()
        for entry in os.scandir(root / where):
            name = f"{where}/{entry.name}" if where else entry.name
            if entry.is_dir(follow_symlinks=False):
                inner = below(entry, name, kind)
                yield name, "foreign" if inner is None else "directory"
                if inner is not None:
                    waiting.append((name, inner))
            else:
                form = "|".join(_FILES[kind])
                ours = entry.is_file(follow_symlinks=False) and re.fullmatch(form, entry.name)
                yield name, "file" if ours else "foreign"


# What killed writers left


def _clean(target: Path) -> None:
    """Clean up what writers to `target` left that were killed, and put back what they took away."""
    # What was taken away is put back before what should have come in its place is removed.
    for kind, path in sorted(placing.leftovers(target), key=lambda found: found[0] != "old"):
        with contextlib.suppress(OSError, StoreError):  # another writer may be at it too
            if kind in ("partial", "probe"):
                shutil.rmtree(path)
            elif kind == "old" and not os.path.lexists(target):
                placing.rename_new(path, target)
            elif kind in ("new", "old") and path.is_dir() and not os.listdir(path):
                path.rmdir()
            elif kind in ("new", "old") and os.path.lexists(target) and not foreign_entries(path):
                remove_store(path)
