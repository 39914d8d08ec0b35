"""The text whose perplexity says what a model knew before: the one that comes with nlora, or a file of the user's.

>>> general_text(GeneralOptions(max_characters=10), [])
GeneralText(name='default', text='Mr. Presid')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nlora.config.general_options import DEFAULT_TEXT, GeneralOptions
from nlora.config.paths import found_in, looked_in
from nlora.data.digest import text_digest
from nlora.errors import InputErrors, Key, Problem

TEXT_KEY: Key = ("evaluate", "general", "text")
_SHIPPED = "address_1949.txt"


@dataclass(frozen=True, slots=True)
class GeneralText:
    """A text to measure. name: as in the configuration."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """A digest of what is measured."""
        return text_digest([self.text])

    @property
    def bytes(self) -> int:
        """Its length in UTF-8."""
        return len(self.text.encode())


def general_text(options: GeneralOptions, folders: Sequence[Path]) -> GeneralText | None:
    """The first `max_characters` of the text; None if none is wanted.

    folders: where to look for a relative path, in this order.
    Raises InputErrors, with the key, if the file is missing, empty or not UTF-8.
    """
    if options.text is None:
        return None
    if options.text == DEFAULT_TEXT:
        shipped = resources.files("nlora.data").joinpath("general", _SHIPPED)
        return GeneralText(DEFAULT_TEXT, shipped.read_text(encoding="utf-8")[: options.max_characters])
    path = found_in(folders, options.text)
    if path is None:
        raise _wrong(f"no such file: {options.text}{looked_in(folders, options.text)}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(options.max_characters)
    except OSError as error:
        raise _wrong(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise _wrong(f"{path} is not UTF-8 text; save it as UTF-8") from error
    if not text.strip():
        raise _wrong(f"{path} is empty; give a file with text")
    return GeneralText(options.text, text)


def _wrong(what: str) -> InputErrors:
    return InputErrors([Problem.at(TEXT_KEY, what)])
