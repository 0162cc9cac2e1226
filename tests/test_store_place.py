"""How stores take their place: at one instant, never in the place of anything else, and through kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_run_store import assert_same, made_run, names_in, without_exchange

import toykern
from toykern.results import placing, store, store_place
from toykern.results.run import Run
from toykern.results.store import StoreError, check_target

pytest.importorskip("zarr")


@pytest.fixture(params=["system", "plain"])
def renaming(request, monkeypatch) -> str:
    """With the system's renaming, and as on a file system that has nothing but the plain one."""
    if request.param == "plain":
        without_exchange(monkeypatch)
    return request.param


def ranked(number: int) -> Run:
    run = made_run(n_models=6)
    run.loss[:] = float(number)
    return run


# Renaming


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_rename_new_never_replaces(kind, renaming, tmp_path):
    def make(path, text):
        if kind == "file":
            path.write_text(text)
        else:
            path.mkdir()
            (path / text).touch()

    source, target, free = tmp_path / "source", tmp_path / "target", tmp_path / "free"
    make(source, "a")
    make(target, "b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for taken in (target, tmp_path / "empty", tmp_path / "dangling"):
        with pytest.raises(FileExistsError):
            placing.rename_new(source, taken)
    assert names_in(tmp_path) == ["dangling", "empty", "source", "target"]
    placing.rename_new(source, free)
    assert names_in(tmp_path) == ["dangling", "empty", "free", "target"]
    assert free.read_text() == "a" if kind == "file" else names_in(free) == ["a"]


def test_exchange_is_to_be_had_here_or_says_so(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    try:
        placing.exchange(tmp_path / "a", tmp_path / "b")
    except placing.Unsupported:
        assert (tmp_path / "a").is_file()
    else:
        assert (tmp_path / "a").is_dir() and (tmp_path / "b").read_text() == "a"
        with pytest.raises(FileNotFoundError):
            placing.exchange(tmp_path / "a", tmp_path / "nowhere")


# Somebody else is faster


@pytest.mark.slow
def test_of_many_saves_to_one_path_one_succeeds(renaming, tmp_path, monkeypatch):
    paths = 10 if renaming == "system" else 2
    runs = [ranked(number) for number in range(4 * paths)]
    together = threading.Barrier(4, timeout=300)
    place = store.place_store

    def at_once(partial, target, overwrite):
        together.wait()  # all four savers to a path have found it free
        place(partial, target, overwrite)

    monkeypatch.setattr(store, "place_store", at_once)
    monkeypatch.setattr(placing, "sync", lambda path: None)  # not what this is about, and slow

    def save(number):
        try:
            runs[number].save(tmp_path / f"{number // 4}.zarr")
        except StoreError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(save, range(4 * paths)))
    assert names_in(tmp_path) == sorted(f"{path}.zarr" for path in range(paths))
    for path in range(paths):
        won = [number for number in range(4 * path, 4 * path + 4) if outcomes[number] is None]
        assert len(won) == 1
        assert_same(runs[won[0]], Run.load(tmp_path / f"{path}.zarr"))
    refused = ["already holds a toykern store; overwrite="]
    if renaming != "system":  # there the winner claims the name by an empty folder, which a loser may see
        refused.append("exists and is not a toykern store; it will not be overwritten")
    assert [o for o in outcomes if o is not None and not any(text in o for text in refused)] == []


def appears(monkeypatch, make) -> None:
    """`make` is called when a store has been written and is about to be put in its place."""
    place = store.place_store

    def late(partial, target, overwrite):
        make(target)
        place(partial, target, overwrite)

    monkeypatch.setattr(store, "place_store", late)


def thesis(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "make", [thesis, lambda path: path.mkdir(), lambda path: path.write_text("precious")]
)
def test_what_appears_while_a_store_is_written_survives(overwrite, make, renaming, tmp_path, monkeypatch):
    appears(monkeypatch, make)
    with pytest.raises(StoreError, match="is not a toykern store; it will not be overwritten"):
        made_run().save(tmp_path / "run.zarr", overwrite=overwrite)
    assert names_in(tmp_path) == ["run.zarr"]
    make(tmp_path / "expected")
    for path in (tmp_path / "expected").rglob("*"):
        assert (tmp_path / "run.zarr" / path.name).read_text() == path.read_text()
    assert (tmp_path / "run.zarr").is_dir() == (tmp_path / "expected").is_dir()


def test_what_appears_at_the_last_moment_of_an_overwriting_gets_its_place_back(
    renaming, tmp_path, monkeypatch
):
    target = tmp_path / "run.zarr"
    made_run().save(target)
    check, times = store_place._check_replaceable, []

    def swapped(path, overwrite, called=None):
        check(path, overwrite, called)
        times.append(path)
        if len(times) == 2:  # the first was before anything was written
            shutil.rmtree(target)
            thesis(target)

    monkeypatch.setattr(store_place, "_check_replaceable", swapped)
    with pytest.raises(StoreError, match=r"run\.zarr exists and is not a toykern store"):
        made_run(seed=1).save(target, overwrite=True)
    assert names_in(tmp_path) == ["run.zarr"]
    assert (target / "thesis.tex").read_text() == "precious"


def test_a_store_that_vanishes_before_it_is_replaced_is_no_trouble(renaming, tmp_path, monkeypatch):
    target = tmp_path / "run.zarr"
    made_run().save(target)
    check, times = store_place._check_replaceable, []

    def vanishing(path, overwrite, called=None):
        check(path, overwrite, called)
        times.append(path)
        if len(times) == 2:
            shutil.rmtree(target)

    monkeypatch.setattr(store_place, "_check_replaceable", vanishing)
    made_run(seed=1).save(target, overwrite=True)
    assert_same(made_run(seed=1), Run.load(target))
    assert names_in(tmp_path) == ["run.zarr"]


FOREIGN = {
    "notes.txt": lambda path: path.write_text("precious"),
    "model/weight/notes": lambda path: path.write_text("precious"),
    "model/weight/c/0/figure.png": lambda path: path.write_text("precious"),
    "analysis": lambda path: (path.mkdir(), (path / "zarr.json").write_text("{}")),
    "loss/c/extra": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/"),
    "model/weight/c/7": lambda path: path.symlink_to("/"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_put_into_a_store_is_kept(name, tmp_path):
    target = tmp_path / "run.zarr"
    made_run().save(target)
    FOREIGN[name](target / name)
    with pytest.raises(
        StoreError, match="toykern did not write .* in it; it will not be overwritten"
    ) as caught:
        made_run(seed=1).save(target, overwrite=True)
    assert name in str(caught.value)
    assert os.path.lexists(target / name)
    assert_same(made_run(), Run.load(target))
    assert not store_place.remove_store(target)  # whatever calls it, that stays
    assert os.path.lexists(target / name) and not (target / "zarr.json").exists()


# Arguments


@pytest.mark.parametrize("flag", ["no", "", 0, 1, None])
def test_overwrite_is_true_or_false(flag, tmp_path):
    target = tmp_path / "run.zarr"
    made_run().save(target)
    for call in (lambda: made_run(seed=1).save(target, overwrite=flag), lambda: check_target(target, flag)):
        with pytest.raises(TypeError, match="overwrite must be True or False, not"):
            call()
    assert_same(made_run(), Run.load(target))


@pytest.mark.parametrize("path", [None, 5, b"run.zarr", "", "a\0b", torch.zeros(2)])
def test_paths_are_paths(path):
    for call in (made_run().save, Run.load, toykern.open_sweep, check_target):
        with pytest.raises((TypeError, ValueError), match="path must"):
            call(path)


# Kills


KILLS = {  # where; whether after it, or before; at which call; plain renaming; the store that is then there
    "written": ("store._write", True, 1, False, 0),
    "synced": ("placing.sync", True, 1, False, 0),
    "named new": ("os.rename", True, 1, False, 0),
    "before the exchange": ("placing.exchange", False, 1, False, 0),
    "after the exchange": ("placing.exchange", True, 1, False, 1),
    "before removing": ("store_place.remove_store", False, 1, False, 1),
    "while removing": ("os.rmdir", True, 30, False, 1),
    "all but removed": ("os.unlink", True, -1, False, 1),
    "plain, moved aside": ("os.rename", True, 2, True, None),
    "plain, in place": ("placing.rename_new", True, 2, True, 1),
}

# One process with everything imported, which forks for each kill before any thread is started.
KILLER = """
import os, signal, sys
sys.path[:0] = {path!r}
import pytest
import zarr
from test_run_store import made_run, without_exchange
from toykern.results import placing
from toykern.results import store
from toykern.results import store_place

def overwrite(target, at, after, nth, plain):
    if plain:
        without_exchange(pytest.MonkeyPatch())
    module, name = at.split(".")
    module = {{"os": os, "placing": placing, "store": store, "store_place": store_place}}[module]
    real, calls = getattr(module, name), []
    def killed(*arguments, **options):
        calls.append(arguments)
        root = nth == -1 and ".new-" in os.path.basename(os.path.dirname(arguments[0]))
        if not root and len(calls) != nth:
            return real(*arguments, **options)
        if after:
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, killed)
    made_run(seed=1).save(target, overwrite=True)

for target, at, after, nth, plain in {cases!r}:
    child = os.fork()
    if child == 0:
        overwrite(target, at, after, nth, plain)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, Path]:
    """Stores that a process was killed over, at each point of overwriting them."""
    targets = {name: tmp_path_factory.mktemp("killed") / "run.zarr" for name in KILLS}
    for target in targets.values():
        made_run().save(target)
    path = [str(Path(__file__).parent), str(Path(toykern.__file__).parents[1])]
    cases = [(str(targets[name]), *kill[:4]) for name, kill in KILLS.items()]
    script = KILLER.format(path=path, cases=cases)
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), finished.stderr
    return targets


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_a_kill_while_overwriting_leaves_a_whole_store_and_the_next_writer_cleans_up(name, killed):
    target, expected = killed[name], KILLS[name][-1]
    assert len(names_in(target.parent)) == 2
    if expected is None:  # the moment that only plain renaming has
        assert not target.exists()
        with pytest.raises(StoreError, match="already holds a toykern store"):
            made_run(seed=2).save(target)
        expected = 0
    assert_same(made_run(seed=expected), Run.load(target))
    check_target(target, overwrite=True)
    assert names_in(target.parent) == ["run.zarr"]
    assert_same(made_run(seed=expected), Run.load(target))


def test_the_leftovers_of_the_living_and_of_others_are_left_alone(tmp_path, monkeypatch):
    target = tmp_path / "run.zarr"
    here = placing.Owner.here()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    other = {"machine": here.machine[0] + "0" * 8, "boot": "0" * 8}

    def leave(kind="partial", **changed) -> str:
        fields = {"machine": here.machine, "boot": here.boot, "pid": here.pid, "start": here.start} | changed
        name = f".run.zarr.{kind}-{placing.Owner(**fields)}-00000000"
        (tmp_path / name).mkdir()
        return name

    kept = [
        leave(),  # this process
        leave(pid=1, start=0),  # another one, of which the start is not known
        leave(machine=other["machine"], pid=gone.pid),  # another machine
        leave(boot=other["boot"], pid=gone.pid),  # an earlier boot, a moment ago: that cannot be
    ]
    (tmp_path / ".run.zarr.partial-mine").mkdir()
    (tmp_path / ".other.zarr.partial-1").mkdir()
    leave(pid=gone.pid)
    leave(start=here.start + 1)  # its number has been given to this process
    thesis(tmp_path / leave("new", pid=gone.pid, start=2) / "of someone")
    check_target(target)
    assert {*kept, ".run.zarr.partial-mine", ".other.zarr.partial-1"} <= set(names_in(tmp_path))
    assert len(names_in(tmp_path)) == len(kept) + 3  # and the thesis
    if here.machine.startswith("m"):
        os.utime(tmp_path / kept[-1], (0, 0))
        check_target(target)
        assert kept[-1] not in names_in(tmp_path)


def test_names_that_are_too_long_for_more_are_saved_too(tmp_path):
    target = tmp_path / ("x" * 250)
    made_run().save(target)
    made_run(seed=1).save(target, overwrite=True)
    assert_same(made_run(seed=1), Run.load(target))
    assert names_in(tmp_path) == ["x" * 250]


def test_the_new_store_is_on_the_disk_before_the_old_one_goes(tmp_path, monkeypatch):
    target, seen = tmp_path / "run.zarr", []
    made_run().save(target)
    sync, exchange, remove = os.fsync, placing.exchange, store_place.remove_store

    def noted(what, call):
        def wrapper(*arguments):
            seen.append(what)
            return call(*arguments)

        return wrapper

    monkeypatch.setattr(os, "fsync", noted("sync", sync))
    monkeypatch.setattr(placing, "exchange", noted("exchange", exchange))
    monkeypatch.setattr(store_place, "remove_store", noted("remove", remove))
    made_run(seed=1).save(target, overwrite=True)
    entries = 1 + len(list(target.rglob("*")))  # every file and every directory
    if "remove" in seen:
        assert seen[: entries + 3] == ["sync"] * entries + ["exchange", "sync", "remove"]


def test_a_disk_that_fails_to_sync_leaves_the_old_store(tmp_path, monkeypatch):
    target = tmp_path / "run.zarr"
    made_run().save(target)

    def failing(handle):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoreError, match=r"cannot write .*run\.zarr: Input/output error"):
            made_run(seed=1).save(target, overwrite=True)
    assert names_in(tmp_path) == ["run.zarr"]
    assert_same(made_run(), Run.load(target))
