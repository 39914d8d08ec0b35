"""The runs that a sweep's file describes, each with its base, its overrides and its folder.

>>> _ = Path("sweep.yaml").write_text("base: demo\\nvariants: [nlora, olora]\\nseeds: [1]\\n")
>>> for run in read_sweep("sweep.yaml").runs:
...     print(run.folder, run.overrides[0])
runs/sweep/nlora-seed1 method=nlora
runs/sweep/olora-seed1 method=olora

A file in full:

    name: five-tasks
    base: demo                             # a recipe, a file, a list of them, or the keys of a run
    set: {train.epochs: 2}                 # for all runs
    variants:                              # names and what they set; a text alone is a method
      inclora: inclora
      olora: {method: olora, method.weight: 0.5, seeds: [1]}
    grid: {lora.r: [4, 8]}                 # every combination
    seeds: [1, 2, 3]

A run's values are overridden in this order: set, the variant, the grid, the command line. Runs are ordered by seed, so
that a sweep that is stopped early has runs of every variant.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from nlora.config.overrides import Override, outer_first, shown
from nlora.config.paths import at_home
from nlora.config.places import Place, SourceMap
from nlora.config.schema import Config
from nlora.errors import InputErrors, Key, Problem
from nlora.sweeps.cluster_options import RayOptions, SlurmOptions
from nlora.sweeps.file import LoadedSweep, by_name, flat, read_file, setting, settings


@dataclass(frozen=True, slots=True)
class Base:
    """What a run starts from. source: a recipe or a file; None: `values`, the keys in the sweep's file. at: its key."""

    label: str
    source: str | None
    values: dict[str, Any] | None = None
    at: Key = ("base",)


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run. name: without the seed. settings: everything that differs from the base."""

    name: str
    seed: int
    base: Base
    settings: tuple[Override, ...]
    folder: Path

    @property
    def overrides(self) -> list[str]:
        """The settings as texts for `nlora run`."""
        return [override.text for override in self.settings]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's file and its runs.

    path: the file. places: where its keys are written. configs: of the runs, by folder, once they are checked.
    processes: of each run.
    """

    name: str
    path: Path
    places: SourceMap
    output_dir: Path
    runs: tuple[SweepRun, ...]
    runner: Literal["local", "ray", "slurm"]
    ray: RayOptions
    slurm: SlurmOptions
    processes: int = 1
    configs: Mapping[Path, Config] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Variant:
    name: str
    settings: tuple[Override, ...]
    seeds: tuple[int, ...]


_SETS_ITSELF = {
    "name": "a run is named by its variant",
    "seed": "give seeds: [1, 2, 3] at the top level",
    "output_dir": "give output_dir at the top level",
}
"""Keys that the sweep sets itself, and what to do instead."""
_NAME = re.compile(r"[\w+=.,@-]+")


