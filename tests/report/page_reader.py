"""A page as a tree of elements."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from nlora.report.write import write_report

_VOID = {"meta", "link", "input", "br", "img"}


@dataclass
class Element:
    """An element with its attributes, its children, and the text right inside it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Descendants in the order of the page. attributes: as given; `class_` is one of the classes."""
        found = []
        for child in self.children:
            if child.tag == tag and all(child._has(name, value) for name, value in attributes.items()):
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        """All text in it, white space made one space."""
        return " ".join("".join(self._texts()).split())

    def elements(self) -> list[Element]:
        return [found for child in self.children for found in (child, *child.elements())]

    def _texts(self) -> list[str]:
        children = iter(self.children)
        return [
            text for piece in self.pieces for text in (next(children)._texts() if piece == "\0" else [piece])
        ]

    def _has(self, name: str, value: str) -> bool:
        if name == "class_":
            return value in self.attributes.get("class", "").split()
        return self.attributes.get(name.replace("_", "-")) == value


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        self.open[-1].pieces.append("\0")
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].pieces.append(data)


def read_page(path: Path) -> Element:
    """The page; fails where its tags do not nest."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def page_of(tmp_path: Path, *runs: Path) -> Element:
    """The report about these runs."""
    return read_page(write_report(runs, tmp_path / "page.html"))


def table_of(root: Element, caption: str) -> list[list[str]]:
    """The cells of the table with this caption by row, without the header."""
    (table,) = [table for table in root.all("table") if table.one("caption").text == caption]
    return [
        [cell.text for cell in row.children if cell.tag in {"th", "td"}]
        for row in table.one("tbody").all("tr")
    ]
