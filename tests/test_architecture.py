"""The house has one direction: no import circles, no arrow up, and rooms that hand out what is public."""

from __future__ import annotations

import ast
import importlib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import toykern

PACKAGE = Path(toykern.__file__).parent

ROOMS = (
    "arguments", "native", "network", "ops", "data", "metrics", "plot", "sparse", "nn", "training", "results",
    "fitting", "llc", "terminal", "explorer", "sweeps", "experiments", "typing", "reference", "info", "cli",
    "__main__",
)  # fmt: skip
"""Packages and modules below `toykern`, lowest first: each may import from those before it."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, anywhere in it: in functions and for types too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    """module → modules that it imports. The package itself is left out, which imports all of them."""
    known = modules()
    edges = {
        name: imports_of(ast.parse(path.read_text(encoding="utf-8")), known) - {name, "toykern"}
        for name, path in known.items()
    }
    del edges["toykern"]
    return edges


def circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """A way from a module back to it, for each module that has one."""
    for start in edges:
        came_from: dict[str, str] = {}
        todo = [start]
        while todo and start not in came_from:
            here = todo.pop()
            for there in edges[here] - came_from.keys():
                came_from[there] = here
                todo.append(there)
        if start in came_from:
            way = [start]
            while way[-1] != start or len(way) == 1:
                way.append(came_from[way[-1]])
            yield way[::-1]


def room_of(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


def test_a_circle_is_found():
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}
    assert sorted(circles(edges)) == [["b", "c", "b"], ["c", "b", "c"]]


def test_imports_are_seen_wherever_they_stand():
    known = {"toykern.a": PACKAGE, "toykern.b": PACKAGE, "toykern.b.c": PACKAGE}
    text = "import toykern.a\ndef f():\n    from toykern.b import c\n    from toykern.b import name\n"
    assert imports_of(ast.parse(text), known) == {"toykern.a", "toykern.b.c", "toykern.b"}


def test_there_is_no_circle():
    assert list(circles(graph())) == []


def test_every_arrow_points_down():
    against = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room_of(other) > room_of(module)
    ]
    assert against == []


def test_nobody_below_imports_from_the_package_itself():
    """`from toykern import fit` inside the package would only work once all of it has been imported."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if name != "toykern" and isinstance(node, ast.ImportFrom) and node.module == "toykern":
                given = {alias.name for alias in node.names}
                assert given <= {"_native", *ROOMS}, f"{name} imports {given} from toykern"


PACKAGES = sorted(name for name, path in modules().items() if path.name == "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_hides_a_module(package):
    """Where a package has a module of a name, that name of the package is the module, not a function."""
    at = importlib.import_module(package)
    for path in Path(at.__file__).parent.iterdir():
        name = path.stem if path.suffix == ".py" else path.name
        if f"{package}.{name}" in modules() and hasattr(at, name):
            assert isinstance(getattr(at, name), types.ModuleType), f"{package}.{name} is hidden"


def test_public_names_are_handed_out_by_the_room_that_has_them():
    for name in toykern.__all__:
        given = getattr(toykern, name)
        if isinstance(given, types.ModuleType):
            continue
        room = ".".join(given.__module__.split(".")[:2])
        handed_out = importlib.import_module(room)
        assert name in handed_out.__all__ and getattr(handed_out, name) is given, f"{room} hides {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_keep_their_word(package):
    """Every room says what of it is public, if only that nothing is."""
    at = importlib.import_module(package)
    for name in at.__all__:
        assert hasattr(at, name), f"{package}.__all__ names {name}, which is not there"
