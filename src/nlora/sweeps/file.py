"""A sweep's YAML file: its keys, checked, and the overrides that the keys of a run in it amount to.

What runs a file describes is worked out in `nlora.sweeps.expand`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nlora.config.characters import utf8
from nlora.config.frozen import Frozen
from nlora.config.messages import problems_in
from nlora.config.overrides import Override, apply, as_overrides, by_key, is_section, outer_first
from nlora.config.paths import HomePath
from nlora.config.places import SourceMap
from nlora.config.schema import Config
from nlora.config.yaml_positions import read_yaml
from nlora.errors import InputErrors, Key, Problem
from nlora.sweeps.cluster_options import RayOptions, SlurmOptions


class SweepFile(Frozen):
    """The keys of a sweep's file."""

    name: str = Field("sweep", min_length=1, description="Name of the sweep.")
    base: Any = Field(description="A recipe, a file, a list of them, or the keys of a run.")
    set: dict[str, Any] = Field(default_factory=dict, description="Keys of every run.")
    variants: Any = Field(None, description="The keys of each variant, by name; a text alone is a method.")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="The values to combine, by dotted key."
    )
    seeds: Any = Field((Config.model_fields["seed"].default,), description="One run for each.")
    output_dir: HomePath | None = Field(
        None, min_length=1, description="Folder of the runs; null: runs/<name>."
    )
    processes: int = Field(1, ge=1, description="Processes of each run (nlora run --processes).")
    runner: Literal["local", "ray", "slurm"] = Field("local", description="Where the runs run.")
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()


@dataclass(frozen=True, slots=True)
class LoadedSweep:
    """A sweep's file, checked. forced: the command line's overrides of every run."""

    path: Path
    values: SweepFile
    places: SourceMap
    forced: tuple[Override, ...]


def read_file(file: str, overrides: Sequence[str] = ()) -> LoadedSweep:
    """The keys of a sweep's file.

    overrides: `key=value`, of the file's own keys (seeds, output_dir, variants.olora.method.weight, ...), or of any
        key of a run, which then holds for all runs, whatever their variant says.

    Raises InputErrors with every mistake in the file's own keys.
    """
    data, places = _document(Path(file), file)
    problems: list[Problem] = []
    forced: list[Override] = []
    for override in as_overrides(overrides, problems):
        if override.path[0] not in SweepFile.model_fields:
            forced.append(override)
            continue
        try:
            for one in _as_entries(data, _of_variant(data, places, override)):
                places = apply(data, places, one)
        except InputErrors as error:
            problems += error.problems
    _time_as_written(data, places)
    if problems := problems + problems_in(data, SweepFile, places):
        raise InputErrors(problems)
    return LoadedSweep(Path(file), SweepFile.model_validate(data), places, tuple(forced))


def by_name(variants: list[str], places: SourceMap) -> dict[str, str]:
    """The mapping that the list [inclora, olora] stands for. Raises InputErrors for a duplicate name."""
    problems = [
        places.problem(("variants", i), f"the variant {name} is here twice; leave one out")
        for i, name in enumerate(variants)
        if name in variants[:i]
    ]
    if problems:
        raise InputErrors(problems)
    return {str(name): name for name in variants}


def _of_variant(data: dict[str, Any], places: SourceMap, override: Override) -> Override:
    """An override of a variant's key as an entry of the variant, which counts however the file writes the key.

    `variants.olora.method.weight=1` sets `method.weight` of the variant olora, of the list [olora] too. Raises
    InputErrors if there is no such variant, or a list has one twice.
    """
    variants = data.get("variants")
    if override.path[0] != "variants" or len(override.path) < 3:
        return override
    if isinstance(variants, list):
        data["variants"] = variants = by_name(variants, places)
    if not isinstance(variants, dict) or not variants:  # none, or a mistake that is reported with the others
        return override
    name = override.path[1]
    if name not in variants:
        raise InputErrors(
            [override.place.problem(f"no variant is called {name}; there are {', '.join(variants)}")]
        )
    if isinstance(variants[name], str):
        variants[name] = {"method": variants[name]}
    return override


def _as_entries(data: dict[str, Any], override: Override) -> list[Override]:
    """An override of a run's keys under `set` or `grid`, or of a variant, as last entries there, which win."""
    depth = 2 if override.path[0] == "variants" else 1
    if override.path[0] not in ("set", "grid", "variants") or len(override.path) <= depth:
        return [override]
    above, inner = override.path[:depth], override.path[depth:]
    found = []
    for one in by_key(replace(override, path=inner)):
        place: Any = data
        for part in above:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(one.key, None)
        found.append(replace(one, path=(*above, one.key)))
    return found


def settings(values: dict[str, Any], places: SourceMap, at: Key) -> list[Override]:
    """A mapping of a run's keys as overrides, outer keys first: `method: x` before `method.weight`.

    at: the mapping's key in the file.
    """
    return outer_first(s for key, value in values.items() for s in flat(str(key), value, places, (*at, key)))


def flat(key: str, value: Any, places: SourceMap, at: Key) -> Iterator[Override]:
    """The overrides of a run's dotted key by the value at `at` in the sweep's file.

    A mapping becomes an override for each of its keys, so that a run keeps the keys that it does not name;
    `method: {name: ...}` stays whole, because the options of one method mean nothing to another.
    """
    path = tuple(key.split("."))
    if value == {} and is_section(path, value):
        return
    whole = path[-1] == "method" and isinstance(value, dict) and not is_section(path, value)
    if (
        isinstance(value, dict)
        and value
        and not whole
        and not any({".", "="} & set(str(inner)) for inner in value)
    ):
        for inner, deeper in value.items():
            yield from flat(f"{key}.{inner}", deeper, places, (*at, inner))
    else:
        yield setting(key, value, places, at)


def setting(key: str, value: Any, places: SourceMap, at: Key) -> Override:
    """The override of a run's dotted key by the value at `at` in the sweep's file."""
    return Override(tuple(key.split(".")), value, places.where(at), places.inside(at).written)


def _time_as_written(data: dict[str, Any], places: SourceMap) -> None:
    """Undo what YAML 1.1 makes of `time: 4:00:00`, the number 14400."""
    options = data.get("slurm")
    if isinstance(options, dict) and type(options.get("time")) is int:
        options["time"] = places.written.get(("slurm", "time"), str(options["time"]))


def _document(path: Path, shown: str) -> tuple[dict[str, Any], SourceMap]:
    try:
        text = utf8(path.read_bytes())
    except (OSError, ValueError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise InputErrors([Problem(shown, f"{why}; give the YAML file of a sweep")]) from error
    document = read_yaml(text, shown)
    if document.problems:
        raise InputErrors(document.problems)
    if not isinstance(document.data, dict):
        raise InputErrors([Problem(shown, "must have the keys of a sweep, such as base, variants and seeds")])
    if "tasks" in document.data and "base" not in document.data:
        what = "is the file of a run; name it as `base` in a sweep's own file (docs/sweeps.md)"
        raise InputErrors([Problem(shown, what)])
    return document.data, document.places
