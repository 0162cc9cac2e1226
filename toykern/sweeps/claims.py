"""The folder in which those who work at a sweep leave word: claims, begun chunks, and where chunks came from.

It lies within the array `chunk_seconds`, where no other reader of Zarr looks, and holds by chunk number n

    n.claim    somebody trains this chunk: host, process and time. Made exclusively; removed when done
    n.begun    empty: pieces of the chunk may be there although it is not finished
    n.origin   host, device, instruction set and version that trained it, and how long that took
    n.kept     models of an unfinished chunk that were trained before (`kept.py`)
    write-…    a chunk on its way to its place (`writing.py`)

Claims only save time: two that train one chunk write the same bits. So a claim that is void too early, by
whatever clock, costs a chunk's training and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toykern.results.placing import Owner
from toykern.results.store_format import StoreError, digest

WORK = "chunk_seconds/work"
_MULTIPLE = 4.0  # of the longest chunk that is finished: after so long without a sign a claim is void
_LEAST, _UNKNOWN = 60.0, 900.0  # seconds: sooner it never is; where no chunk is finished yet
_BEAT = 5.0  # seconds from one sign of life to the next


@dataclass(frozen=True)
class Claim:
    """A chunk that somebody trains.

    Attributes:
        number: of the chunk.
        host, pid: of the process; "" and 0 where the claim cannot be read.
        age: seconds since its process gave a sign of life, by the clock of the file system.
        void: its process has ended, or gave no sign for longer than a chunk takes.
    """

    number: int
    host: str
    pid: int
    age: float
    void: bool


class Claims:
    """The claims on the chunks of the sweep in `store`."""

    def __init__(self, store: Path) -> None:
        self._folder = store / WORK

    def numbers(self) -> set[int]:
        """The chunks that are claimed, by a listing."""
        return numbers_of(self._folder, ".claim")

    def take(self, number: int, longest: float | None) -> bool:
        """Claim a chunk; False if somebody else has it. `longest` is the time of the longest finished chunk.

        Raises:
            OSError: the claim cannot be written.
        """
        path = self._folder / f"{number}.claim"
        text = json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "owner": _fields(Owner.here()),
                "time": time.time(),
            }
        )
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            claim = self.look(number, longest)
            if claim is not None and not claim.void:
                return False
            # Whoever finds it void at the same moment trains the chunk too.
            fresh = self._folder / f"{number}.claim-{secrets.token_hex(4)}"
            fresh.write_text(text, encoding="utf-8")
            os.replace(fresh, path)
            return True
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return True

    def keep_alive(self, number: int) -> Callable[[], None]:
        """What to call now and then while a chunk is trained, so that its claim stays young."""
        path, last = self._folder / f"{number}.claim", time.monotonic()

        def beat() -> None:
            nonlocal last
            if time.monotonic() - last > _BEAT:
                last = time.monotonic()
                with contextlib.suppress(OSError):  # then somebody may train the chunk too
                    os.utime(path)

        return beat

    def release(self, number: int) -> None:
        """Give a chunk back, or say that it is finished."""
        with contextlib.suppress(OSError):  # it becomes void by itself
            (self._folder / f"{number}.claim").unlink()

    def look(self, number: int, longest: float | None) -> Claim | None:
        """The claim on a chunk; None where there is none."""
        path = self._folder / f"{number}.claim"
        try:
            age = self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            owner, host, pid = Owner(*found["owner"]), str(found["host"]), int(found["pid"])
            gone = owner.gone(age)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):  # it is being written, or was cut short
            host, pid, gone = "", 0, age > _LEAST
        # One that is as far in the future was dated by a clock that has been set back since.
        old = abs(age) > (_UNKNOWN if longest is None else max(_LEAST, _MULTIPLE * longest))
        return Claim(number, host, pid, age, gone or old)

    def _now(self) -> float:
        """The time by the clock that dates the files, which may be that of another machine."""
        probe = self._folder / f"now-{secrets.token_hex(4)}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def begun(store: Path, number: int) -> Iterator[None]:
    """While a chunk's pieces are put in place; what is left after that, without a mark, was cut short."""
    path = store / WORK / f"{number}.begun"
    path.touch()
    yield
    path.unlink(missing_ok=True)


def is_begun(store: Path, number: int) -> bool:
    """Whether pieces of an unfinished chunk may be there."""
    return (store / WORK / f"{number}.begun").exists()


def write_origin(store: Path, number: int, origin: Mapping[str, Any]) -> None:
    """Say who trained a chunk, and how long it took."""
    folder = store / WORK
    fresh = folder / f"{number}.origin-{secrets.token_hex(4)}"
    fresh.write_text(json.dumps({**origin, "digest": digest(dict(origin))}), encoding="utf-8")
    os.replace(fresh, folder / f"{number}.origin")


def read_origin(store: Path, number: int) -> dict[str, Any]:
    """Who trained a finished chunk.

    Raises:
        StoreError: it is lost or damaged.
    """
    path = store / WORK / f"{number}.origin"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = found.pop("digest")
        whole = digest(found) == given
    except (OSError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise StoreError(
            f"{store} is damaged: the origin of chunk {number} cannot be read ({error})"
        ) from error
    if not whole:
        raise StoreError(f"{store} is damaged: the origin of chunk {number} is not what was written")
    return found


def numbers_of(folder: Path, ending: str = "") -> set[int]:
    """The chunks that have a file of some kind in a folder, by one listing.

    Raises:
        FileNotFoundError: there is no folder.
    """
    names = (name.removesuffix(ending) for name in os.listdir(folder) if name.endswith(ending))
    return {int(name) for name in names if name.isdecimal() and name.isascii()}


def scratch(store: Path) -> Path:
    """A fresh folder of this process, on the file system of the store, for a chunk on its way there.

    Raises:
        FileNotFoundError: the store is gone.
    """
    path = store / WORK / f"write-{Owner.here()}-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def clear_left(store: Path, finished: set[int]) -> None:
    """Remove what writers left that have ended, and claims on chunks that are finished."""
    for number in Claims(store).numbers() & finished:
        Claims(store).release(number)
    for number in numbers_of(store / WORK, ".kept") & finished:
        with contextlib.suppress(OSError):  # it costs room, no more
            (store / WORK / f"{number}.kept").unlink()
    for path in (store / WORK).glob("write-*-*-*-*-*"):
        parts = path.name.split("-")
        with contextlib.suppress(OSError, ValueError):  # another one may be at it
            owner = Owner(parts[1], parts[2], int(parts[3]), int(parts[4]))
            if owner.gone(time.time() - path.stat().st_mtime):
                shutil.rmtree(path)


def _fields(owner: Owner) -> list[str | int]:
    return [owner.machine, owner.boot, owner.pid, owner.start]
