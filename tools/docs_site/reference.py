"""The reference of the documentation site: a page for each public object, from the packages' own `__all__`.

An object's page stands under the first of `HOMES` that hands it out. The packages are imported, so that a
name in `__all__` that is not there fails the build.
"""

from __future__ import annotations

import importlib
import inspect
import pprint
from dataclasses import dataclass
from types import ModuleType
from typing import Any

HOMES = {
    "toykern": "Models, data, training and results: what `import toykern as tk` gives.",
    "toykern.metrics": "What to measure of weights and codes.",
    "toykern.plot": "Pictures.",
    "toykern.sparse": "Topologies, criteria and recipes of sparse layers.",
    "toykern.llc": "Local learning coefficients.",
    "toykern.experiments": "Experiments of the literature.",
    "toykern.nn": "What modules share, and their initial weights.",
    "toykern.training": "Optimisers and what they are made of.",
    "toykern.results": "What a run is stored as.",
    "toykern.sweeps": "Grids of runs in one store.",
    "toykern.typing": "Names for annotations.",
    "toykern.ops": "The fused layer's operators, for modules of your own.",
}
"""The packages with public names, and what is in each."""


@dataclass(frozen=True)
class Entry:
    """A public object: its home and name there, and the first sentence of what it says of itself."""

    home: str
    name: str
    summary: str
    value: Any

    @property
    def file(self) -> str:
        """Of its page: no two differ in capitals alone, which some file systems take for one."""
        kind = "class" if inspect.isclass(self.value) else "function" if callable(self.value) else "constant"
        return f"{self.home}.{self.name}.{kind}.md"

    @property
    def path(self) -> str:
        """Of its page, within the site."""
        return f"reference/{self.file}"

    @property
    def page(self) -> str:
        """Its text: a heading that mkdocstrings fills in; of a constant, what it is."""
        whole = f"{self.home}.{self.name}"
        title = f"---\ntitle: {self.name}\n---\n\n"
        if _is_documented(self.value):
            return f"{title}::: {whole}\n"
        shown = pprint.pformat(self.value, width=100, sort_dicts=False)
        return f"{title}# `{whole}`\n\nA constant:\n\n```python\n{shown}\n```\n"


def entries() -> list[Entry]:
    """All public objects, each once, by home and name."""
    found: list[Entry] = []
    seen: set[int] = set()
    for home in HOMES:
        package = importlib.import_module(home)
        for name in sorted(package.__all__, key=str.lower):
            value = getattr(package, name)
            if isinstance(value, ModuleType) or (_is_documented(value) and id(value) in seen):
                continue
            seen.add(id(value))
            found.append(Entry(home, name, _summary(value), value))
    return found


def index(found: list[Entry]) -> str:
    """The page that leads to all others."""
    lines = ["# Reference", "", "Every public name, each on a page of its own.", ""]
    for home, what in HOMES.items():
        rows = [
            f"| [`{entry.name}`]({entry.file}) | {entry.summary} |" for entry in found if entry.home == home
        ]
        if rows:
            lines += [f"## `{home}`", "", what, "", "| name | what it is |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _is_documented(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def _summary(value: Any) -> str:
    """The first sentence of its docstring, fit for a table; nothing for a constant."""
    text = (inspect.getdoc(value) or "") if _is_documented(value) else ""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.replace("|", "\\|")
