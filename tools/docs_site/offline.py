"""Whether a built site is read without a network: what its pages load, and where that comes from.

    python tools/docs_site/offline.py build/site    names pages that load what is elsewhere, and ends with 1

Links that a reader may follow are no matter.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

LOADS = {"src", "srcset", "data", "poster"}


class Loaded(HTMLParser):
    """What a page loads from elsewhere.

    >>> page = Loaded()
    >>> page.feed('<a href="https://a.org">a</a><script src="//b.org/c.js"></script><img src="d.png">')
    >>> page.found
    ['//b.org/c.js']
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for each tag."""
        given = dict(attrs)
        names = {"href"} if tag == "link" and given.get("rel") not in ("canonical", "next", "prev") else LOADS
        values = (given.get(name) or "" for name in names)
        self.found += [value for value in values if value.startswith(("http://", "https://", "//"))]


def main(site: Path) -> int:
    """0 where no page loads anything from elsewhere."""
    pages = sorted(site.rglob("*.html"))
    if not pages:
        print(f"{site} has no pages", file=sys.stderr)
        return 1
    faults = 0
    for path in pages:
        page = Loaded()
        page.feed(path.read_text(encoding="utf-8"))
        for what in page.found:
            print(f"{path.relative_to(site)} loads {what}", file=sys.stderr)
            faults += 1
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        if "@import" in text or "url(http" in text or "url(//" in text:
            print(f"{path.relative_to(site)} loads what is not here", file=sys.stderr)
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
