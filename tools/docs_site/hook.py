"""What mkdocs is told beside mkdocs.yml: pages that are no files in docs/, and where the navigation has them.

index.md                   the README, whose links lead to pages
changelog, contributing    what stands in the root under these names
tutorials/                 the notebooks (notebook_pages.py)
reference/                 a page for each public object (reference.py)
gallery/                   the experiments, in the order of the gallery's index
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import notebook_pages
import reference

ROOT = Path(__file__).resolve().parent.parent.parent
OF_THE_ROOT = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
TUTORIALS = (
    "quick_start",
    "fused_layer",
    "sparse_training",
    "experiments_toy_models",
    "experiments_finite_data",
    "experiments_neurons",
    "experiments_dictionaries",
)
"""In the order that one would read them in."""


def in_the_site(text: str) -> str:
    """A page of the root or of docs/, whose links lead to where their targets are in the site; where a target
    is no page, what the link said stays.

    >>> in_the_site("[a](docs/results.md#x), [b](../notebooks/quick_start.ipynb), [c](CONTRIBUTING.md)")
    '[a](results.md#x), [b](tutorials/quick_start.md), [c](contributing.md)'
    >>> in_the_site("[CITATION.cff](CITATION.cff)")
    'CITATION.cff'
    """
    text = re.sub(r"(\]\(|<img src=\")docs/", r"\1", text)
    text = re.sub(r"\]\((?:\.\./)?notebooks/(\w+)\.ipynb", r"](tutorials/\1.md", text)
    for page, name in OF_THE_ROOT.items():
        text = text.replace(f"]({name}", f"]({page}").replace(f"](../{name}", f"]({page}")
    return re.sub(r"\[([^\[\]]+)\]\((?:CITATION\.cff|LICENSE|SECURITY\.md)\)", r"\1", text)


def gallery() -> list[str]:
    """The gallery's pages, in the order of its index."""
    index = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    return re.findall(r"^## \[.*\]\((.*\.md)\)$", index, re.MULTILINE)


def tutorials() -> dict[str, notebook_pages.Page]:
    """The notebooks' pages by name; a copy that was run is taken where there is one of this very notebook."""
    found = {path.stem: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    names = [name for name in TUTORIALS if name in found]
    names += sorted(found.keys() - set(names))
    return {name: notebook_pages.page_of(found[name], notebook_pages.run_copy(found[name])) for name in names}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the entries of the navigation that end in "/"."""
    by_home: dict[str, list[str]] = {}
    for entry in reference.entries():
        by_home.setdefault(entry.home, []).append(entry.path)
    filled: dict[str, list[Any]] = {
        "tutorials/": [f"tutorials/{name}.md" for name in tutorials()],
        "gallery/": ["gallery.md", *gallery()],
        "reference/": ["reference/index.md", *({home: pages} for home, pages in by_home.items())],
    }
    assert config.nav is not None
    config.nav = [
        {title: filled.get(what, what) if isinstance(what, str) else what}
        for entry in config.nav
        for title, what in entry.items()
    ]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks and to what stands in the root."""
    return in_the_site(markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    made: dict[str, str | bytes] = {
        page: in_the_site((ROOT / name).read_text(encoding="utf-8")) for page, name in OF_THE_ROOT.items()
    }
    found = reference.entries()
    made["reference/index.md"] = reference.index(found)
    made |= {entry.path: entry.page for entry in found}
    for name, page in tutorials().items():
        made[f"tutorials/{name}.md"] = page.text
        made |= {f"tutorials/{picture}": data for picture, data in page.pictures.items()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files
