"""A sweep's YAML file: its keys, checked, and what each key of a run in it is as an override of `nlora run`.

    file = read_file("five-tasks.yaml", ["seeds=[1]", "train.max_samples=50"])
    file.values.seeds                                             # (1,)
    [s.text for s in settings(file.values.set, file.places, ("set",))]   # ["train.epochs=2"]

What the file stands for, run by run, is in `sweep_runs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nlora.config.messages import number_problems, problems_of
from nlora.config.overrides import apply_override
from nlora.config.schema import Config, Frozen
from nlora.config.yaml_positions import Key, SourceMap, read_yaml
from nlora.errors import InputErrors, Problem


@dataclass(frozen=True, slots=True)
class Setting:
    """One override of a run. text: as `nlora run` takes it; place: where the sweep's file says so."""

    key: str
    text: str
    place: str


class RayOptions(Frozen):
    """What one run takes of a Ray cluster."""

    gpus: float = Field(0, ge=0, description="GPUs of each run.")
    cpus: float = Field(1, gt=0, description="CPU cores of each run.")


class SweepFile(Frozen):
    """The keys of a sweep's file."""

    name: str = Field("sweep", min_length=1, description="What the sweep is called.")
    base: Any = Field(description="A recipe, a file, a list of them, or the keys of a run themselves.")
    set: dict[str, Any] = Field(default_factory=dict, description="Keys of every run.")
    variants: Any = Field(None, description="By name, the keys of each variant; a text alone is a method.")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="By dotted key, the values to combine."
    )
    seeds: tuple[int, ...] = Field(
        (Config.model_fields["seed"].default,), min_length=1, description="One run for each."
    )
    output_dir: str | None = Field(None, min_length=1, description="Where the runs lie; null: runs/<name>.")
    runner: Literal["local", "ray"] = Field("local", description="Where the runs run.")
    ray: RayOptions = RayOptions()


@dataclass(frozen=True, slots=True)
class LoadedSweep:
    """A sweep's file as read. values: what is left of it without its mistakes; forced: overrides for every run."""

    path: Path
    values: SweepFile
    places: SourceMap
    forced: tuple[Setting, ...]
    problems: tuple[Problem, ...]


def read_file(file: str, overrides: Sequence[str] = ()) -> LoadedSweep:
    """The keys of a sweep's file.

    overrides: `key=value`, of the file's own keys (seeds, output_dir, variants.olora.method.weight, ...), or of any
        key of a run, which then holds for all runs, whatever their variant says.

    Mistakes come with the values, so that the runs can be checked too. Raises InputErrors where nothing is left.
    """
    data, places = _document(Path(file), file)
    problems: list[Problem] = []
    forced: list[Setting] = []
    for text in overrides:
        key, equals, _ = (part.strip() for part in text.partition("="))
        if equals and key.partition(".")[0] not in SweepFile.model_fields:
            forced.append(Setting(key, text, text))
            continue
        changed = apply_override(data, places, text)
        if isinstance(changed, SourceMap):
            places = changed
        else:
            problems += changed
    problems += number_problems(data, SweepFile, places)
    try:
        values = SweepFile.model_validate(data)
    except ValidationError as error:
        problems += problems_of(error, SweepFile, places)
        wrong = {detail["loc"][0] for detail in error.errors(include_url=False)}
        try:
            values = SweepFile.model_validate({key: v for key, v in data.items() if key not in wrong})
        except ValidationError:
            raise InputErrors(problems) from error
    return LoadedSweep(Path(file), values, places, tuple(forced), tuple(problems))


def settings(values: dict[str, Any], places: SourceMap, at: Key) -> list[Setting]:
    """The overrides that a mapping of a run's keys stands for, outer keys first: `method: x` before `method.weight`.

    at: where the mapping is in the file. Nested mappings are taken apart, so that a run keeps what they do not name;
    `method: {name: ...}` stays whole, because the options of another method mean nothing to this one.
    """
    found = [s for key, value in values.items() for s in _flat(str(key), value, places, (*at, key))]
    return sorted(found, key=lambda setting: setting.key.count("."))


def setting(key: str, value: Any, place: str) -> Setting:
    """The override `key=value`, the value as it is where YAML reads it back the same, else as JSON."""
    text = value if isinstance(value, str) else ""
    if not text or read_yaml(text, "").data != value:
        text = shown(value)
    return Setting(key, f"{key}={text}", place)


def shown(value: Any) -> str:
    """A value in one line, as YAML reads it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _flat(key: str, value: Any, places: SourceMap, place: Key) -> Iterator[Setting]:
    whole = key == "method" and isinstance(value, dict) and "name" in value
    if isinstance(value, dict) and value and not whole and not any("." in str(inner) for inner in value):
        for inner, deeper in value.items():
            yield from _flat(f"{key}.{inner}", deeper, places, (*place, inner))
    else:
        yield setting(key, value, places.where(place))


def _document(path: Path, shown: str) -> tuple[dict[str, Any], SourceMap]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise InputErrors([Problem(shown, f"{why}; give the YAML file of a sweep")]) from error
    document = read_yaml(text, shown)
    if document.problems:
        raise InputErrors(document.problems)
    if not isinstance(document.data, dict):
        raise InputErrors([Problem(shown, "must hold the keys of a sweep, such as base, variants and seeds")])
    if "tasks" in document.data and "base" not in document.data:
        what = "is the file of a run; name it as `base` in a sweep's own file (docs/sweeps.md)"
        raise InputErrors([Problem(shown, what)])
    return document.data, document.places
