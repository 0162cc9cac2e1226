"""A pytest plugin for `make gpu-check`: what each test came to, as it comes; an end where the GPU is lost.

    python -m pytest -p gpu_progress --progress FILE …

FILE gets a line for each test as it begins and another as it ends, so that a run that was cut short or whose
process died still says what it did. Tests that are in FILE already are left out: after an error that leaves
the process without its GPU (an illegal address, say), the session ends, and another goes on from there.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

BEGUN = "begun"


def read(path: Path) -> dict[str, str]:
    """The last that is known of every test, by its name: begun, passed, failed, skipped or error."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: state for state, _, name in (line.partition("\t") for line in lines)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of pytest."""
    parser.addoption("--progress", type=Path, required=True, help="the file of what each test came to")


def pytest_configure(config: pytest.Config) -> None:
    """Of pytest."""
    config.pluginmanager.register(Progress(config.getoption("--progress")))


def lost() -> str | None:
    """Waits for the GPU; what it says if this process can use it no more."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).strip().splitlines()[0]
    return None


class Progress:
    """Writes the file."""

    def __init__(self, path: Path) -> None:
        self._path, self._before = path, read(path)

    def _write(self, state: str, name: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{state}\t{name}\n")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out what is done."""
        done = [item for item in items if item.nodeid in self._before]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in self._before]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._write(BEGUN, nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Its set-up, itself or what follows it has ended."""
        if report.when == "call" or report.skipped:
            self._write(report.outcome, report.nodeid)
        elif report.failed:
            self._write("error", report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """A kernel's failure belongs to the test that launched it, and ends the session."""
        try:
            yield
        finally:
            why = lost()
            if why is not None:
                item.session.shouldstop = f"the GPU is lost to this process: {why}"
                pytest.fail(f"the GPU is lost to this process: {why}", pytrace=False)
