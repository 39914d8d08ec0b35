"""`nlora export`: a stage's model in a form that others load, checked against the run's own answers.

>>> found = export("runs/support", "exports/support", ExportOptions("merged"))
>>> found.scores == found.run
True

Everything wrong with the request is said first. The export is written into a temporary folder next to its place, and
gets its name when it has answered as it must (`nlora.runs.export.work`).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nlora.runs.atomic import DISK_FULL, disk_errors, publish_folder, remove
from nlora.runs.checkpoint import read_stage
from nlora.runs.events import OnEvent, Progress
from nlora.runs.export.base_name import name_base
from nlora.runs.export.options import ExportOptions, check_folder, check_method, check_options
from nlora.runs.export.record import write_record
from nlora.runs.export.result import Export
from nlora.runs.layout import TEMPORARY


def export(
    run: str | Path,
    out: str | Path,
    options: ExportOptions,
    *,
    stage: int | None = None,
    push: str | None = None,
    on_event: OnEvent | None = None,
) -> Export:
    """Export a stage of a run into the folder `out`, which must not exist yet or be empty.

    stage: from 1; None: the last committed one. push: a repository of the Hugging Face Hub to upload the folder to.
    on_event: receives the progress of scoring.

    Raises InputErrors for a request that cannot be met, RunError if the export's answers are not the run's; then
    nothing is left at `out`. If only the upload fails, RunError too, but the export stays.
    """
    from nlora.runs.export import hub, model_card
    from nlora.runs.export.work import Work

    out = Path(out)
    check_options(options)
    if push is not None:
        hub.check(push)
    checkpoint = read_stage(Path(run), stage)
    index = check_method(checkpoint, options)
    check_folder(out)
    place = out.resolve()  # the folder that a link points to can be replaced, but not the link
    with _next_to(out, place) as folder:
        work = Work(checkpoint, options, index, folder, Progress(on_event))
        found = work.run()
        name_base(folder, checkpoint.config.model, is_public=push is not None)
        found.folder = out
        found.size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        model_card.write(found, folder)
        write_record(found, folder)
        with disk_errors(out):
            if place.exists():
                place.rmdir()  # empty, as was checked
        publish_folder(folder, place)
    if push is not None:
        found.url = hub.push(out, push)
    return found


@contextmanager
def _next_to(out: Path, place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`; removed if the block fails, with parents made for it that are empty.

    out: the place as the user called it, for messages.
    """
    # The process in the name: of two that export to the same place, each has a folder of its own.
    temporary = place.with_name(f"{TEMPORARY}{os.getpid()}-{place.name}")
    made = [parent for parent in temporary.parents if not parent.exists()]  # the innermost first
    with disk_errors(out):
        # Those of exports that were killed.
        for left in place.parent.glob(f"{TEMPORARY}*-{glob.escape(place.name)}"):
            pid = left.name.removeprefix(TEMPORARY).partition("-")[0]
            if pid.isdecimal() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
                remove(left)
        temporary.mkdir(parents=True)
    try:
        with disk_errors(out, only=DISK_FULL):
            yield temporary
    except BaseException:
        remove(temporary)
        with suppress(OSError):  # not empty: something else was written there since
            for parent in made:
                parent.rmdir()
        raise
