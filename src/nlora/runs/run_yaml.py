"""run.yaml: which configuration and which versions a run's folder belongs to.

    write_or_compare(Path("runs/a"), config, {"torch": "2.9.0"})

A folder belongs to one configuration: every key of it counts but output_dir, so that a folder can be moved.
`load_config` reads run.yaml as the configuration in it, so `nlora run runs/a/run.yaml output_dir=runs/b`
repeats a run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nlora.config.base_folder import recorded
from nlora.config.load import differences
from nlora.config.schema import Config
from nlora.config.yaml_positions import read_yaml, to_yaml
from nlora.errors import RunError
from nlora.runs.atomic import write_text
from nlora.runs.summary import SUMMARY_FILE

RUN_FILE = "run.yaml"
_COMMENT = (
    "# Written by nlora. The run goes on only with this configuration; another one needs another folder.\n"
)
_NOT_OURS = "put back what nlora wrote there, or give another folder"

_log = logging.getLogger(__name__)


def write_or_compare(
    folder: Path, config: Config, versions: Mapping[str, str], base_folder: Path | None = None
) -> None:
    """Write run.yaml, or, where it is, compare it.

    versions: others than the folder's are added under `resumed_with` and logged.
    base_folder: what relative paths in the configuration refer to beside the current folder.

    Raises RunError when the configuration is another one (every difference has a line), or run.yaml cannot be
    read.
    """
    path = folder / RUN_FILE
    new = config.model_dump(mode="json")
    if not path.exists():
        base = {} if base_folder is None else recorded(folder, config, base_folder)
        _write(path, {"config": new, "versions": dict(versions), "created": _now(), **base})
        return
    record = read_run_file(folder)
    if found := what_differs(record, config):
        lines = "\n".join(f"  {line}" for line in found)
        raise RunError(
            f"{folder}: was started with another configuration; give another output_dir"
            f"{or_delete(folder)}. What differs:\n{lines}"
        )
    resumed = record.setdefault("resumed_with", [])
    last = resumed[-1]["versions"] if resumed else record["versions"]
    if last != dict(versions):
        names = [name for name in dict.fromkeys([*last, *versions]) if last.get(name) != versions.get(name)]
        changed = [f"{name} {last.get(name)} -> {versions.get(name)}" for name in names]
        _log.warning("%s: goes on with other versions than before: %s", folder, ", ".join(changed))
        resumed.append({"versions": dict(versions), "when": _now()})
        _write(path, record)


def what_differs(record: Mapping[str, Any], config: Config) -> list[str]:
    """In what a configuration is not the one that a folder's run.yaml has, a line for each key but output_dir.

    record: as of `read_run_file`.
    """
    new = config.model_dump(mode="json")
    return differences({**_with_new_keys(record["config"]), "output_dir": new["output_dir"]}, new)


def read_run_file(folder: Path) -> dict[str, Any]:
    """What run.yaml says: config, versions, created, and resumed_with where versions changed.

    Raises RunError, in one line, when it is missing or broken.
    """
    path = folder / RUN_FILE
    try:
        document = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        why = f"no {RUN_FILE} in it" if folder.is_dir() else "no such folder"
        raise RunError(f"{folder}: {why}; give the output_dir of a run") from error
    except NotADirectoryError as error:
        raise RunError(f"{folder}: is a file; give the output_dir of a run") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}; {_NOT_OURS}") from error
    data = document.data
    if document.problems or not isinstance(data, dict):
        why = str(document.problems[0]) if document.problems else f"{path}: is empty"
        raise RunError(f"{why}; {_NOT_OURS}")
    for key in ("config", "versions"):
        if not isinstance(data.get(key), dict):
            raise RunError(f"{path}: has no mapping '{key}'; {_NOT_OURS}")
    return data


def is_run(folder: Path) -> bool:
    """Whether nlora wrote there; somebody's own file may be called run.yaml too."""
    try:
        return (folder / RUN_FILE).is_file() and (folder / SUMMARY_FILE).is_file()
    except PermissionError:
        return False


def runs_inside(folder: Path) -> list[Path]:
    """The runs in the folder's folders, and in theirs."""
    files = (file for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/{RUN_FILE}"))
    return sorted(file.parent for file in files if is_run(file.parent))


def or_delete(folder: Path) -> str:
    """What else can be done about a folder of another configuration; nothing where other runs would go with it."""
    return "" if runs_inside(folder) else ", or delete the folder to start again"


def folder_problem(folder: Path) -> str | None:
    """Why no run can begin, or go on, in this folder; None where one can.

    Others lie in it, it lies in another one, or it, or the nearest folder above it that exists, cannot be written.
    """
    if not is_run(folder):
        if inner := runs_inside(folder):
            more = ", ..." if len(inner) > 3 else ""
            return (
                f"{folder} holds other runs ({', '.join(map(str, inner[:3]))}{more}); choose another folder"
            )
        if outer := next((parent for parent in folder.absolute().parents if is_run(parent)), None):
            return f"{folder} lies in the folder of the run {outer}; choose another folder"
    while not folder.exists() and folder != folder.parent:
        if folder.is_symlink():
            return f"{folder} points to {folder.readlink()}, which is not there; choose another folder"
        folder = folder.parent
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; choose another folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written; choose another folder"
    return None


def _with_new_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The folder's configuration with the defaults of keys that its nlora did not know yet.

    Keys are added with the default that leaves a run as it was, so a run begun without them goes on. What is no
    configuration any more stays as it is, so that the comparison shows it.
    """
    try:
        return Config.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, _COMMENT + to_yaml(record))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
