"""The measures of adapters at each module, and their sums and means over modules: the content of analysis.json."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlora.analysis.pair_measures import pairs_of
from nlora.runs.interference_file import (
    AdapterValues,
    ByKind,
    ByLayer,
    ByModule,
    Curve,
    Interference,
    PairValues,
    RelativeCurve,
)

Floats = NDArray[np.float64]
_DIGITS = 6
"""Significant digits of the long lists: values by module and curves."""


@dataclass(frozen=True, slots=True, eq=False)
class SampledCurve:
    """Rates over thresholds, from a seeded sample of entries. at: (K,); density: (T, K); collision: (P, K)."""

    at: Floats
    density: Floats
    collision: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """T adapters over M modules. Where an adapter lacks a module, its values and its pairs' values are NaN.

    names: of the adapters, in the order given. modules: names, in order. entries: (M,), of each module.
    adapters: by measure, (T, M): large (entries above the threshold), l1, squared_norm, nuclear_norm, stable_rank,
        effective_rank.
    pairs: by measure, (P, M), in the order of `pairs_of`: both, unlike, energy (see `Entrywise`); inner,
        orthogonality, product, row_angle, column_angle (see `PairMeasures`).
    curve: over absolute thresholds. relative_curve: over thresholds in units of each adapter's own RMS.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    layers: tuple[int | None, ...]
    kinds: tuple[str, ...]
    entries: Floats
    threshold: float
    threshold_rule: str
    adapters: dict[str, Floats]
    pairs: dict[str, Floats]
    curve: SampledCurve
    relative_curve: SampledCurve
    sampled_share: float
    notes: list[str] = field(default_factory=list)

    @property
    def name_pairs(self) -> list[tuple[str, str]]:
        """The names of each pair, in order."""
        return [(self.names[i], self.names[j]) for i, j in zip(*pairs_of(len(self.names)), strict=True)]

    @property
    def pair_names(self) -> list[str]:
        """The keys of the pairs, `a|b`, in order."""
        return ["|".join(pair) for pair in self.name_pairs]

    # where: a mask (M,) that selects modules; None: all.

    def density(self) -> Floats:
        """(T,): the share of an adapter's entries above the threshold; NaN for an adapter without entries."""
        return self._share(self.adapters["large"], None)

    def collision_rate(self, where: NDArray[np.bool_] | None = None) -> Floats:
        """(P,): the share of entries, over the modules that both have, where both exceed the threshold."""
        return self._share(self.pairs["both"], where)

    @property
    def average_collision_rate(self) -> float:
        """Mean over the pairs; NaN for a single adapter."""
        return _mean(self.collision_rate())

    def pair_measures(self) -> dict[str, Floats]:
        """The measures of each pair over all modules that both have, (P,) each; NaN where undefined.

        docs/analysis.md defines them. Rates and shares are 0 to 1, angles are in degrees; sign_conflict is NaN where
        no entries collide, overlap_energy and cosine are 0 if an update is zero.
        """
        return {
            "collision_rate": self.collision_rate(),
            "chance_rate": self._share(self._by_chance(), None),
            **self._of_pairs({name: _row_sums(values) for name, values in self.pairs.items()}, self._norms()),
            "row_angle_degrees": _row_means(self.pairs["row_angle"]),
            "column_angle_degrees": _row_means(self.pairs["column_angle"]),
        }

    def module_measures(self) -> dict[str, Floats]:
        """The same measures at each module alone, (P, M) each."""
        first, second = pairs_of(len(self.names))
        squares = self.adapters["squared_norm"]
        return {
            "collision_rate": self.pairs["both"] / self.entries,
            "chance_rate": self._by_chance() / self.entries,
            **self._of_pairs(self.pairs, np.sqrt(squares[first] * squares[second])),
            "row_angle_degrees": self.pairs["row_angle"],
            "column_angle_degrees": self.pairs["column_angle"],
        }

    def interference(self) -> Interference:
        """The content of analysis.json, with None for NaN."""
        measures = self.pair_measures()
        return Interference(
            schema=1,
            threshold=self.threshold,
            threshold_rule=self.threshold_rule,
            adapters={name: self._adapter_values(t) for t, name in enumerate(self.names)},
            pairs={
                pair: PairValues(**{measure: _plain(values[p]) for measure, values in measures.items()})
                for p, pair in enumerate(self.pair_names)
            },
            average_collision_rate=_plain(self.average_collision_rate),
            modules=list(self.modules),
            layers=list(self.layers),
            kinds=list(self.kinds),
            entries=[int(n) for n in self.entries],
            by_module=ByModule(
                density=self._by_adapter(self.adapters["large"] / self.entries),
                nuclear_norm=self._by_adapter(self.adapters["nuclear_norm"]),
                collision_rate=self._by_pair(self.pairs["both"] / self.entries),
            ),
            by_layer=ByLayer(**self._grouped("layers", self.layers)),
            by_kind=ByKind(**self._grouped("kinds", self.kinds)),
            curve=Curve(thresholds=_rounded(self.curve.at), **self._rates(self.curve)),
            relative_curve=RelativeCurve(
                factors=_rounded(self.relative_curve.at), **self._rates(self.relative_curve)
            ),
            sampled_share=self.sampled_share,
            notes=list(self.notes),
        )

    def _share(self, counted: Floats, where: NDArray[np.bool_] | None) -> Floats:
        chosen = slice(None) if where is None else where
        there = ~np.isnan(counted[:, chosen])
        total = np.where(there, self.entries[chosen], 0.0).sum(1)
        return _ratio(np.nansum(counted[:, chosen], 1), total, np.nan)

    def _by_chance(self) -> Floats:
        """(P, M): the entries that would collide if the two supports were independent."""
        first, second = pairs_of(len(self.names))
        large = self.adapters["large"]
        expected: Floats = large[first] * large[second] / self.entries
        return expected

    def _norms(self) -> Floats:
        """‖ΔW_i‖·‖ΔW_j‖ over the modules that both have: (P,); NaN without any."""
        first, second = pairs_of(len(self.names))
        squares = self.adapters["squared_norm"]
        common = ~np.isnan(self.pairs["both"])
        sums = [np.where(common, squares[side], 0.0).sum(1) for side in (first, second)]
        norms: Floats = np.where(common.any(1), np.sqrt(sums[0] * sums[1]), np.nan)
        return norms

    @staticmethod
    def _of_pairs(values: dict[str, Floats], norms: Floats) -> dict[str, Floats]:
        return {
            "sign_conflict": _ratio(values["unlike"], values["both"], np.nan),
            "overlap_energy": np.minimum(_ratio(values["energy"], norms, 0.0), 1.0),
            "orthogonality": values["orthogonality"],
            "update_orthogonality": np.sqrt(values["product"]),
            "cosine": np.clip(_ratio(values["inner"], norms, 0.0), -1.0, 1.0),
        }

    def _adapter_values(self, t: int) -> AdapterValues:
        own = {measure: values[t] for measure, values in self.adapters.items()}
        squares = math.fsum(own["squared_norm"][~np.isnan(own["squared_norm"])])
        entries = self.entries[~np.isnan(own["large"])].sum()
        means = {
            measure: _plain(_mean(own[measure]))
            for measure in ("nuclear_norm", "stable_rank", "effective_rank")
        }
        return AdapterValues(
            density=_plain(self.density()[t]),
            **means,
            l1=_plain(np.nansum(own["l1"])),
            frobenius=math.sqrt(squares),
            rms=math.sqrt(squares / entries),
        )

    def _grouped(self, key: str, groups: tuple[Any, ...]) -> dict[str, Any]:
        """Collision rates over the modules of each group. Modules whose group is None (no layer) are left out."""
        distinct = [group for group in dict.fromkeys(groups) if group is not None]
        masks = [np.array([other == group for other in groups]) for group in distinct]
        rates = np.array([self.collision_rate(mask) for mask in masks])
        rates = rates.reshape(len(masks), len(self.pair_names)).T  # (P, groups), even without groups
        return {
            key: distinct,
            "collision_rate": self._by_pair(rates),
            "average_collision_rate": [_plain(_mean(column)) for column in rates.T],
        }

    def _rates(self, curve: SampledCurve) -> dict[str, Any]:
        return {
            "density": self._by_adapter(curve.density),
            "collision_rate": self._by_pair(curve.collision),
            "average_collision_rate": [_plain(_mean(column), _DIGITS) for column in curve.collision.T],
        }

    def _by_adapter(self, values: Floats) -> dict[str, list[float | None]]:
        return {name: _rounded(row) for name, row in zip(self.names, values, strict=True)}

    def _by_pair(self, values: Floats) -> dict[str, list[float | None]]:
        return {pair: _rounded(row) for pair, row in zip(self.pair_names, values, strict=True)}


def _ratio(upper: Floats, lower: Floats, without: float) -> Floats:
    """upper / lower; `without` where lower is 0; NaN where either is NaN."""
    missing = np.where(np.isnan(lower), np.nan, without)
    made: Floats = np.broadcast_to(missing, upper.shape).copy()
    np.divide(upper, lower, out=made, where=lower > 0)
    return made


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _row_sums(values: Floats) -> Floats:
    """Sums of the known values; NaN for a row without any."""
    return np.where(np.isnan(values).all(1), np.nan, np.nansum(values, 1))


def _row_means(values: Floats) -> Floats:
    return np.array([_mean(row) for row in values])


def _plain(value: float | np.floating[Any], digits: int | None = None) -> float | None:
    number = float(value)
    if math.isnan(number):
        return None
    return number if digits is None else float(f"{number:.{digits}g}")


def _rounded(values: Floats) -> list[float | None]:
    return [_plain(value, _DIGITS) for value in values]
