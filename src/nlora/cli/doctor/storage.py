"""The folders that nlora writes to: whether it can, what is in them, and the space that is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from nlora.cli.doctor.section import Section, short

LEAST_DISK_BYTES = 1 << 30
"""The default model, its texts and their downloads take about 0.8 GiB."""
_LISTED = 8


def caches() -> Section:
    """nlora's cache folder and that of the Hugging Face hub."""
    from nlora.data.downloads import cache_folder
    from nlora.report.formatting import memory as text

    section = Section("caches")
    folder = cache_folder()
    _folder(section, "nlora", folder, "set NLORA_CACHE to a folder that can be written")
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_dir():
            section.facts[f"  {entry.name}"] = text(_size_bytes(entry))
    _hub(section)
    return section


def disks() -> Section:
    """The space for downloads and for the runs of the current folder."""
    from nlora.data.downloads import cache_folder
    from nlora.report.formatting import memory as text

    section = Section("disk")
    for name, folder in {"cache folder": cache_folder(), "current folder": Path.cwd()}.items():
        free = shutil.disk_usage(_existing(folder)).free
        section.facts[name] = f"{text(free)} free"
        if free < LEAST_DISK_BYTES:
            section.wrong(
                name, f"only {text(free)} are free in {short(folder)}; remove files, or use another disk"
            )
    return section


def _hub(section: Section) -> None:
    """The models in the hub's cache. Nothing is said where the hub's client cannot be imported."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except Exception:  # `packages` says so
        return
    from nlora.report.formatting import memory as text

    folder = Path(constants.HF_HUB_CACHE)
    _folder(section, "hub", folder, "set HF_HOME to a folder that can be written")
    try:
        repositories = sorted(scan_cache_dir(folder).repos, key=lambda repo: -repo.size_on_disk)
    except (CacheNotFound, ValueError, OSError):  # not there, or no folder
        repositories = []
    for repository in repositories[:_LISTED]:
        section.facts[f"  {repository.repo_id}"] = text(repository.size_on_disk)
    if rest := repositories[_LISTED:]:
        section.facts[f"  {len(rest)} more"] = text(sum(repository.size_on_disk for repository in rest))
    if constants.HF_HUB_OFFLINE:
        section.facts["  offline"] = "HF_HUB_OFFLINE is set"
        if not any(repository.repo_type == "model" for repository in repositories):
            section.wrong(
                "HF_HUB_OFFLINE",
                f"is set, and no model of the hub is in {short(folder)}; unset it, or run 'hf download MODEL' where "
                "there is a network and copy that folder here",
            )


def _folder(section: Section, name: str, folder: Path, remedy: str) -> None:
    """Whether a folder can be written, or made."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        section.facts[name] = f"{short(folder)} (cannot be written)"
        section.wrong(
            f"{name} cache", f"{short(folder)} cannot be written ({error.strerror or error}); {remedy}"
        )
        return
    section.facts[name] = short(folder) if folder.is_dir() else f"{short(folder)} (not made yet)"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there, which decides whether it can be made."""
    above = (folder.absolute(), *folder.absolute().parents)
    return next(path for path in above if os.path.exists(path))  # noqa: PTH110 - Path.exists raises below a closed folder


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
