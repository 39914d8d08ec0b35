"""run.yaml: which configuration and which versions a run's folder belongs to.

    write_or_compare(Path("runs/a"), config, {"torch": "2.9.0"})

A folder belongs to one configuration: every key of it counts but output_dir, so that a folder can be moved.
`load_config` reads run.yaml as the configuration in it, so `nlora run runs/a/run.yaml output_dir=runs/b`
repeats a run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nlora.atomic import write_text
from nlora.base_folder import recorded
from nlora.config import Config
from nlora.config_file import differences
from nlora.errors import RunError
from nlora.yaml_lines import read_yaml, to_yaml

RUN_FILE = "run.yaml"
_COMMENT = (
    "# Written by nlora. The run goes on only with this configuration; another one needs another folder.\n"
)

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
    old = {**_with_new_keys(record["config"]), "output_dir": new["output_dir"]}
    if found := differences(old, new):
        lines = "\n".join(f"  {line}" for line in found)
        raise RunError(
            f"{folder}: was started with another configuration; give another output_dir, or delete the "
            f"folder to start again. What differs:\n{lines}"
        )
    resumed = record.setdefault("resumed_with", [])
    last = resumed[-1]["versions"] if resumed else record["versions"]
    if last != dict(versions):
        names = [name for name in dict.fromkeys([*last, *versions]) if last.get(name) != versions.get(name)]
        changed = [f"{name} {last.get(name)} -> {versions.get(name)}" for name in names]
        _log.warning("%s: goes on with other versions than before: %s", folder, ", ".join(changed))
        resumed.append({"versions": dict(versions), "when": _now()})
        _write(path, record)


def read_run_file(folder: Path) -> dict[str, Any]:
    """What run.yaml says: config, versions, created, and resumed_with where versions changed.

    Raises RunError, in one line, when it is missing or broken.
    """
    path = folder / RUN_FILE
    try:
        document = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise RunError(f"{folder}: no {RUN_FILE} in it; give the output_dir of a run") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}; delete the folder to start again") from error
    data = document.data
    if document.problems or not isinstance(data, dict):
        why = str(document.problems[0]) if document.problems else f"{path}: is empty"
        raise RunError(f"{why}; delete the folder to start again")
    for key in ("config", "versions"):
        if not isinstance(data.get(key), dict):
            raise RunError(f"{path}: has no mapping '{key}'; delete the folder to start again")
    return data


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
