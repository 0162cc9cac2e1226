"""Where `make test-newest` finds its interpreter: on PATH, and in the folders of pyenv."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import newest_python


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Puts programs into folders that are the only ones looked at."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))

    def put(folder: str, name: str, says: str, status: int = 0) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
        path.chmod(0o755)
        return path

    return put


def test_nothing_newer(machine):
    assert newest_python.newest((3, 11)) is None
    machine("bin", "python3.11", "3 11 9")
    assert newest_python.newest((3, 11)) is None


def test_a_shim_that_does_not_start_is_passed_over(machine):
    machine("bin", "python3.13", "pyenv: python3.13: command not found", status=127)
    machine("pyenv/versions/3.12.1/bin", "python3.12", "3 12 1")
    chosen = machine("pyenv/versions/3.13.0/bin", "python3.13", "3 13 0")
    machine("pyenv/versions/3.13.0/bin", "python3.13-config", "3 13 9")
    machine("pyenv/versions/3.13.1/bin", "python3.13", "")  # a preview, or one without the interpreter's lock
    assert newest_python.newest((3, 11), (3, 13)) == chosen
    assert newest_python.newest((3, 13), (3, 13)) is None
    newer = machine("bin", "python3.13", "3 13 5")
    assert newest_python.newest((3, 12), (3, 13)) == newer


def test_what_was_not_tested_yet_is_passed_over(machine):
    machine("bin", "python3.14", "3 14 0")
    old = machine("bin", "python3.12", "3 12 8")
    assert newest_python.newest((3, 11), (3, 13)) == old


def test_pyenv_itself_says_where_its_versions_are(machine, monkeypatch, tmp_path):
    monkeypatch.delenv("PYENV_ROOT")
    machine("bin", "pyenv", str(tmp_path / "elsewhere"))
    chosen = machine("elsewhere/versions/3.13.0/bin", "python3.13", "3 13 0")
    assert newest_python.newest((3, 11), (3, 13)) == chosen


def test_this_interpreter_says_what_it_is():
    assert newest_python.version_of(Path(sys.executable)) == tuple(sys.version_info[:3])
    assert newest_python.version_of(Path(__file__)) is None
