"""The notebooks run from top to bottom on a small budget, and are committed without their outputs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import toykern

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
SMALL = {"STEPS": 20, "SEEDS": 2, "POINTS": 4}  # put in place of what the cell tagged "parameters" sets
KERNEL = "python-under-test"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def on_a_small_budget(notebook: NotebookNode) -> NotebookNode:
    """The notebook with a cell after its parameters that makes them small."""
    tagged = [k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "exactly one cell must have the tag 'parameters'"
    given: dict[str, object] = {}
    exec(notebook.cells[tagged[0]].source, given)
    names = {name for name in given if not name.startswith("_")}
    assert names <= set(SMALL), f"say what a small budget is for {sorted(names - set(SMALL))}"
    small = "\n".join(f"{name} = {SMALL[name]}" for name in sorted(names))
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(small))
    return notebook


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A Jupyter kernel that is this very Python with this very toykern, whatever kernels the user has."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    here = str(Path(toykern.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(":"))
    return KERNEL


def test_there_is_a_quick_start():
    assert "quick_start" in [path.stem for path in NOTEBOOKS]


@pytest.mark.slow
@each_notebook
def test_runs(path, kernel, tmp_path):
    notebook = on_a_small_budget(nbformat.read(path, as_version=4))
    workdir = tmp_path / "work"
    workdir.mkdir()
    client = NotebookClient(
        notebook, kernel_name=kernel, timeout=1800, resources={"metadata": {"path": str(workdir)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if "Warning" in output.get("text", "")] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert list(workdir.iterdir()) == []  # a notebook cleans up after itself


@each_notebook
def test_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells if cell.outputs or cell.execution_count is not None] == []
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name"}  # not the version it was last run with
