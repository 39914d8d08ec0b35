"""How docstrings become Markdown for the manual: examples as code, parameters as a list, brackets as they are.

mkdocs.yml names this file as an extension of griffe, which reads the docstrings.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_PARAMETER = re.compile(r"(\w+(?:, \w+)*): ")


def markdown(docstring: str) -> str:
    r"""A docstring's paragraphs as Markdown.

    >>> print(markdown("Adds.\n\na, b: Numbers.\n\n>>> add(1, 2)\n3"))
    Adds.
    <BLANKLINE>
    - `a, b`: Numbers.
    <BLANKLINE>
    ```pycon
    >>> add(1, 2)
    3
    ```
    """
    return "\n\n".join(map(_paragraph, re.split(r"\n\s*\n", docstring)))


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if text.startswith("    "):
        return f"```text\n{textwrap.dedent(text)}\n```"
    if _PARAMETER.match(text):
        # A line that is indented belongs to the one before.
        lines = re.sub(r"\n\s+", " ", text).split("\n")
        if all(_PARAMETER.match(line) for line in lines):
            return "\n".join(_PARAMETER.sub(r"- `\1`: ", line, count=1) for line in map(_plain, lines))
    return _plain(text)


def _plain(text: str) -> str:
    """Square brackets outside of code are no links."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\[\]])", r"\\\1", part) for part in parts)


class Docstrings(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