def read_sweep(file: str, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep of a file. overrides: as `nlora.sweeps.file.read_file` takes them.

    Raises InputErrors with every mistake of the file itself; those of its runs are found by `nlora.sweeps.check`.
    """
    loaded = read_file(file, overrides)
    reader = _Reader(loaded)
    runs = tuple(reader.runs())
    if reader.problems:
        raise InputErrors(dict.fromkeys(reader.problems))
    values = loaded.values
    return Sweep(
        values.name,
        loaded.path,
        loaded.places,
        reader.output_dir,
        runs,
        runner=values.runner,
        ray=values.ray,
        slurm=values.slurm,
        processes=values.processes,
    )


class _Reader:
    """Makes the runs of a checked file; mistakes are added to `problems`."""

    def __init__(self, loaded: LoadedSweep) -> None:
        self.file, self.places, self.path = loaded.values, loaded.places, loaded.path
        self.forced = loaded.forced
        self.output_dir = Path(self.file.output_dir or f"runs/{self.file.name}")
        self.problems: list[Problem] = []

    def runs(self) -> list[SweepRun]:
        """All runs, beginning with each variant's first seed."""
        bases, variants = self._bases(), self._variants()
        common = settings(self.file.set, self.places, ("set",))
        points = self._grid_points(variants)
        self._check_keys([*common, *self.forced, *(s for v in variants for s in v.settings)])
        runs = []
        turns = max((len(variant.seeds) for variant in variants), default=0)
        for turn in range(turns):
            for base, variant, (point, labels) in itertools.product(bases, variants, points):
                if turn >= len(variant.seeds):
                    continue
                parts = [base.label] if len(bases) > 1 else []
                parts += [variant.name] if variant.name else []
                name = "-".join([*parts, *labels]) or base.label
                given = [*common, *variant.settings, *point, *self.forced]
                runs.append(self._run(name, base, variant.seeds[turn], given))
        self._check_folders(runs)
        return runs

    def _run(self, name: str, base: Base, seed: int, given: Sequence[Override]) -> SweepRun:
        folder = self.output_dir / f"{name}-seed{seed}"
        place = Place(self.places.source)
        own = [
            Override((key,), value, place)
            for key, value in (("name", name), ("seed", seed), ("output_dir", str(folder)))
        ]
        # The last value of a key wins.
        last = {one.key: one for one in given}
        kept = [one for one in given if last[one.key] is one]
        return SweepRun(name, seed, base, (*kept, *own), folder)

    def _bases(self) -> list[Base]:
        given = self.file.base
        if isinstance(given, dict) and given:
            self._check_keys([setting(k, v, self.places, ("base", k)) for k, v in given.items()])
            return [Base(self.file.name, None, given)]
        sources = [given] if isinstance(given, str) else given
        if not isinstance(sources, list) or not sources or not all(s and isinstance(s, str) for s in sources):
            what = "must be a recipe, a file, a list of them, or the keys of a run"
            self.problems.append(self.places.problem(("base",), what))
            return []
        bases = []
        for i, source in enumerate(map(at_home, sources)):
            neighbor = self.path.parent / source
            # Like data files: in the current folder, then next to the sweep's file.
            found = str(neighbor) if not Path(source).is_file() and neighbor.is_file() else source
            label = Path(source).stem if Path(found).is_file() else source
            bases.append(Base(label, found, at=("base",) if isinstance(given, str) else ("base", i)))
        return bases

    def _variants(self) -> list[_Variant]:
        given = self.file.variants
        if given is None:
            return [_Variant("", (), self._seeds(self.file.seeds, ("seeds",)))]
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            try:
                given = by_name(given, self.places)
            except InputErrors as error:
                self.problems += error.problems
                return []
        if not isinstance(given, dict) or not given:
            what = "must be a mapping of names to what they set, or a list of methods"
            self.problems.append(self.places.problem(("variants",), what))
            return []
        return [variant for name, values in given.items() if (variant := self._variant(name, values))]

    def _variant(self, name: str, values: Any) -> _Variant | None:
        at: Key = ("variants", name)
        if not _NAME.fullmatch(name):
            what = f"the name '{name}' becomes part of a folder's; use letters, digits and + = . , @ - _"
            self.problems.append(self.places.problem(at, what))
            return None
        if isinstance(values, str):
            method = setting("method", values, self.places, at)
            return _Variant(name, (method,), self._seeds(self.file.seeds, ("seeds",)))
        if values is not None and not isinstance(values, dict):
            self.problems.append(self.places.problem(at, "must be a mapping of keys, or a method's name"))
            return None
        own = dict(values or {})
        at_seeds = (*at, "seeds") if "seeds" in own else ("seeds",)
        seeds = self._seeds(own.pop("seeds", self.file.seeds), at_seeds)
        return _Variant(name, tuple(settings(own, self.places, at)), seeds)

    def _seeds(self, given: Any, at: Key) -> tuple[int, ...]:
        seeds = given if isinstance(given, list | tuple) else None
        if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
            what = "must be a list of different whole numbers >= 0, such as [1, 2, 3]"
        elif len(set(seeds)) < len(seeds):
            what = "duplicate seed; keep one of them"
        else:
            return tuple(seeds)
        self.problems.append(self.places.problem(at, what))
        return ()

    def _grid_points(self, variants: Sequence[_Variant]) -> list[tuple[list[Override], list[str]]]:
        """Every combination of the grid's values: its overrides, and their part of the run's name."""
        axes = []
        short = [key.rpartition(".")[2] for key in self.file.grid]
        set_before = {one.key: "a variant" for variant in variants for one in variant.settings}
        forced = [f"{leaf.key}." for one in self.forced for leaf in flat(one.key, one.value, self.places, ())]
        for (key, values), last in zip(self.file.grid.items(), short, strict=True):
            at: Key = ("grid", key)
            if not values:
                self.problems.append(self.places.problem(at, "must be a list of values that is not empty"))
            axis: list[tuple[list[Override], str]] = []
            for i, value in enumerate(values):
                if any(_are_same(value, earlier) for earlier in values[:i]):
                    what = f"the value {shown(value)} is here twice; leave one out"
                    self.problems.append(self.places.problem((*at, i), what))
                else:
                    label = _label(key if short.count(last) > 1 else last, value)
                    if label.casefold() in (other.casefold() for _, other in axis):  # the same name
                        label += _digest(value)
                    axis.append((list(flat(key, value, self.places, (*at, i))), label))
            sets = dict.fromkeys([key, *(one.key for group, _ in axis for one in group)], f"grid.{key}")
            self._check_keys([setting(one, None, self.places, at) for one in sets])
            wins = {one: "the command line" for one in sets if f"{one}.".startswith(tuple(forced))}
            for one, other in (set_before | wins).items():
                if one in sets:
                    what = f"{other} sets {one} too; remove it from one of the two"
                    self.problems.append(self.places.problem(at, what))
            set_before |= sets
            axes.append(axis)
        return [
            (outer_first(s for group, _ in point for s in group), [label for _, label in point])
            for point in itertools.product(*axes)
        ]

    def _check_keys(self, given: Iterable[Override]) -> None:
        for one in given:
            if one.key in _SETS_ITSELF:
                what = f"the sweep sets '{one.key}' of each run; {_SETS_ITSELF[one.key]}"
                self.problems.append(one.place.problem(what))

    def _check_folders(self, runs: Sequence[SweepRun]) -> None:
        seen: set[str] = set()
        for run in runs:
            if (folder := str(run.folder).casefold()) in seen:
                what = f"two runs would have the name {run.folder.name}; rename a variant or a base"
                self.problems.append(Problem(self.places.source, what))
            seen.add(folder)


def _are_same(a: Any, b: Any) -> bool:
    """Whether two values make the same run: 4 and 4.0 do, 1 and true do not."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _label(key: str, value: Any) -> str:
    """`weight=1e-05`, `targets=q,v`: usable in a folder's name."""
    texts = [
        one if isinstance(one, str) else shown(one) for one in (value if isinstance(value, list) else [value])
    ]
    safe = re.sub(r"[^\w+.,@-]+", "_", ",".join(texts)).strip("_")
    # A long label ends with a digest, so that it does not depend on the other values.
    label = f"{key}={safe or 'empty'}"
    return label if len(label) <= 60 else label[:60] + _digest(value)


def _digest(value: Any) -> str:
    return f"-{sha256(shown(value).encode()).hexdigest()[:8]}"
