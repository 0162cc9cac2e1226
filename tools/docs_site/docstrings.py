"""Docstrings as the documentation site shows them: examples as code, wherever they stand in the text."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^[ ]*>>> .*\n?(?:^[ ]*\S.*\n?)*)+", re.MULTILINE)


def fenced(text: str) -> str:
    """The text with each run of `>>>` lines, and the output below it, as a block of code.

    >>> print(fenced("Adds.\\n\\n>>> 1 + 1\\n2\\n\\nThat is all.").replace("`", "'"))
    Adds.
    <BLANKLINE>
    '''pycon
    >>> 1 + 1
    2
    '''
    <BLANKLINE>
    That is all.
    """

    def block(found: re.Match[str]) -> str:
        lines = found[0].rstrip("\n")
        indent = re.match(r" *", lines)
        assert indent is not None
        return f"{indent[0]}```pycon\n{lines}\n{indent[0]}```\n"

    return _EXAMPLE.sub(block, text)


class Examples(griffe.Extension):
    """Before griffe parses a docstring: its `>>>` would be quotations in Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """For every object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
