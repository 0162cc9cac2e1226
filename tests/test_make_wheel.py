"""The tools about the wheel: what may be in it, and what editors are told of the build."""

from __future__ import annotations

import ast
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import compile_commands  # noqa: E402
import make_wheel  # noqa: E402
import native_build  # noqa: E402

GOOD = (
    "toykern/__init__.py", "toykern/py.typed", "toykern/_native.pyi",
    "toykern/_native.cpython-311-x86_64-linux-gnu.so", "toykern-1.dist-info/licenses/LICENSE",
)  # fmt: skip


def wheel_of(folder: Path, names: tuple[str, ...]) -> Path:
    path = folder / "toykern-1-cp311-cp311-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_what_a_wheel_has(tmp_path):
    make_wheel.check_contents(wheel_of(tmp_path, GOOD))


@pytest.mark.parametrize(
    "extra",
    [
        "toykern.libs/libgomp-a34b3233.so.1",
        "toykern.libs/libtorch_cpu.so",
        "csrc/cpu/run.cpp",
        "tests/kit.py",
    ],
)
def test_what_must_not_be_in_it(tmp_path, extra):
    with pytest.raises(SystemExit, match=extra.rsplit("/", maxsplit=1)[-1]):
        make_wheel.check_contents(wheel_of(tmp_path, (*GOOD, extra)))


@pytest.mark.parametrize("missing", GOOD[1:])
def test_what_must_not_be_missing(tmp_path, missing):
    with pytest.raises(SystemExit, match="missing: \\["):
        make_wheel.check_contents(wheel_of(tmp_path, tuple(name for name in GOOD if name != missing)))


def test_the_core_reads_nothing_of_the_checkout():
    """Its files, and those of the suite that they import, run where there are tests alone."""
    todo, seen = [f"test_{name}" for name in make_wheel.CORE], set()
    while todo:
        name = todo.pop()
        path = ROOT / "tests" / f"{name}.py"
        if name in seen or not path.exists():
            continue
        seen.add(name)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                named = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                todo += [str(part) for part in named]
                assert not {"bench", "native_build"} & {str(part).split(".")[0] for part in named}, name
        assert not any(isinstance(node, ast.Name) and node.id == "ROOT" for node in ast.walk(tree)), name
    assert len(seen) > len(make_wheel.CORE)


def test_editors_are_told_how_each_source_is_compiled(monkeypatch):
    monkeypatch.setenv("TOYKERN_CUDA", "0")
    monkeypatch.setenv("CXX", "ccache g++")
    settings = native_build.Settings.from_environment(ROOT, version="0")
    made = {entry["file"]: entry["command"] for entry in compile_commands.entries(settings)}
    assert set(made) == {path.as_posix() for path in native_build.sources(settings)}
    assert all(command.startswith("g++ ") and command.endswith(file) for file, command in made.items())
    assert "_v4" not in settings.levels or "-march=x86-64-v4" in made["csrc/cpu/level_v4.cpp"]
