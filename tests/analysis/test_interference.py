"""All measures together: sums over modules, missing modules, adapters that cannot be compared."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from nlora.analysis.interference import compare_states
from nlora.analysis.threshold import DEFAULT_FACTOR
from nlora.errors import AdapterError
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.runs.interference_file import Interference
from states import plain_measures, random_factors, random_state

SHAPES = {
    f"model.layers.{i}.{kind}": shape
    for i in (0, 1)
    for kind, shape in (("q_proj", (12, 16)), ("v_proj", (6, 16)))
}


@pytest.fixture
def states() -> dict[str, AdapterState]:
    """Three adapters of different ranks; the second lacks a module, the third another."""
    made = {name: random_state(SHAPES, r, seed) for name, r, seed in (("a", 2, 1), ("b", 4, 2), ("c", 1, 3))}
    del made["b"]["model.layers.1.q_proj"], made["c"]["model.layers.0.v_proj"]
    return made


def test_the_measures_of_a_pair_are_those_of_whole_updates(states: dict[str, AdapterState]) -> None:
    comparison = compare_states(states, threshold=1.0)
    pairs = comparison.interference().to_json()["pairs"]
    assert list(pairs) == ["a|b", "a|c", "b|c"]
    for pair, made in pairs.items():
        one, other = pair.split("|")
        expected = plain_measures(states[one], states[other], 1.0)
        assert {key: made[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_module_measures_equal_a_comparison_of_that_module_alone(states: dict[str, AdapterState]) -> None:
    comparison = compare_states(states, threshold=1.0)
    module = "model.layers.0.q_proj"
    alone = compare_states({name: {module: state[module]} for name, state in states.items()}, threshold=1.0)
    m = comparison.modules.index(module)
    for measure, values in comparison.module_measures().items():
        assert values[:, m] == pytest.approx(alone.pair_measures()[measure], rel=1e-5), measure


def test_the_average_is_over_pairs_and_rates_are_over_entries(states: dict[str, AdapterState]) -> None:
    values = compare_states(states, threshold=1.0).interference().to_json()
    rates = [own["collision_rate"] for own in values["pairs"].values()]
    assert values["average_collision_rate"] == pytest.approx(sum(rates) / 3)
    for pair, own in values["pairs"].items():
        by_module = values["by_module"]["collision_rate"][pair]
        known = [(r, n) for r, n in zip(by_module, values["entries"], strict=True) if r is not None]
        assert len(known) == {"a|b": 3, "a|c": 3, "b|c": 2}[pair]
        weighted = sum(r * n for r, n in known) / sum(n for _, n in known)
        assert own["collision_rate"] == pytest.approx(weighted, rel=1e-4)


def test_layers_and_kinds_are_rates_over_their_modules(states: dict[str, AdapterState]) -> None:
    values = compare_states({"a": states["a"], "b": states["b"]}, threshold=1.0).interference().to_json()
    assert values["layers"] == [0, 0, 1, 1]
    assert values["kinds"] == ["q_proj", "v_proj", "q_proj", "v_proj"]
    assert values["by_kind"]["kinds"] == ["q_proj", "v_proj"]
    # b has no q_proj in layer 1: that layer is v_proj alone, and the kind q_proj is layer 0 alone.
    rates = values["by_module"]["collision_rate"]["a|b"]
    assert rates[2] is None
    assert values["by_layer"]["collision_rate"]["a|b"][1] == pytest.approx(rates[3], rel=1e-4)
    assert values["by_kind"]["collision_rate"]["a|b"][0] == pytest.approx(rates[0], rel=1e-4)
    both = (rates[0] * 12 * 16 + rates[1] * 6 * 16) / (18 * 16)
    assert values["by_layer"]["average_collision_rate"][0] == pytest.approx(both, rel=1e-4)


def test_the_values_of_an_adapter_are_over_its_own_modules(states: dict[str, AdapterState]) -> None:
    values = compare_states(states, threshold=1.0).interference().to_json()
    for name, state in states.items():
        updates = [f.update().double() for f in state.values()]
        everything = torch.cat([u.flatten() for u in updates])
        own = values["adapters"][name]
        assert own["density"] == pytest.approx(float((everything.abs() > 1.0).double().mean()))
        assert own["l1"] == pytest.approx(float(everything.abs().sum()), rel=1e-5)
        assert own["frobenius"] == pytest.approx(float(everything.norm()), rel=1e-5)
        assert own["rms"] == pytest.approx(float(everything.square().mean().sqrt()), rel=1e-5)
        nuclear = [float(torch.linalg.svdvals(u).sum()) for u in updates]
        assert own["nuclear_norm"] == pytest.approx(sum(nuclear) / len(nuclear), rel=1e-5)
    assert len(compare_states(states).notes) == 2
    assert "b lacks 1 of 4 modules (model.layers.1.q_proj)" in compare_states(states).notes[0]


def scaled(states: dict[str, AdapterState], factor: float) -> dict[str, AdapterState]:
    return {
        name: {module: LoraFactors(f.A, f.B, f.scaling * factor) for module, f in state.items()}
        for name, state in states.items()
    }


def test_the_default_threshold_is_scale_free_and_states_its_rule(states: dict[str, AdapterState]) -> None:
    one, other = compare_states(states), compare_states(scaled(states, 1 / 1024))
    assert other.threshold == pytest.approx(one.threshold / 1024, rel=1e-9)
    assert other.collision_rate() == pytest.approx(one.collision_rate(), abs=1e-12)
    assert other.curve.collision == pytest.approx(one.curve.collision, abs=1e-12)
    everything = torch.cat([f.update().double().flatten() for s in states.values() for f in s.values()])
    rms = float(everything.square().mean().sqrt())
    assert one.threshold == pytest.approx(DEFAULT_FACTOR * rms, rel=1e-5)
    assert "0.1 x the root mean square" in one.threshold_rule
    # What it takes for zero holds at most 1 % of the squared norm.
    small = everything[everything.abs() <= one.threshold]
    assert float(small.square().sum()) <= DEFAULT_FACTOR**2 * float(everything.square().sum())


def test_a_smaller_adapter_collides_less_at_one_threshold_but_not_at_its_own(
    states: dict[str, AdapterState],
) -> None:
    small = {"a": states["a"], "b": scaled(states, 0.01)["b"]}
    one, other = compare_states({"a": states["a"], "b": states["b"]}), compare_states(small)
    assert other.average_collision_rate < 0.5 * one.average_collision_rate
    assert other.relative_curve.collision == pytest.approx(one.relative_curve.collision, abs=0.01)
    assert other.pair_measures()["overlap_energy"] == pytest.approx(
        one.pair_measures()["overlap_energy"], rel=1e-5
    )


def test_curves_fall_and_pass_through_the_exact_rate(states: dict[str, AdapterState]) -> None:
    comparison = compare_states(states, threshold=1.23)
    curve = comparison.curve
    assert (np.diff(curve.at) > 0).all()
    assert (np.diff(curve.density) <= 0).all()
    assert (np.diff(curve.collision) <= 0).all()
    # These modules are so small that the sample is everything.
    assert comparison.sampled_share == 1.0
    at = curve.at.tolist().index(1.23)
    assert curve.collision[:, at] == pytest.approx(comparison.collision_rate())
    assert curve.density[:, at] == pytest.approx(comparison.density())


def test_the_json_reads_back_as_it_was_written(states: dict[str, AdapterState]) -> None:
    found = compare_states(states).interference()
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Interference.model_validate_json(text) == found
    assert "run" not in json.loads(text)  # these adapters are not from a run


def test_threads_do_not_change_the_numbers(
    states: dict[str, AdapterState], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = compare_states(states).interference().to_json()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = compare_states(states).interference().to_json()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert shared == alone


def test_a_zero_update_collides_with_none(states: dict[str, AdapterState]) -> None:
    zero = {module: LoraFactors(f.A, torch.zeros_like(f.B), f.scaling) for module, f in states["a"].items()}
    comparison = compare_states({"a": states["a"], "zero": zero})
    values = comparison.interference().to_json()
    json.dumps(values, allow_nan=False)
    pair = values["pairs"]["a|zero"]
    assert (pair["collision_rate"], pair["overlap_energy"], pair["cosine"]) == (0.0, 0.0, 0.0)
    assert pair["sign_conflict"] is None
    assert pair["row_angle_degrees"] is None
    assert values["adapters"]["zero"]["effective_rank"] == 0.0
    assert "The update of zero is zero." in values["notes"]
    assert (
        compare_states({"one": zero, "two": zero}).interference().to_json()["average_collision_rate"] == 0.0
    )


def test_one_adapter_alone_has_no_pairs(states: dict[str, AdapterState]) -> None:
    values = compare_states({"a": states["a"]}).interference().to_json()
    assert values["pairs"] == {}
    assert values["average_collision_rate"] is None
    assert values["adapters"]["a"]["density"] > 0.5
    json.dumps(values, allow_nan=False)


def test_bfloat16_factors_that_require_gradients_are_read_exactly() -> None:
    f = random_factors(8, 8, 2, seed=1)
    live = LoraFactors(f.A.bfloat16().requires_grad_(), f.B.bfloat16().requires_grad_(), 2.0)
    exact = LoraFactors(live.A.detach().float(), live.B.detach().float(), 2.0)
    made = compare_states({"live": {"m.0.q": live}, "exact": {"m.0.q": exact}}, 0.5).pair_measures()
    assert made["cosine"][0] == pytest.approx(1.0)
    assert made["overlap_energy"][0] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["b"].update({"model.layers.0.q_proj": random_factors(6, 16, 2, 0)}),
         r"module model\.layers\.0\.q_proj is 12x16 in a and 6x16 in b; only adapters of one backbone"),
        (lambda s: s.update(c={"encoder.block.0.q": random_factors(6, 16, 2, 0)}),
         r"a and c have no module in common \(model\.layers\.0\.q_proj \.\.\., encoder\.block\.0\.q"),
        (lambda s: s["b"]["model.layers.0.q_proj"].A.fill_(math.nan), r"b: the factors of .*q_proj contain NaN"),
        (lambda s: s.clear(), "no adapters to compare"),
    ],
    ids=["shape", "nothing in common", "nan", "empty"],
)  # fmt: skip
def test_incomparable_adapters_are_an_error(
    states: dict[str, AdapterState], change: Any, message: str
) -> None:
    change(states)
    with pytest.raises(AdapterError, match=message):
        compare_states(states)


@pytest.mark.parametrize("threshold", [-1.0, math.nan, math.inf])
def test_a_negative_or_infinite_threshold_is_an_error(
    states: dict[str, AdapterState], threshold: float
) -> None:
    with pytest.raises(ValueError, match="is not a number >= 0"):
        compare_states(states, threshold)


def test_adapters_of_one_backbone_need_no_module_in_common(states: dict[str, AdapterState]) -> None:
    """Two pairs of three have no measures, and the third has its own, as without the adapter of other layers."""
    alone = compare_states({"a": states["a"], "b": states["b"]}, 1.0).interference()
    other = {"old": {"model.layers.0.o_proj": random_factors(6, 16, 2, 0)}}
    found = compare_states({**other, "a": states["a"], "b": states["b"]}, 1.0, one_backbone=True)
    values = found.interference()
    assert values.pairs["a|b"] == alone.pairs["a|b"]
    for pair in ("old|a", "old|b"):
        assert set(values.pairs[pair].model_dump().values()) == {None}
        assert set(values.curve.collision_rate[pair]) == {None}
    assert values.average_collision_rate == alone.average_collision_rate
    assert "old and a have no module in common, so they never change the same weights." in values.notes
    collision = values.collision()
    assert collision is not None
    assert list(collision.pairs) == ["a|b"]
