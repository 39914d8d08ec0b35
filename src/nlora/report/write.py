"""One run, or several side by side, as one HTML file: scores, forgetting, training, and the updates.

>>> write_report(["runs/support"], "report.html").name
'report.html'

Everything comes from the runs' files; torch is never imported. The page works offline. For an unfinished run it shows
the finished stages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nlora.errors import RunError
from nlora.runs.atomic import write_text
from nlora.runs.interference_file import Interference


def write_report(folders: Sequence[str | Path], out: str | Path, *, base: str | None = None) -> Path:
    """Writes the page about the runs in `folders` to `out` and returns its path.

    base: the name of the runs that differences are to; None: inclora, if it is there, else the first.

    Raises RunError, in one line, if a folder is not a run, one of its files is broken, or `out` cannot be written, and
    InputErrors for a base that is not there.
    """
    from nlora.report.page import render
    from nlora.report.run_files import load_runs

    page = render(load_runs(folders), base)
    path = _checked(Path(out))
    write_text(path, page)
    return path


def write_interference(found: Interference, out: str | Path) -> Path:
    """Writes the page about compared adapters to `out` and returns its path.

    Raises RunError, in one line, if `out` cannot be written.
    """
    from nlora.report.page import render_interference

    page = render_interference(found)
    path = _checked(Path(out))
    write_text(path, page)
    return path


def write_figures(folders: Sequence[str | Path], out: str | Path, *, base: str | None = None) -> list[Path]:
    """Writes the paper's figures for these runs into the folder `out`, as SVG and PDF, and returns the files.

    Raises RunError as `write_report` does, and MissingExtraError, after writing the SVG files, without matplotlib.
    """
    from nlora.report import paper_figures
    from nlora.report.run_files import load_runs

    check_figures_folder(out)
    return paper_figures.write_figures(load_runs(folders), Path(out), base)


def check_figures_folder(out: str | Path) -> None:
    """Raises RunError if `out` cannot be a folder for figures."""
    for path in (Path(out), *Path(out).absolute().parents):
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise RunError(f"{path}: is a file; give a folder for the figures")
            if not os.access(path, os.W_OK | os.X_OK):
                raise RunError(f"{path}: is not writable; give another folder for the figures")
            break


def _checked(path: Path) -> Path:
    if path.is_dir():
        raise RunError(f"{path}: is a folder; give the name of the HTML file to write")
    if not path.parent.is_dir():
        raise RunError(f"{path}: there is no folder {path.parent}; create it, or give another file")
    return path
