"""All measures of some adapters and of every pair of them.

>>> import torch
>>> from nlora.models.lora_factors import LoraFactors
>>> a = {"q_proj": LoraFactors(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
>>> b = {"q_proj": LoraFactors(torch.ones(1, 4), torch.eye(4)[:, :1], 1.0)}
>>> compare_states({"a": a, "b": b}).interference().pairs["a|b"].collision_rate
0.25

The cost is one pass over the entries of each adapter, however many pairs there are, and small products for the rest.
Torch's threads take the modules in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nlora.analysis import threshold_curves
from nlora.analysis.buffers import Scratch
from nlora.analysis.entrywise import Entrywise, entrywise
from nlora.analysis.measurements import Measurements, SampledCurve
from nlora.analysis.module_names import in_order, kinds_of, layer_of
from nlora.analysis.pair_measures import PairMeasures, pair_measures, pairs_of
from nlora.analysis.parallel import each
from nlora.analysis.spectrum import effective_rank, nuclear_norm, reduced_svds, stable_rank
from nlora.analysis.threshold import DEFAULT_FACTOR, DEFAULT_RULE, GIVEN_RULE, pooled, root_mean_square
from nlora.errors import AdapterError
from nlora.models.lora_factors import AdapterState, check_finite

Floats = NDArray[np.float64]
Shares = tuple[Floats, Floats]
_NAMED = 3
"""A note names at most this many missing modules."""


def compare_states(
    states: Mapping[str, AdapterState], threshold: float | None = None, *, one_backbone: bool = False
) -> Measurements:
    """All measures of the adapters and of every pair of them.

    states: by name, in the order in which they are shown. A single one has no pairs.
    threshold: absolute, >= 0; an entry counts if |ΔW| is larger. None: `threshold.DEFAULT_FACTOR` times the root mean
        square of all entries.
    one_backbone: whether the adapters are known to be of one, so that two without a common module only have no measures
        of their pair.

    A pair is compared over the modules that both have; a note names what an adapter lacks. Raises AdapterError if a
    factor is not finite, modules of one name differ in shape, or two adapters of maybe different backbones have no
    module in common.
    """
    if threshold is not None and not (threshold >= 0 and math.isfinite(threshold)):
        raise ValueError(f"threshold {threshold} is not a number >= 0")
    modules = in_order({module for state in states.values() for module in state})
    notes = _checked(states, modules, one_backbone=one_backbone)
    rms = {name: root_mean_square(state) for name, state in states.items()}
    unit = pooled(rms, {name: sum(f.entries for f in state.values()) for name, state in states.items()})
    chosen = float(DEFAULT_FACTOR * unit if threshold is None else threshold)
    notes += [f"The update of {name} is zero." for name in states if rms[name] == 0.0]
    at = threshold_curves.FACTORS * (unit or 1.0)
    at = at if chosen in at else np.sort(np.append(at, chosen))
    absolute = threshold_curves.CurveSums(np.tile(at, (len(states), 1)))
    relative = threshold_curves.CurveSums(np.outer(list(rms.values()), threshold_curves.FACTORS))

    work = _Work(list(states.values()), modules, chosen, absolute, relative)
    results = each(range(len(modules)), work.measure)
    for module in results:
        absolute.add(module.absolute, module.present, module.entries)
        relative.add(module.relative, module.present, module.entries)
    return Measurements(
        names=tuple(states),
        modules=tuple(modules),
        layers=tuple(layer_of(module) for module in modules),
        kinds=tuple(kinds_of(modules)),
        entries=np.array([module.entries for module in results], float),
        threshold=chosen,
        threshold_rule=DEFAULT_RULE if threshold is None else GIVEN_RULE,
        adapters=_of_adapters(len(states), results),
        pairs=_of_pairs(len(states), results),
        curve=SampledCurve(at, absolute.density(), absolute.collision()),
        relative_curve=SampledCurve(threshold_curves.FACTORS, relative.density(), relative.collision()),
        sampled_share=sum(module.sampled for module in results) / sum(module.entries for module in results),
        notes=notes,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Module:
    """The measures at one module. present: indices of the adapters that have it; S: their singular values (T', k)."""

    present: list[int]
    entries: int
    S: Tensor
    entrywise: Entrywise
    pairs: PairMeasures
    absolute: Shares
    relative: Shares
    sampled: int


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Everything needed to measure any of the modules."""

    states: Sequence[AdapterState]
    modules: Sequence[str]
    threshold: float
    absolute: threshold_curves.CurveSums
    relative: threshold_curves.CurveSums
    scratch: Scratch = field(default_factory=Scratch)

    def measure(self, index: int) -> _Module:
        """All measures at one module; thread-safe."""
        module = self.modules[index]
        present = [t for t, state in enumerate(self.states) if module in state]
        factors = [self.states[t][module] for t in present]
        spectra = reduced_svds(factors, self.scratch)
        share = threshold_curves.SAMPLED_ENTRIES // len(self.modules)
        sampled = threshold_curves.sample(factors, share, threshold_curves.SEED + index, self.scratch)
        return _Module(
            present=present,
            entries=factors[0].entries,
            S=spectra.S,
            entrywise=entrywise(factors, self.threshold, self.scratch),
            pairs=pair_measures(factors, spectra, self.scratch),
            absolute=self.absolute.shares(sampled, present, self.scratch),
            relative=self.relative.shares(sampled, present, self.scratch),
            sampled=sampled.shape[1],
        )


def _of_adapters(count: int, results: Sequence[_Module]) -> dict[str, Floats]:
    """By measure, (T, M)."""
    measures = ("large", "l1", "squared_norm", "nuclear_norm", "stable_rank", "effective_rank")
    table = {measure: np.full((count, len(results)), np.nan) for measure in measures}
    for m, module in enumerate(results):
        S = module.S
        values = {
            "large": module.entrywise.large,
            "l1": module.entrywise.l1,
            "squared_norm": S.square().sum(1).numpy(),
            "nuclear_norm": nuclear_norm(S).numpy(),
            "stable_rank": stable_rank(S).numpy(),
            "effective_rank": effective_rank(S).numpy(),
        }
        for measure, column in values.items():
            table[measure][module.present, m] = column
    return table


def _of_pairs(count: int, results: Sequence[_Module]) -> dict[str, Floats]:
    """By measure, (P, M)."""
    index = {pair: p for p, pair in enumerate(zip(*pairs_of(count), strict=True))}
    counted, related = ("both", "unlike", "energy"), PairMeasures.__slots__
    table = {measure: np.full((len(index), len(results)), np.nan) for measure in (*counted, *related)}
    for m, module in enumerate(results):
        first, second = pairs_of(len(module.present))
        rows = [index[module.present[i], module.present[j]] for i, j in zip(first, second, strict=True)]
        for measure in counted:
            table[measure][rows, m] = getattr(module.entrywise, measure)
        for measure in related:
            table[measure][rows, m] = getattr(module.pairs, measure)
    return table


def _checked(states: Mapping[str, AdapterState], modules: Sequence[str], *, one_backbone: bool) -> list[str]:
    """Notes on missing modules. Raises AdapterError if the adapters cannot be compared."""
    if not states or not modules:
        raise AdapterError("there are no adapters to compare, or they have no modules")
    for name, state in states.items():
        check_finite(state, name)
    apart = []
    for (a, one), (b, other) in itertools.combinations(states.items(), 2):
        common = [module for module in modules if module in one and module in other]
        if not common and one_backbone:
            apart.append(f"{a} and {b} have no module in common, so they never change the same weights.")
        elif not common:
            raise AdapterError(
                f"{a} and {b} have no module in common ({_first(one)} ..., {_first(other)} ...); "
                "only adapters of one backbone can be compared"
            )
        for module in common:
            if one[module].shape != other[module].shape:
                sizes = [f"{out}x{n_in}" for out, n_in in (one[module].shape, other[module].shape)]
                raise AdapterError(
                    f"module {module} is {sizes[0]} in {a} and {sizes[1]} in {b}; "
                    "only adapters of one backbone can be compared"
                )
    notes = []
    for name, state in states.items():
        missing = [module for module in modules if module not in state]
        if missing:
            more = ", ..." if len(missing) > _NAMED else ""
            notes.append(
                f"{name} lacks {len(missing)} of {len(modules)} modules ({', '.join(missing[:_NAMED])}{more}): "
                "each pair is compared over the modules that both have."
            )
    return notes + apart


def _first(state: AdapterState) -> str:
    return in_order(state)[0]
