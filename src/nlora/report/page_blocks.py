"""What a report is made of: sections of figures, tables and tabs. The templates lay them out.

    Section("cost", "Time and memory", "What each stage took.", (Figure(...), Table(...)))

Text here is plain text; the templates escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nlora.report.charts.scene import Scene

WIDE = 800.0
NARROW = 360.0
"""A figure is drawn for both widths, in pixels; the page shows the one that fits."""


MOST_LISTED = 8
"""With more runs than this, what there is for each pair of tasks is drawn, but not listed: a page stays small."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. heat: the role of its background; marked: outlined; title: on hovering."""

    text: str
    heat: str = ""
    marked: bool = False
    strong: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names its rows. words: columns of text, aligned to the left, by index."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    words: frozenset[int] = frozenset({0})
    kind: str = "table"
    is_aside: bool = False

    @property
    def is_folded(self) -> bool:
        """Too long to stand open in the page, or of interest to few."""
        return self.is_aside or (self.kind == "table" and len(self.rows) > 14)


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with its caption, and its numbers as a table for those who want to read or copy them.

    key: unique on the page; also the name of the file when it is saved.
    draw: a width in pixels -> the scene.
    shown: a table that stands for the drawing on the page (a heat map is a real table); the drawing is then
        only what is saved.
    fits_all: one drawing, made small enough for a telephone, serves every width.
    """

    key: str
    title: str
    caption: str
    draw: Callable[[float], Scene]
    numbers: Table | None = None
    shown: Table | None = None
    fits_all: bool = False
    kind: str = "figure"


@dataclass(frozen=True, slots=True)
class Facts:
    """Big numbers, each with what it means."""

    items: tuple[tuple[str, str, str], ...]  # value, name, definition
    kind: str = "facts"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. tone: plain, or note for what is missing or has to be kept in mind; code: a command below it."""

    text: str
    tone: str = "plain"
    code: str = ""
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Tab:
    """A named panel of blocks."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Tabs:
    """Panels of which the page shows one at a time; printed, and without scripts, all of them."""

    key: str
    label: str
    tabs: tuple[Tab, ...]
    kind: str = "tabs"


@dataclass(frozen=True, slots=True)
class Pair:
    """Blocks side by side where there is room."""

    blocks: tuple[Block, ...]
    kind: str = "pair"


@dataclass(frozen=True, slots=True)
class Example:
    """A test example that was answered right after its task was learned, and wrongly at the end."""

    run: str
    task: str
    text: str
    expected: str
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class Examples:
    """The list of examples that can be searched. total: how many there are; the list may hold fewer."""

    examples: tuple[Example, ...]
    total: int
    tasks: tuple[str, ...]
    runs: tuple[str, ...]
    kind: str = "examples"


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the model was asked: each task with its prompt, to the character."""

    asked: tuple[tuple[str, str], ...]
    kind: str = "prompts"


Block = Facts | Text | Table | Figure | Tabs | Pair | Examples | Prompts


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its heading and the sentences that explain it."""

    key: str
    title: str
    about: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    short: str = ""


def side_by_side(figures: Sequence[Figure], most_columns: int = 9) -> tuple[Block, ...]:
    """Several figures beside each other, unless one of their tables is too wide for half a page."""
    widest = max((len(figure.shown.columns) for figure in figures if figure.shown is not None), default=0)
    return (Pair(tuple(figures)),) if len(figures) > 1 and widest <= most_columns else tuple(figures)


def words(*texts: object) -> tuple[Cell, ...]:
    """A row of plain cells."""
    return tuple(text if isinstance(text, Cell) else Cell(str(text)) for text in texts)
