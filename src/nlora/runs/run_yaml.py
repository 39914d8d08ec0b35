"""run.yaml: the configuration and the versions that a run's folder belongs to.

>>> config = nlora.load_config("runs/support/run.yaml").config
>>> what_differs(Path("runs/support"), config.model_copy(update={"seed": 7}))
['seed: 3 in the folder, 7 now']

A folder belongs to one configuration, as far as its committed stages depend on it: `nlora.runs.run_changes` says what
may change. `load_config` reads run.yaml as the configuration in it, so `nlora run runs/a/run.yaml output_dir=runs/b`
repeats a run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nlora.config.base_folder import HERE, THEN, recorded
from nlora.config.schema import Config
from nlora.config.yaml_positions import read_yaml, to_yaml
from nlora.errors import Key, RunError, dotted
from nlora.runs.atomic import write_text
from nlora.runs.layout import OUTPUTS, RUN_FILE, no_run, stage_name, unfinished
from nlora.runs.run_changes import fixed_parts
from nlora.runs.stage_files import trained
from nlora.runs.summary import SUMMARY_FILE

_COMMENT = (
    "# Written by nlora. The run resumes only with this configuration; another one needs another folder.\n"
)
_NOT_OURS = "restore what nlora wrote there, or give another folder"

_log = logging.getLogger(__name__)


def write_or_compare(
    folder: Path, config: Config, versions: Mapping[str, str], base_folder: Path | None = None
) -> None:
    """Write run.yaml or, if it exists, compare it with the configuration, and update what may change.

    versions: if they differ from the folder's, they are added under `resumed_with` and logged.
    base_folder: what relative paths in the configuration refer to, in addition to the current folder.

    Raises RunError if the configuration differs (with a line for every difference) or run.yaml cannot be read.
    """
    path = folder / RUN_FILE
    new = config.model_dump(mode="json")
    base = {} if base_folder is None else recorded(folder, config, base_folder)
    if not path.exists():
        _write(path, {"config": new, "versions": dict(versions), "created": _now(), **base})
        return
    refuse_other_configuration(folder, config)
    record = read_run_file(folder)
    if lines := differences(_comparable(record["config"], new), new):
        committed = committed_stages(folder, record["config"])
        record["config"] = new
        record.setdefault("changed", []).append({"after_stage": committed, "when": _now(), "what": lines})
        _write(path, record)
        _log.info("%s: changed after stage %d: %s", folder, committed, "; ".join(lines))
    if base and base != {key: record[key] for key in (HERE, THEN) if key in record}:
        record = {key: value for key, value in record.items() if key not in (HERE, THEN)} | base
        _write(path, record)
    resumed, last = record.setdefault("resumed_with", []), _latest_versions(record)
    if last != dict(versions):
        names = [name for name in dict.fromkeys([*last, *versions]) if last.get(name) != versions.get(name)]
        changed = [f"{name} {last.get(name, 'unknown')} -> {versions.get(name, 'unknown')}" for name in names]
        _log.warning("%s: resumed with other versions than before: %s", folder, ", ".join(changed))
        resumed.append({"versions": dict(versions), "when": _now()})
        _write(path, record)


def latest_versions(folder: Path) -> dict[str, str]:
    """The versions that the folder's run last resumed with. Raises RunError if run.yaml cannot be read."""
    return _latest_versions(read_run_file(folder))


def _latest_versions(record: Mapping[str, Any]) -> dict[str, str]:
    resumed = record.get("resumed_with")
    found = resumed[-1]["versions"] if resumed else record["versions"]
    return {name: str(version) for name, version in found.items()}  # YAML reads an edited 0.2 as a number


def refuse_other_configuration(folder: Path, config: Config) -> None:
    """Raise RunError, with a line for every difference, if the folder's run cannot continue with a configuration."""
    if found := what_differs(folder, config):
        lines = "\n".join(f"  {line}" for line in found)
        raise RunError(
            f"{folder}: was started with another configuration; give another output_dir"
            f"{or_delete(folder)}. What differs:\n{lines}\n"
            "Tasks that are not learned yet may change, and their options (stages.NAME); docs/runs.md has all keys"
        )


def what_differs(folder: Path, config: Config) -> list[str]:
    """Why the run in a folder cannot continue with a configuration: a line for each key that may not change.

    Raises RunError if run.yaml cannot be read.
    """
    old, new = read_run_file(folder)["config"], config.model_dump(mode="json")
    before, now = fixed_parts(_comparable(old, new), new, committed_stages(folder, old))
    return [*_moved(before, now, [task["name"] for task in new["tasks"]]), *differences(before, now)]


def _moved(before: dict[str, Any], now: dict[str, Any], tasks: Sequence[str]) -> list[str]:
    """A line for each learned task that has another place or none. It is left out of both: its keys say no more.

    tasks: the names of all that there are now.
    """
    learned = [task.get("name") if isinstance(task, dict) else task for task in before.get("tasks") or ()]
    lines = []
    for i, name in enumerate(learned):
        if tasks[i : i + 1] == [name]:
            continue
        place = f"task {tasks.index(name) + 1}" if name in tasks else "missing"
        lines.append(f"task {name} is learned as task {i + 1}, and is {place} now")
        for config in (before, now):
            config["tasks"][i : i + 1] = [{}]
            for other in (name, *tasks[i : i + 1]):
                config["stages"].pop(other, None)
    return lines


