"""The blocks of a page: sections of figures, tables and tabs, laid out by the templates.

All text here is plain text; the templates escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nlora.report.charts.scene import Scene

WIDE = 800.0
NARROW = 360.0
"""Figures are drawn in both widths, in pixels; the page shows the one that fits."""


MOST_LISTED = 8
"""With more runs than this, pairs of tasks are drawn but not listed, so that the page stays small."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell. heat: the role of its background. marked: outlined. title: shown on hover."""

    text: str
    heat: str = ""
    marked: bool = False
    strong: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names its rows. words: indices of the columns of left-aligned text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    words: frozenset[int] = frozenset({0})
    kind: str = "table"
    is_aside: bool = False

    @property
    def is_folded(self) -> bool:
        """Whether the table starts collapsed: it is long, or of interest to few."""
        return self.is_aside or (self.kind == "table" and len(self.rows) > 14)


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with its caption, and its numbers as a table.

    key: unique on the page, and the name of the saved file.
    draw: the scene for a width in pixels.
    shown: a table shown in place of the drawing (for heat maps), which is then only for saving.
    fits_all: one drawing, small enough for a phone, serves every width.
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
    """Large numbers with their meanings."""

    items: tuple[tuple[str, str, str], ...]  # value, name, definition
    kind: str = "facts"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. tone: plain, or note for a warning. code: a command below it."""

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
    """Panels shown one at a time; in print and without scripts, all at once."""

    key: str
    label: str
    tabs: tuple[Tab, ...]
    kind: str = "tabs"


@dataclass(frozen=True, slots=True)
class Pair:
    """Blocks side by side if there is room."""

    blocks: tuple[Block, ...]
    kind: str = "pair"


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are shown on demand."""

    title: str
    blocks: tuple[Block, ...]
    kind: str = "fold"


@dataclass(frozen=True, slots=True)
class Example:
    """A test example answered correctly when its task had just been learned, and incorrectly at the end."""

    run: str
    task: str
    text: str
    expected: str
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class Examples:
    """The searchable list of examples, which may hold fewer than the `total` forgotten ones."""

    examples: tuple[Example, ...]
    total: int
    tasks: tuple[str, ...]
    runs: tuple[str, ...]
    kind: str = "examples"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A test example's prompt, verbatim, and what was expected and answered when its task had just been learned.

    template: the same for all examples with the same instruction.
    """

    task: str
    template: str
    text: str
    expected: str
    answered: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """An example of each task."""

    prompts: tuple[Prompt, ...]
    kind: str = "prompts"


Block = Facts | Text | Table | Figure | Tabs | Pair | Fold | Examples | Prompts


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its heading and explanation. short: the title in the navigation."""

    key: str
    title: str
    about: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    short: str = ""


def side_by_side(figures: Sequence[Figure]) -> tuple[Block, ...]:
    """Figures side by side, unless one of their tables is too wide for half a page."""
    widest = max((len(figure.shown.columns) for figure in figures if figure.shown is not None), default=0)
    return (Pair(tuple(figures)),) if len(figures) > 1 and widest <= 9 else tuple(figures)


def words(*texts: object) -> tuple[Cell, ...]:
    """A row of plain cells."""
    return tuple(text if isinstance(text, Cell) else Cell(str(text)) for text in texts)
