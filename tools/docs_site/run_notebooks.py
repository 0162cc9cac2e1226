"""Copies of the notebooks with what they write and draw, for the documentation site.

    python tools/docs_site/run_notebooks.py [NAME ...]     those that have none yet

They run as they stand, on all cores, in a folder of their own; the copies stay in build/notebooks until a
notebook changes. Notebooks themselves are committed without outputs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parent))

import notebook_pages


def main(names: list[str]) -> int:
    """Runs those of these names, or all."""
    for path in sorted((notebook_pages.ROOT / "notebooks").glob("*.ipynb")):
        if (names and path.stem not in names) or notebook_pages.run_copy(path):
            continue
        print(f"{path.name} ...", flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
        copy = notebook_pages.copy_of(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
