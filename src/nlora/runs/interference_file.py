"""analysis.json: how much the updates of different tasks interfere, schema 1. Every finished run writes
it, and `nlora analyze` again.

The measures are defined in docs/analysis.md. None means undefined or not known.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlora.config.messages import first_problem
from nlora.errors import RunError
from nlora.runs.summary import Collision, Summary

ANALYSIS_FILE = "analysis.json"
Number = float | None
Row = list[Number]
"""One value per module, group or threshold."""


class _Part(BaseModel):
    """Unknown keys are ignored: a later version may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class AdapterValues(_Part):
    """One update over all of its modules. density: share of the entries above the threshold."""

    density: Number = None
    nuclear_norm: Number = None
    stable_rank: Number = None
    effective_rank: Number = None
    l1: Number = None
    frobenius: Number = None
    rms: Number = None


class PairValues(_Part):
    """Two updates over the modules that both have. Rates and shares are 0 to 1, angles are in degrees."""

    collision_rate: Number = None
    chance_rate: Number = None
    sign_conflict: Number = None
    overlap_energy: Number = None
    orthogonality: Number = None
    update_orthogonality: Number = None
    cosine: Number = None
    row_angle_degrees: Number = None
    column_angle_degrees: Number = None


class ByModule(_Part):
    """A row over `modules` for each adapter or pair."""

    density: dict[str, Row] = Field(default_factory=dict)
    nuclear_norm: dict[str, Row] = Field(default_factory=dict)
    collision_rate: dict[str, Row] = Field(default_factory=dict)


class _Rates(_Part):
    """Collision rates over groups of modules or over thresholds."""

    collision_rate: dict[str, Row] = Field(default_factory=dict)
    average_collision_rate: Row = Field(default_factory=list)


class ByLayer(_Rates):
    layers: list[int] = Field(default_factory=list)


class ByKind(_Rates):
    kinds: list[str] = Field(default_factory=list)


class Curve(_Rates):
    """Density and collision rate over absolute thresholds."""

    thresholds: list[float] = Field(default_factory=list)
    density: dict[str, Row] = Field(default_factory=dict)


class RelativeCurve(_Rates):
    """Density and collision rate over thresholds in units of each update's own root mean square."""

    factors: list[float] = Field(default_factory=list)
    density: dict[str, Row] = Field(default_factory=dict)


class RunFacts(_Part):
    """The run that the updates are from."""

    name: str
    method: str
    model: str
    seed: int
    status: Literal["running", "complete"]


class Drop(_Part):
    """The points that learning `later` cost `earlier` (negative: gained), and how much their updates interfere."""

    earlier: str
    later: str
    drop: Number = None
    collision_rate: Number = None
    overlap_energy: Number = None


class Correlation(_Part):
    """Of a measure and the drop, over n pairs."""

    pearson: float
    spearman: float
    n: int
    p_permutation: float
    pearson_interval_95: tuple[float, float] | None = None


class Forgetting(_Part):
    """Interference against forgetting. correlation: by measure; None where it is undefined."""

    pairs: list[Drop] = Field(default_factory=list)
    correlation: dict[str, Correlation | None] = Field(default_factory=dict)


class Interference(_Part):
    """The whole file. run and forgetting are missing where the adapters are not from a run."""

    schema_version: Literal[1] = Field(1, alias="schema")
    threshold: float
    threshold_rule: str = ""
    adapters: dict[str, AdapterValues] = Field(default_factory=dict)
    pairs: dict[str, PairValues] = Field(default_factory=dict)
    average_collision_rate: Number = None
    modules: list[str] = Field(default_factory=list)
    layers: list[int | None] = Field(default_factory=list)
    kinds: list[str] = Field(default_factory=list)
    entries: list[int] = Field(default_factory=list)
    by_module: ByModule = ByModule()
    by_layer: ByLayer = ByLayer()
    by_kind: ByKind = ByKind()
    curve: Curve = Curve()
    relative_curve: RelativeCurve = RelativeCurve()
    sampled_share: Number = None
    notes: list[str] = Field(default_factory=list)
    run: RunFacts | None = None
    forgetting: Forgetting | None = None

    def pair(self, a: str, b: str) -> PairValues | None:
        """Two adapters in either order."""
        return self.pairs.get(f"{a}|{b}") or self.pairs.get(f"{b}|{a}")

    def collision(self) -> Collision | None:
        """The part that summary.json repeats; None without a pair."""
        if self.average_collision_rate is None:
            return None
        rates = {p: own.collision_rate for p, own in self.pairs.items() if own.collision_rate is not None}
        return Collision.model_validate(
            {"threshold": self.threshold, "average_rate": self.average_collision_rate, "pairs": rates}
        )

    def to_json(self) -> dict[str, Any]:
        """The file's content, without the parts that were never set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_interference(folder: Path, summary: Summary) -> Interference | None:
    """A run's analysis.json; without the file, what its summary says about collisions; without either, None.

    Raises RunError, in one line, if the file is broken.
    """
    path = folder / ANALYSIS_FILE
    if path.is_file():
        try:
            found = Interference.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunError(f"{path}: {_why(error)}; {_again(folder)}") from error
        if wrong := _wrong_length(found):
            raise RunError(f"{path}: broken: {wrong}; {_again(folder)}")
        return found
    if summary.collision is None:
        return None
    return Interference(
        schema=1,
        threshold=summary.collision.threshold,
        average_collision_rate=summary.collision.average_rate,
        pairs={pair: PairValues(collision_rate=rate) for pair, rate in summary.collision.pairs.items()},
    )


def _again(folder: Path) -> str:
    return f"write it again with `nlora analyze {shlex.quote(str(folder))}`"


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return f"broken: {first_problem(error)}"


def _wrong_length(found: Interference) -> str:
    """The first list that does not have an entry for each module or threshold; empty when all have."""
    modules, thresholds = len(found.modules), len(found.curve.thresholds)
    lists: dict[str, tuple[list[Any], int]] = {
        "layers": (found.layers, modules),
        "kinds": (found.kinds, modules),
        **{
            f"by_module.{measure}.{name}": (values, modules)
            for measure in ByModule.model_fields
            for name, values in getattr(found.by_module, measure).items()
        },
        **{f"curve.density.{name}": (values, thresholds) for name, values in found.curve.density.items()},
        "curve.average_collision_rate": (found.curve.average_collision_rate, thresholds),
        "relative_curve.average_collision_rate": (
            found.relative_curve.average_collision_rate,
            len(found.relative_curve.factors),
        ),
    }
    for name, (values, expected) in lists.items():
        if len(values) not in (0, expected):
            return f"{name} has {len(values)} entries; {expected} expected"
    return ""
