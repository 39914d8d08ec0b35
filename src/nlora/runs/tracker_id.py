"""The name of a run at W&B and Trackio that no other run has, not even a later one in the same folder."""

from __future__ import annotations

import secrets
from pathlib import Path

from nlora.runs.atomic import disk_errors, write_text

ID_FILE = Path("logs", "tracker_id")


def tracker_id(run: Path) -> str:
    """The id that is kept in the run's folder; made when it is first asked for.

    A run that resumes, or that was moved, has the id that it began with. Raises RunError if it cannot be written.
    """
    path = run / ID_FILE
    with disk_errors(path):
        if path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
            return known
        path.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_hex(4)
    write_text(path, f"{made}\n")
    return made
