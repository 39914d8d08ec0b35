"""What the commands print with.

>>> TextConsole(width=40).print("mail.csv:100: no label", markup=False)
mail.csv:100: no label
"""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType


class TextConsole(Console):
    """rich's Console, which by itself prints the emoji of that name for `:100:`, the line in a message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    @property
    def is_unicode(self) -> bool:
        """Whether it can show every character; where it cannot, JSON has to be ASCII."""
        return self.encoding.startswith("utf")


def as_text(shown: RenderableType, width: int) -> str:
    """What a terminal of this width, in characters, would show, as plain text; also in a notebook."""
    console = TextConsole(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
