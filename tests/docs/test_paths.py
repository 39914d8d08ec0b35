"""Files, modules and links that the documentation names exist."""

from __future__ import annotations

import importlib
import re
import tomllib
from functools import cache
from typing import Any

import pytest
import yaml
from blocks import PAGES, ROOT

import nlora

REPOSITORY = "https://github.com/nlora/nlora/blob/main/"
RAW = "https://raw.githubusercontent.com/nlora/nlora/main/"
NOT_WRAPPED = {"docs/configuration.md"}  # generated


@cache
def _files() -> frozenset[str]:
    """Every file of the repository, each also by the ends of its path: `a/b.py` and `b.py`."""
    folders = ("src", "tests", "benchmarks", "docs", "examples", "tools")
    paths = [f.relative_to(ROOT) for folder in folders for f in (ROOT / folder).rglob("*.*")]
    return frozenset("/".join(path.parts[start:]) for path in paths for start in range(len(path.parts)))


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _named(name: str) -> Any:
    """What a dotted name stands for: a module, or what is in one."""
    found: Any = importlib.import_module("nlora")
    for depth, part in enumerate(name.split(".")[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(".".join(name.split(".")[:depth]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    found = re.findall(r"(?<![\w/.-])(?:\.\./)*((?:[\w-]+/)*[\w-]+\.py)\b", _text(page))
    found += re.findall(
        r"\b((?:src|tests|benchmarks|docs)/[\w/.-]+\.\w+)", _text(page).replace(REPOSITORY, "")
    )
    assert not [path for path in found if path not in _files()]


@pytest.mark.parametrize("page", PAGES)
def test_the_names_in_nlora_that_a_page_uses_exist(page: str) -> None:
    for name in set(re.findall(r"(?<![\w/.-])nlora(?:\.\w+)+", _text(page))):
        assert _named(name) is not None, f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    """Relative ones, and on the README, which is also shown elsewhere, those into the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _text(page)) + re.findall(
        r"(?:src|srcset)=\"([^\"]+)\"", _text(page)
    )
    for target in targets:
        inside = target.removeprefix(REPOSITORY).removeprefix(RAW)
        path, _, anchor = inside.partition("#")
        if path.startswith("http"):
            continue
        assert page != "README.md" or target != inside or not path, f"{page}: {target} must be absolute"
        file = (ROOT / path if target != inside else (ROOT / page).parent / path) if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(_text("CITATION.cff"))
    assert citation["version"] == nlora.__version__
    assert citation["repository-code"] + "/blob/main/" == REPOSITORY
    assert {i["value"] for r in citation["references"] for i in r["identifiers"]} == {
        "arXiv:2410.10179",
        "arXiv:2310.14152",
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NOT_WRAPPED])
def test_the_lines_of_a_page_are_short(page: str) -> None:
    """Under 100 characters, but for tables and for lines with a link or code that cannot be broken."""
    for number, line in enumerate(_text(page).splitlines(), start=1):
        whole = line.startswith(("|", "    ")) or "](http" in line or "https://" in line
        assert whole or len(line) < 100, f"{page}:{number}: {len(line)} characters"


def test_the_rooms_are_listed_in_the_order_of_the_import_contract() -> None:
    contract = tomllib.loads(_text("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", _text("docs/architecture.md"), re.MULTILINE)
    assert [row.replace("`", "").split(", ") for row in rows] == [
        layer.split(" | ") for layer in contract["layers"]
    ]
