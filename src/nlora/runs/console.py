"""What the commands print with.

>>> TextConsole(width=40).print("mail.csv:100: no label", markup=False)
mail.csv:100: no label
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


class TextConsole(Console):
    """rich's Console, which by itself prints the emoji of that name for `:100:`, the line in a message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    @property
    def is_unicode(self) -> bool:
        """Whether it can show every character; where it cannot, JSON has to be ASCII."""
        return self.encoding.startswith("utf")
