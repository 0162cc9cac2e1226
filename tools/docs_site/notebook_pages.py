"""Notebooks as pages of the documentation site.

    cells of text    as they are
    cells of code    as code; what they wrote or drew below them, if the notebook holds it

Notebooks are committed without outputs; `tools/docs_site/run_notebooks.py` makes copies that hold them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Page:
    """Markdown, and the pictures that it shows, by their file names."""

    title: str
    text: str
    pictures: dict[str, bytes] = field(default_factory=dict)


def page_of(notebook: Path, outputs: Path | None = None) -> Page:
    """The page of a notebook; `outputs` is a copy that has been run."""
    cells = json.loads((outputs or notebook).read_text(encoding="utf-8"))["cells"]
    page = Page("", "")
    parts = []
    for cell in cells:
        source = "".join(cell["source"]).strip("\n")
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _shown(output, page, notebook.stem))]
    note = f"*This page is the notebook `notebooks/{notebook.name}` of the repository.*"
    page.title = parts[0].partition("\n")[0].removeprefix("# ")
    heading, _, rest = parts[0].partition("\n")
    page.text = "\n\n".join([heading, note, rest.strip("\n"), *parts[1:]]) + "\n"
    return page


def _shown(output: dict[str, Any], page: Page, stem: str) -> str:
    """An output as Markdown."""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(page.pictures) + 1}.png"
        page.pictures[name] = base64.b64decode(data["image/png"])
        return f"![]({name})"
    if output["output_type"] == "stream" and output["name"] != "stdout":
        return ""
    text = "".join(output["text"] if output["output_type"] == "stream" else data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT / "build" / "notebooks"
"""Where copies with outputs are kept."""


def copy_of(notebook: Path) -> Path:
    """Where the copy with outputs of a notebook as it is now belongs."""
    digest = hashlib.sha256(notebook.read_bytes()).hexdigest()[:16]
    return RUN / f"{notebook.stem}-{digest}.ipynb"


def run_copy(notebook: Path) -> Path | None:
    """That copy, if it has been made."""
    copy = copy_of(notebook)
    return copy if copy.is_file() else None
