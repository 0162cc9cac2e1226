"""The documentation site: a place for every page, a page for every public name, nothing from elsewhere."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import toykern as tk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "docs_site"))

import notebook_pages
import offline
import reference

ROOT = Path(__file__).resolve().parent.parent


def navigation() -> Iterator[str]:
    """The pages that mkdocs.yml names."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\n\n")[0]
    yield from re.findall(r": (\S+)$", nav, re.M)


def test_every_page_of_docs_has_a_place() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"gallery.md"}
    made = {"index.md", "changelog.md", "contributing.md"}
    assert {page for page in navigation() if not page.endswith("/")} == pages | made


def test_every_public_name_has_a_page() -> None:
    found = reference.entries()
    pages = [entry.file.lower() for entry in found]
    assert len(set(pages)) == len(pages), "pages that some file systems take for one"
    names = {entry.name for entry in found}
    for home in reference.HOMES:
        package = sys.modules[home]
        for name in package.__all__:
            assert name in names or isinstance(getattr(package, name), ModuleType), f"{home}.{name}"
    modules = {f"toykern.{name}" for name in tk.__all__ if isinstance(getattr(tk, name), ModuleType)}
    assert modules <= set(reference.HOMES)
    index = reference.index(found)
    assert all(f"]({entry.file})" in index for entry in found)


def test_a_constant_shows_what_it_is() -> None:
    entry = next(entry for entry in reference.entries() if entry.name == "SUPERPOSITION")
    assert f"```python\n{tk.metrics.SUPERPOSITION}\n```" in entry.page


def test_notebooks_become_pages_with_what_they_drew(tmp_path: Path) -> None:
    picture = base64.b64encode(b"a picture").decode()
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "stream", "name": "stderr", "text": ["a warning\n"]},
                {"output_type": "display_data", "data": {"image/png": picture, "text/plain": ["<Figure>"]}},
                {"output_type": "execute_result", "data": {"text/plain": ["2"]}},
            ],
        },
    ]
    path = tmp_path / "some.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    page = notebook_pages.page_of(path)
    assert page.title == "Title" and page.text.startswith("# Title\n") and "Text." in page.text
    assert "```python\nprint(1)\n```\n\n```text\n1\n```\n\n![](some-1.png)\n\n```text\n2\n```" in page.text
    assert "warning" not in page.text and page.pictures == {"some-1.png": b"a picture"}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = notebook_pages.page_of(notebook)
        assert page.title and "$" not in page.text, "write formulas in plain letters: nothing sets others"


def test_what_is_loaded_from_elsewhere_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert offline.main(tmp_path) == 1
    page = tmp_path / "index.html"
    page.write_text(
        '<a href="https://a.org"></a><link rel="canonical" href="https://a.org"><img src="a.png">'
    )
    assert offline.main(tmp_path) == 0
    page.write_text('<link rel="stylesheet" href="https://a.org/b.css">')
    assert offline.main(tmp_path) == 1
    assert "index.html loads https://a.org/b.css" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("mkdocstrings") is None, reason="no mkdocs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    assert offline.main(tmp_path / "site") == 0
    example = (tmp_path / "site" / "reference" / "toykern.metrics.best_packing.function.html").read_text()
    assert 'class="gp"' in example and "<blockquote>" not in example  # a prompt, not a quotation
