"""Types as users have them: nothing public returns `Any`, and a strict checker sees what they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toykern as tk
from toykern import network, ops, sparse
from toykern import typing as tkt

SCRIPT = Path(__file__).with_name("typed_script.py")
PACKAGE = Path(tk.__file__).parent
ROOMS = ("data", "experiments", "metrics", "nn", "plot", "results", "sparse", "sweeps", "training", "typing")


def returns_of(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """(name, annotation of what it returns, None without one) of a public object and its public methods."""
    if inspect.isclass(thing):
        for member, value in inspect.getmembers(thing):
            function = value.fget if isinstance(value, property) else value
            ours = str(getattr(function, "__module__", "")).startswith("toykern")
            if callable(function) and ours and not member.startswith("_"):
                yield f"{name}.{member}", getattr(function, "__annotations__", {}).get("return", "nothing")
    elif inspect.isroutine(thing):
        yield name, thing.__annotations__.get("return")


def test_nothing_public_returns_any():
    rooms = [tk, *(importlib.import_module(f"toykern.{room}") for room in ROOMS)]
    found = {
        name: annotation
        for room in rooms
        for public in room.__all__
        if not isinstance(thing := getattr(room, public), types.ModuleType)
        for name, annotation in returns_of(f"{room.__name__}.{public}", thing)
    }
    assert len(found) > 300
    vague = {name for name, annotation in found.items() if annotation in (None, Any, "Any", "nothing")}
    # The kernels' view of the data, which only the package takes; settings of one experiment's own class.
    known = (".native", "Experiment.configure")
    assert {name for name in vague if not name.endswith(known)} == set()


def test_types_are_handed_out_in_one_place():
    """What public signatures name and neither the package nor a room hands out is in `toykern.typing`."""
    public = {*tk.__all__, *tkt.__all__, *ops.__all__, *network.__all__, *sparse.__all__}
    ours = set()
    for name in tk.__all__:
        for parameter in _annotations(getattr(tk, name)):
            ours |= {node.id for node in ast.walk(ast.parse(parameter)) if isinstance(node, ast.Name)}
    classes = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    assert {"Run", "Grid", "AttachedLayer", "Dataset"} <= ours & classes
    assert (ours & classes) - public == set()


def _annotations(thing: Any) -> Iterator[str]:
    functions = [thing]
    if inspect.isclass(thing):
        functions = [f for n, f in vars(thing).items() if inspect.isfunction(f) and n[0] != "_"]
        functions += [thing.__init__]
    for function in functions:
        yield from (a for a in getattr(function, "__annotations__", {}).values() if isinstance(a, str))


def test_strict_checkers_are_told_that_there_are_types():
    assert (PACKAGE / "py.typed").is_file() and (PACKAGE / "_native.pyi").is_file()
    project = PACKAGE.parent / "pyproject.toml"
    if project.exists():  # not beside an installed wheel
        told = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
        assert {"py.typed", "_native.pyi"} <= set(told["toykern"])


def test_the_script_has_what_people_use():
    used = {node.attr for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Attribute)}
    assert {"fit", "evaluate", "sweep", "open_sweep", "merge_sweeps", "sparsify", "TiedAutoencoder", "MLP",
            "SparseFeatures", "Dataset", "Run", "Sweep", "Grid", "metrics", "plot"} <= used  # fmt: skip


@pytest.mark.slow
def test_a_strict_checker_finds_no_any_in_a_users_script(tmp_path):
    """And does find the one in a second script, where a variable is declared so."""
    pytest.importorskip("mypy")
    text = SCRIPT.read_text()
    (tmp_path / "script.py").write_text(text)
    (tmp_path / "vague.py").write_text(text.replace("run = tk.fit(", "run: Any = tk.fit("))
    installed = PACKAGE.parent.name == "site-packages"  # only there py.typed is what counts
    path = {} if installed else {"MYPYPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "script.py", "vague.py"],
        cwd=tmp_path, env={**os.environ, **path}, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert [line for line in said if line.startswith("script.py")] == [], done.stdout
    assert any(line.startswith("vague.py") and 'is of type "Any"' in line for line in said), done.stdout
