"""Putting files and directories at a path: whole or not at all, and never in the place of something else.

What is written is written beside its place, under a hidden name that says which process is at it, and then
renamed. Two kinds of renaming do all that is needed:

* `rename_new` never replaces what is there, even if it appeared a moment ago;
* `exchange` swaps two names at one instant, so that a path that held something always holds something.

Linux (`renameat2`) and macOS (`renamex_np`) have both; some network file systems do not. There `rename_new`
claims the name first (`mkdir`, `link`), and `exchange` is not to be had (`Unsupported`): whoever replaces
something there has a moment in which its path is empty, see `toykern/results/store_place.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Owner", "Unsupported", "beside", "exchange", "leftovers", "rename_new", "sync", "sync_names"]

_NO_REPLACE = {"linux": 1, "darwin": 4}  # RENAME_NOREPLACE; RENAME_EXCL
_EXCHANGE = {"linux": 2, "darwin": 2}  # RENAME_EXCHANGE; RENAME_SWAP
_AT_FDCWD = -100
_NOT_THERE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_SYNCS = 16
_A_DAY = 86_400.0  # seconds
_INITIAL_NAMESPACE = "pid:[4026531836]"  # of process ids; the number is fixed in Linux


class Unsupported(OSError):
    """The system or the file system has no such renaming."""


# Renaming


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or directory to a name that nothing has.

    Raises:
        FileExistsError: something is at `target`; both are as they were.
        OSError: the renaming failed.
    """
    try:
        _rename(source, target, _NO_REPLACE)
    except Unsupported:
        # Claim the name, which fails if there is anything; what is then replaced is the claim.
        if source.is_dir() and not source.is_symlink():
            target.mkdir()
            try:
                os.rename(source, target)  # over an empty directory only
            except BaseException:
                with contextlib.suppress(OSError):
                    target.rmdir()  # fails if someone put anything into it
                raise
        else:
            try:
                os.link(source, target, follow_symlinks=False)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.replace(source, target)
            else:
                source.unlink()


def exchange(one: Path, other: Path) -> None:
    """Let two existing names change places, at one instant.

    Raises:
        Unsupported: that is not to be had here; both are as they were.
        OSError: one of them is gone, or the renaming failed.
    """
    _rename(one, other, _EXCHANGE)


def _rename(source: Path, target: Path, flags: dict[str, int]) -> None:
    flag, call = flags.get(sys.platform), _renaming()
    if flag is None or call is None:
        raise Unsupported(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(os.fsencode(source), os.fsencode(target), flag) != 0:
        number = ctypes.get_errno()
        kind = Unsupported if number in _NOT_THERE else OSError
        raise kind(number, os.strerror(number), str(source), None, str(target))


@functools.cache
def _renaming() -> Callable[[bytes, bytes, int], int] | None:
    """The system's renaming with flags; None where its C library has none."""
    library = ctypes.CDLL(None, use_errno=True)
    text, number = ctypes.c_char_p, ctypes.c_uint
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        at = library.renameat2
        at.argtypes, at.restype = [ctypes.c_int, text, ctypes.c_int, text, number], ctypes.c_int
        return lambda source, target, flag: at(_AT_FDCWD, source, _AT_FDCWD, target, flag)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        to = library.renamex_np
        to.argtypes, to.restype = [text, text, number], ctypes.c_int
        return lambda source, target, flag: to(source, target, flag)
    return None


def sync(path: Path) -> None:
    """Return when a directory, with everything in it, or a file is on the disk.

    Raises:
        OSError: it could not be written.
    """
    files, directories = [path], []
    if path.is_dir():
        found = list(os.walk(path))
        files = [Path(where, name) for where, _, names in found for name in names]
        directories = [Path(where) for where, _, _ in found]
    # All at once: file systems write what many ask for in one go.
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync_file, files))
        list(pool.map(sync_names, directories))


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_names(directory: Path) -> None:
    """Return when the names in a directory, not the files behind them, are on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems have no syncing of directories, and keep the names some other way.
        if error.errno not in _NOT_THERE:
            raise
    finally:
        os.close(handle)


# Names beside a place, and what killed processes left there


@dataclass(frozen=True)
class Owner:
    """The process that writes something, as it stands in the name of what it writes.

    Attributes:
        machine: where process ids are told apart: host, machine, and whether in a container ("c") or
            not ("m").
        boot: of that machine, and the process-id namespace.
        pid: of the process.
        start: when it began, in the clock ticks of its machine; 0 where that is not known.
    """

    machine: str
    boot: str
    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.machine}-{self.boot}-{self.pid}-{self.start}"

    @staticmethod
    def here() -> Owner:
        """This process."""
        machine, boot = _machine()
        return Owner(machine, boot, os.getpid(), _start_of(os.getpid()))

    def gone(self, idle: float) -> bool:
        """Whether the process has ended; False where that cannot be told from here.

        `idle` is for how many seconds nothing has been written.
        """
        machine, boot = _machine()
        if self.machine != machine:
            return False
        if self.boot != boot:
            # An earlier boot of this machine, unless another one was given its name and number by mistake:
            # no store takes a day to be written. A container may also be the one next door.
            return machine.startswith("m") and idle > _A_DAY
        if _exists(self.pid):
            return self.start != 0 and _start_of(self.pid) not in (self.start, 0)
        return True


_LEFT = re.compile(r"(?P<kind>[a-z]+)-(?P<machine>[mc][0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<pid>\d+)-"
                   r"(?P<start>\d+)-[0-9a-f]{8}")  # fmt: skip


def beside(target: Path, kind: str) -> Path:
    """A fresh hidden name in the directory of `target`, hence on its file system, that names this process.

    `kind`, a word, says what becomes of it if the process dies.
    """
    return target.with_name(f"{_prefix(target)}{kind}-{Owner.here()}-{secrets.token_hex(4)}")


def leftovers(target: Path) -> Iterator[tuple[str, Path]]:
    """What processes that are gone left beside `target`: its kind and its path."""
    prefix = _prefix(target)
    try:
        names = sorted(os.listdir(target.parent))
    except OSError:
        return
    for name in names:
        found = _LEFT.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if found is None:
            continue
        owner = Owner(found["machine"], found["boot"], int(found["pid"]), int(found["start"]))
        path = target.with_name(name)
        with contextlib.suppress(FileNotFoundError):  # another writer was faster
            if owner.gone(time.time() - path.lstat().st_mtime):
                yield found["kind"], path


def _prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > 120:  # names have at most 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}."


@functools.cache
def _machine() -> tuple[str, str]:
    """`Owner.machine` and `Owner.boot` of this process."""
    identity = _text("/etc/machine-id")
    boot = _text("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    kind = "m" if identity and boot and namespace == _INITIAL_NAMESPACE else "c"
    return kind + _hash(socket.gethostname(), identity), _hash(boot, namespace)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user; or no number of a process
    return True


def _start_of(pid: int) -> int:
    """When a process began, in clock ticks since the machine did; 0 where that is not known."""
    # The name, in parentheses, may hold anything; the start is the twentieth field after it.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0
