"""Adapters by folder or hub id."""

from __future__ import annotations

import re
from pathlib import Path

from nlora.config.paths import expanded
from nlora.errors import AdapterError, first_line
from nlora.models.hub import offline_without_hub
from nlora.models.lora_factors import CONFIG_FILE, WEIGHTS_FILE, AdapterState, load_factors

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def locate_adapter(source: str) -> Path:
    """The folder of an adapter: as given, or its two files fetched from the hub."""
    folder = expanded(source)
    if folder.exists() or not _HUB_ID.fullmatch(source):
        return folder.resolve() if folder.exists() else folder
    import huggingface_hub

    try:
        with offline_without_hub():
            return Path(huggingface_hub.snapshot_download(source, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (OSError, ValueError) as error:  # the hub's client raises nothing else
        raise AdapterError(
            f"{source}: neither a folder here nor an adapter that can be fetched from the hub ({first_line(error)})"
        ) from error


def load_adapter(folder: Path, source: str) -> AdapterState:
    """The factors in a folder. Errors name the source as the user gave it."""
    try:
        return load_factors(folder)
    except AdapterError as error:
        raise AdapterError(str(error).replace(str(folder), source)) from error


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the two files of an adapter."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (target / name).write_bytes((source / name).read_bytes())
