"""What `nlora report` does: the page, the figures, and where they are.

report_command(["runs/demo/nlora"], None, None, Console())      # writes runs/demo/nlora/report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nlora.report.write import REPORT_FILE, write_figures, write_report
from nlora.runs.summary import run_folders


def report_command(folders: Sequence[str], out: str | None, figures: str | None, console: Console) -> Path:
    """Writes the page and, where asked for, the figures; prints the paths, one a line."""
    paths = [str(folder) for folder in run_folders(folders)]
    # One run keeps its page; several belong to none of their folders.
    own = Path(paths[0], REPORT_FILE) if len(paths) == 1 else Path(REPORT_FILE)
    path = write_report(paths, own if out is None else out)
    _say(console, [path])
    if figures is not None:
        _say(console, write_figures(paths, figures))
    return path


def _say(console: Console, written: Sequence[Path]) -> None:
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
