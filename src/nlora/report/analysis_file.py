"""What `nlora analyze` found in a run's adapters: analysis.json, checked and typed.

    microscope = read_microscope(folder, summary)
    microscope.pairs["reuters|tweets"].collision_rate

Where analysis.json is missing, what the summary says of collisions stands in; without either there is nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlora.errors import RunError
from nlora.runs.summary import Summary

ANALYSIS_FILE = "analysis.json"
Number = float | None


class _Read(BaseModel):
    """A part of a file that another command wrote; what it says beyond is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class AdapterFacts(_Read):
    """One update, over all of its modules. density: share of entries above the threshold."""

    density: Number = None
    nuclear_norm: Number = None
    stable_rank: Number = None
    effective_rank: Number = None
    l1: Number = None
    frobenius: Number = None


class PairFacts(_Read):
    """Two updates, over the modules that both have. Rates and shares are 0 to 1, angles are degrees."""

    collision_rate: Number = None
    sign_conflict: Number = None
    overlap_energy: Number = None
    orthogonality: Number = None
    update_orthogonality: Number = None
    cosine: Number = None
    row_angle_degrees: Number = None
    column_angle_degrees: Number = None


class ByModule(_Read):
    """The same module by module: a list for each adapter or pair, in the order of `modules`."""

    density: dict[str, list[Number]] = Field(default_factory=dict)
    nuclear_norm: dict[str, list[Number]] = Field(default_factory=dict)
    collision_rate: dict[str, list[Number]] = Field(default_factory=dict)


class Curve(_Read):
    """How density and collision depend on the threshold."""

    thresholds: list[float] = Field(default_factory=list)
    density: dict[str, list[Number]] = Field(default_factory=dict)
    average_collision_rate: list[Number] = Field(default_factory=list)


class RelativeCurve(_Read):
    """The same over thresholds in units of each update's own root mean square."""

    factors: list[float] = Field(default_factory=list)
    density: dict[str, list[Number]] = Field(default_factory=dict)
    average_collision_rate: list[Number] = Field(default_factory=list)


class Drop(_Read):
    """What learning `later` cost `earlier`, in points, beside how much their updates meet."""

    earlier: str
    later: str
    drop: Number = None
    collision_rate: Number = None
    overlap_energy: Number = None


class Forgetting(_Read):
    """Collision against forgetting over pairs. correlation: by measure, as the analysis computed it."""

    pairs: list[Drop] = Field(default_factory=list)
    correlation: dict[str, dict[str, Any] | None] = Field(default_factory=dict)


class Microscope(_Read):
    """The whole file, schema 1; only threshold and pairs are always there."""

    schema_version: Literal[1] = Field(1, alias="schema")
    threshold: float
    threshold_rule: str = ""
    adapters: dict[str, AdapterFacts] = Field(default_factory=dict)
    pairs: dict[str, PairFacts] = Field(default_factory=dict)
    average_collision_rate: Number = None
    modules: list[str] = Field(default_factory=list)
    layers: list[int | None] = Field(default_factory=list)
    kinds: list[str] = Field(default_factory=list)
    by_module: ByModule = ByModule()
    curve: Curve = Curve()
    relative_curve: RelativeCurve = RelativeCurve()
    notes: list[str] = Field(default_factory=list)
    forgetting: Forgetting | None = None

    def pair(self, a: str, b: str) -> PairFacts | None:
        """Two adapters in either order."""
        return self.pairs.get(f"{a}|{b}") or self.pairs.get(f"{b}|{a}")


def read_microscope(folder: Path, summary: Summary) -> Microscope | None:
    """What is known of a run's collisions. Raises RunError, in one line, when analysis.json is broken."""
    path = folder / ANALYSIS_FILE
    if path.is_file():
        try:
            found = Microscope.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunError(f"{path}: {_why(error)}; `nlora analyze {folder}` writes it again") from error
        if wrong := _lengths(found):
            raise RunError(f"{path}: is broken: {wrong}; `nlora analyze {folder}` writes it again")
        return found
    if summary.collision is None:
        return None
    return Microscope(
        schema=1,
        threshold=summary.collision.threshold,
        average_collision_rate=summary.collision.average_rate,
        pairs={pair: PairFacts(collision_rate=rate) for pair, rate in summary.collision.pairs.items()},
    )


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    return f"is broken: {key + ': ' if key else ''}{first['msg']}"


def _lengths(found: Microscope) -> str:
    """Which list does not have an entry for each module or threshold; empty when all have."""
    modules, thresholds = len(found.modules), len(found.curve.thresholds)
    lists = {
        "layers": (found.layers, modules),
        "kinds": (found.kinds, modules),
        **{
            f"by_module.{measure}.{name}": (values, modules)
            for measure in ("density", "nuclear_norm", "collision_rate")
            for name, values in getattr(found.by_module, measure).items()
        },
        **{f"curve.density.{name}": (values, thresholds) for name, values in found.curve.density.items()},
        "curve.average_collision_rate": (found.curve.average_collision_rate, thresholds),
        "relative_curve.average_collision_rate": (
            found.relative_curve.average_collision_rate,
            len(found.relative_curve.factors),
        ),
    }
    for name, (values, wanted) in lists.items():
        if len(values) not in (0, wanted):
            return f"{name} has {len(values)} entries for {wanted}"
    return ""
