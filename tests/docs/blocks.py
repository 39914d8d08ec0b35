"""Finds the examples of the documentation, and names the only reasons not to run one.

In Markdown, a fenced block names its language: `sh`, `python`, `yaml`, or `text` for what cannot run (output, a folder,
a prompt). An indented block is `sh`. A comment on the line before the block says why it is not run:

    <!-- test: hub -->

In a docstring, an example is written with `>>>`, and `# doctest: +HUB` says why a line of it is not run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
REASONS = {
    "extra": "needs a package that the tests do not install",
    "gpu": "needs a GPU",
    "hub": "downloads a model or a data set",
    "install": "installs software",
    "part": "shows a part of something that is complete elsewhere",
    "slow": "takes minutes",
    "usage": "shows the syntax of a command, with placeholders",
}
"""The word that a block carries -> what it means. Anything else has to run."""
LANGUAGES = ("sh", "python", "yaml", "text")

_FENCE = re.compile(r"```(\S*)\s*$")
_REASON = re.compile(r"<!-- test: (\S+) -->$")
_LOOKS_LIKE_PYTHON = re.compile(r"[\w\]]\(|^\s*(from|import) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page. line: of its first line, from 1. reason: why it is not run, or None."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    """The fenced and the indented blocks of a Markdown page, in order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    reason, at = None, 0
    while at < len(lines):
        if marked := _REASON.match(lines[at]):
            reason = marked[1]
        elif fence := _FENCE.match(lines[at]):
            end = lines.index("```", at + 1)
            found.append(Block(page, at + 2, fence[1], "\n".join(lines[at + 1 : end]), reason))
            reason, at = None, end
        elif lines[at].startswith("    ") and at and (not lines[at - 1].strip() or reason):
            end = next((i for i in range(at, len(lines)) if not lines[i].startswith("    ")), len(lines))
            found.append(Block(page, at + 1, "sh", "\n".join(line[4:] for line in lines[at:end]), reason))
            reason, at = None, end
        elif lines[at].strip():
            reason = None
        at += 1
    return found


def docstrings(source: str) -> Iterator[tuple[str, int, str]]:
    """(name, line, text without its indentation) of every docstring of a module's source; "" is the module's."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from of(child, f"{name}.{child.name}".strip("."))

    def of(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
        first = node.body[0] if getattr(node, "body", None) else None
        text = getattr(getattr(first, "value", None), "value", None)
        if first is not None and isinstance(text, str):
            margin = " " * first.col_offset
            yield name, first.lineno, "\n".join(line.removeprefix(margin) for line in text.split("\n"))
        yield from walk(node, name)

    return of(ast.parse(source), "")


def unmarked_examples(docstring: str) -> list[str]:
    """First lines of the paragraphs that read as Python and are not written with `>>>`."""
    paragraphs = re.split(r"\n(?:[ \t]*\n)+", docstring)[1:]
    return [
        p.strip().split("\n")[0] for p in paragraphs if not p.lstrip().startswith(">>>") and _is_python(p)
    ]


def _is_python(paragraph: str) -> bool:
    if paragraph.startswith("    "):
        return bool(_LOOKS_LIKE_PYTHON.search(paragraph))
    try:
        nodes = list(ast.walk(ast.parse(paragraph)))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom) for node in nodes)