def is_recorded(folder: Path, config: Config) -> bool:
    """Whether run.yaml has this very configuration. Raises RunError if it cannot be read."""
    new = config.model_dump(mode="json")
    return not differences(_comparable(read_run_file(folder)["config"], new), new)


def committed_stages(folder: Path, config: Mapping[str, Any]) -> int:
    """How many stages the folder has of a configuration from its run.yaml, one that only needs scoring included."""
    outputs = folder / OUTPUTS
    tasks = config.get("tasks")
    done = 0
    for stage, task in enumerate(tasks if isinstance(tasks, list) else [], start=1):
        place = outputs / stage_name(stage, str(task.get("name")) if isinstance(task, dict) else str(task))
        if place.is_dir() or trained(unfinished(place)):
            done = stage
    return done


def _comparable(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The folder's configuration with all of today's keys, and with the place where the folder is now."""
    return {**_with_new_keys(old), "output_dir": new["output_dir"]}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """How a folder's configuration differs from the current one, a line for each key.

    old, new: `Config.model_dump(mode="json")`. Example: "train.epochs: 1 in the folder, 2 now".
    """
    before, now = flat(old), flat(new)
    return [
        f"{dotted(key)}: {_value(before, key)} in the folder, {_value(now, key)} now"
        for key in dict.fromkeys([*before, *now])
        if key not in before or key not in now or before[key] != now[key]
    ]


def read_run_file(folder: Path) -> dict[str, Any]:
    """The contents of run.yaml: config, versions, created, and resumed_with if versions changed.

    Raises RunError, in one line, if it is missing or broken.
    """
    path = folder / RUN_FILE
    try:
        document = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_run(folder, RUN_FILE) from error
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
    """Whether a folder is a run of nlora; a user's own file may be called run.yaml too."""
    try:
        return (folder / RUN_FILE).is_file() and (folder / SUMMARY_FILE).is_file()
    except PermissionError:
        return False


def run_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The given folders and the runs inside them. A folder that is no run itself but contains runs is left out.

    Raises RunError for a folder inside that may not be entered: averages would be over fewer runs, without a word.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir() and os.access(path, os.R_OK) and not (path / SUMMARY_FILE).exists():
            closed = [
                inner for inner in sorted(path.iterdir()) if inner.is_dir() and not os.access(inner, os.X_OK)
            ]
            if closed:
                raise RunError(
                    f"{closed[0]}: Permission denied, and it may be a run; name the runs that are wanted"
                )
        held = [file.parent for file in sorted(path.glob(f"*/{SUMMARY_FILE}"))]
        found += [path, *held] if (path / SUMMARY_FILE).exists() or not held else held
    return found


def runs_inside(folder: Path) -> list[Path]:
    """The runs up to two levels below the folder."""
    files = (file for pattern in ("*", "*/*") for file in folder.glob(f"{pattern}/{RUN_FILE}"))
    return sorted(file.parent for file in files if is_run(file.parent))


def or_delete(folder: Path) -> str:
    """Another way out for a folder of another configuration; empty if deleting it would delete other runs."""
    return "" if runs_inside(folder) else ", or delete the folder to start again"


def folder_problem(folder: Path) -> str | None:
    """Why no run can start or resume in this folder; None if one can.

    Other runs are inside it, it is inside another run, or it is not writable (or the nearest existing folder above it).
    """
    if not is_run(folder):
        if inner := runs_inside(folder):
            more = ", ..." if len(inner) > 3 else ""
            return (
                f"{folder} holds other runs ({', '.join(map(str, inner[:3]))}{more}); choose another folder"
            )
        if outer := next((parent for parent in folder.absolute().parents if is_run(parent)), None):
            return f"{folder} is inside the run {outer}; choose another folder"
    while not folder.exists() and folder != folder.parent:
        if folder.is_symlink():
            return f"{folder} points to {folder.readlink()}, which does not exist; choose another folder"
        folder = folder.parent
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; choose another folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} is not writable; choose another folder"
    return None


def flat(value: Any, path: Key = ()) -> dict[Key, Any]:
    """Nested values by their keys; lists of plain values stay whole."""
    if isinstance(value, dict) and (value or not path):
        return {
            key: leaf for name, inner in value.items() for key, leaf in flat(inner, (*path, name)).items()
        }
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {key: leaf for i, inner in enumerate(value) for key, leaf in flat(inner, (*path, i)).items()}
    return {path: value}


def _value(values: dict[Key, Any], key: Key) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"


def _with_new_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The folder's configuration, with defaults for keys that are newer than the run.

    A new key's default leaves runs as they were, so an older run can be resumed. A configuration that is no longer
    valid stays as it is, so that the comparison shows what differs.
    """
    try:
        return Config.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, _COMMENT + to_yaml(record))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
