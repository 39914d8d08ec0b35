"""Disjoint rows: the split, and that the other rows stay exactly zero through real training."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import learn, write_config
from nlora.errors import InputErrors
from nlora.methods.disjoint import Disjoint, own_rows, room
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter, ModuleShape, load_factors
from tiny import LORA, load, loss, spread

TinyModel = Callable[[str], Path]
Q = "model.layers.0.self_attn.q_proj"


def split(module: str, out: int, tasks: int, seed: int = 0) -> list[list[int]]:
    return [own_rows(module, out, Fraction(1, tasks), stage, seed) for stage in range(1, tasks + 1)]


@settings(max_examples=50, deadline=None)
@given(out=st.integers(1, 80), tasks=st.integers(1, 20), module=st.sampled_from(["a", "b.c", Q]))
def test_every_row_belongs_to_one_task_and_the_numbers_differ_by_one_at_most(
    out: int, tasks: int, module: str
) -> None:
    parts = split(module, out, tasks)
    assert sorted(row for part in parts for row in part) == list(range(out))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("share", "tasks"), [("0.3", 3), ("0.25", 4), ("1/3", 3), ("0.1", 10), ("0.6", 1)])
def test_a_share_gives_each_task_its_number_of_rows_and_no_row_twice(share: str, tasks: int) -> None:
    assert room(Fraction(share)) == tasks
    parts = [own_rows(Q, 200, Fraction(share), stage, 0) for stage in range(1, tasks + 1)]
    rows = [row for part in parts for row in part]
    assert len(set(rows)) == len(rows)
    assert all(abs(len(part) - 200 * Fraction(share)) < 1 for part in parts)


def test_the_split_depends_on_seed_and_module_and_on_nothing_else() -> None:
    state = torch.get_rng_state()
    assert split(Q, 64, 4) == split(Q, 64, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert split(Q, 64, 4) != split(Q, 64, 4, seed=1)
    assert split(Q, 64, 4) != split(Q.replace("q_proj", "v_proj"), 64, 4)
    # Fixed values, so that a new version cannot change the split of a run that is resumed.
    assert own_rows(Q, 16, Fraction(1, 4), 1, seed=0) == [0, 5, 7, 10]


def test_the_row_left_over_does_not_always_go_to_the_same_task() -> None:
    longest = {max(range(3), key=lambda k: len(split(f"layer.{i}", 10, 3)[k])) for i in range(20)}
    assert longest == {0, 1, 2}


def test_rows_are_drawn_and_not_neighbors() -> None:
    first = split(Q, 600, 3)[0]
    gaps = [b - a for a, b in pairwise(first)]
    assert 0.2 < gaps.count(1) / len(gaps) < 0.5  # a third if all rows are equally likely


# --- options and checks before training ---


def problems(method: Any, tasks: int) -> list[str]:
    return [str(problem) for problem in method.check_sequence(tasks)]


def test_more_tasks_than_there_is_room_for_are_refused_before_training() -> None:
    assert problems(build("disjoint", {"share": 0.3}), 3) == []
    assert problems(build("disjoint", {"share": 0.3}), 5) == [
        "method.share: share 0.3 gives room for 3 tasks, but the sequence has 5; use at most 1/5, "
        "or tasks: 5 instead"
    ]
    assert problems(build("disjoint", {"tasks": 4}), 4) == []
    assert problems(build("disjoint", {"tasks": 4}), 5) == [
        "method.tasks: the rows are split among 4 tasks, but the sequence has 5; use at least 5, or null for "
        "the number of tasks"
    ]
    assert problems(build("disjoint", {}), 100) == []
    assert problems(build("disjoint", {"tasks": 1}), 100) == []


def test_one_tenth_is_room_for_ten() -> None:
    """As binary numbers, ten tenths and three thirds are a little more or less than one."""
    assert problems(build("disjoint", {"share": 0.1}), 10) == []
    assert problems(build("disjoint", {"share": 1 / 3}), 3) == []
    assert problems(build("disjoint", {"share": 1 / 49}), 49) == []
    assert len(problems(build("disjoint", {"share": 0.1}), 11)) == 1


@pytest.mark.parametrize("modules_first", [True, False])
def test_a_layer_with_fewer_rows_than_tasks_is_named_once(modules_first: bool) -> None:
    modules = [ModuleShape("a.q", 64, 64, 8), ModuleShape("a.head", 64, 3, 8)]
    method = build("disjoint", {})
    calls = [lambda: method.check(modules), lambda: method.check_sequence(4)]
    found = [p for call in (calls if modules_first else calls[::-1]) for p in call()]
    assert [p.where for p in found] == ["method.tasks"]
    assert found[0].what.startswith(
        "a.head has 3 output rows, and a share of 1/4 of them is less than one row"
    )
    assert method.check_sequence(3) == method.check(modules) == []


@pytest.mark.parametrize(("share", "said"), [(0.2, "1/5"), (1e-7, "1/10000000")])
def test_a_layer_with_fewer_rows_than_a_share_needs_is_named(share: float, said: str) -> None:
    method = build("disjoint", {"share": share})
    assert method.check_sequence(3) == []
    [problem] = method.check([ModuleShape("a.head", 64, 4, 8)])
    assert problem.where == "method.share"
    assert f"a.head has 4 output rows, and a share of {said} of them is less than one row" in problem.what


def test_wrong_options_are_named() -> None:
    for options, where, what in (
        ({"tasks": 3, "share": 0.2}, "method", "tasks and share both set the split"),
        ({"tasks": 0}, "method.tasks", "must be a whole number >= 1, or null, not 0"),
        ({"share": 1}, "method.share", "must be a number > 0 and < 1, or null, not 1"),
        ({"share": float("nan")}, "method.share", "must be a finite number"),
        ({"seed": "x"}, "method.seed", "must be a whole number, not 'x'"),
    ):
        with pytest.raises(InputErrors) as caught:
            build("disjoint", options)  # type: ignore[arg-type]
        (problem,) = caught.value.problems
        assert problem.where == where
        assert problem.what.startswith(what)


# --- training ---


@pytest.fixture
def adapter(tiny_model: TinyModel) -> LoraAdapter:
    return LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)


def begun(adapter: LoraAdapter, stage: int = 1, **options: Any) -> Disjoint:
    method = build("disjoint", options)
    assert isinstance(method, Disjoint)
    method.check_sequence(3)
    method.begin_task(adapter, [adapter.state()] * (stage - 1))
    return method


def test_a_gradient_reaches_the_own_rows_as_it_is_and_no_others(adapter: LoraAdapter) -> None:
    loss(adapter.model).backward()
    plain = {name: f.B.grad.clone() for name, f in adapter.factors().items()}  # type: ignore[union-attr]
    adapter.model.zero_grad()
    begun(adapter, stage=2)
    loss(adapter.model).backward()
    for name, f in adapter.factors().items():
        own = own_rows(name, f.B.shape[0], Fraction(1, 3), 2, 0)
        others = sorted(set(range(f.B.shape[0])) - set(own))
        assert f.B.grad is not None
        assert torch.equal(f.B.grad[own], plain[name][own])
        assert f.B.grad[own].any()
        assert not f.B.grad[others].any()


def test_accumulated_gradients_and_their_norm_count_own_rows_only(adapter: LoraAdapter) -> None:
    """The hook runs before a gradient is added to the accumulated one."""
    begun(adapter)
    for _ in range(2):
        loss(adapter.model).backward()
    Bs = {name: f.B for name, f in adapter.factors().items()}
    norm = torch.nn.utils.clip_grad_norm_(Bs.values(), 1e9)
    own = [B.grad[own_rows(n, B.shape[0], Fraction(1, 3), 1, 0)] for n, B in Bs.items() if B.grad is not None]
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in own]).norm())


def test_a_gradient_that_is_not_finite_stays_out_of_the_other_rows(adapter: LoraAdapter) -> None:
    begun(adapter)
    name, f = next(iter(adapter.factors().items()))
    (f.B * float("nan")).sum().backward()
    others = sorted(set(range(f.B.shape[0])) - set(own_rows(name, f.B.shape[0], Fraction(1, 3), 1, 0)))
    assert f.B.grad is not None
    assert not f.B.grad[others].any()
    assert f.B.grad.isnan().any()


def test_steps_with_weight_decay_keep_the_other_rows_zero(adapter: LoraAdapter) -> None:
    begun(adapter, stage=3)
    optimizer = torch.optim.AdamW(
        [p for p in adapter.model.parameters() if p.requires_grad], 0.1, weight_decay=0.1
    )
    for step in range(6):
        (loss(adapter.model) / 2).backward()
        if step % 2:
            torch.nn.utils.clip_grad_norm_(adapter.model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    for name, f in adapter.state().items():
        rows = f.B.any(1).nonzero().flatten().tolist()
        assert rows == own_rows(name, f.B.shape[0], Fraction(1, 3), 3, 0)


def test_the_next_stage_of_the_same_run_gets_its_own_rows(adapter: LoraAdapter) -> None:
    """One method object is used for all stages; the previous stage's hooks must not mask the next one's rows."""
    method = begun(adapter)
    method.begin_task(adapter, [adapter.state()])
    loss(adapter.model).backward()
    for name, f in adapter.factors().items():
        assert f.B.grad is not None
        rows = f.B.grad.any(1).nonzero().flatten().tolist()
        assert rows == own_rows(name, f.B.shape[0], Fraction(1, 3), 2, 0)


def test_rows_that_an_earlier_update_has_changed_are_not_given_away_again(adapter: LoraAdapter) -> None:
    """As where one adapter is the sum of two tasks, or was learned without rows of its own."""

    def update_in(*stages: int) -> AdapterState:
        update = adapter.state()
        for name, f in update.items():
            rows = [row for stage in stages for row in own_rows(name, f.B.shape[0], Fraction(1, 3), stage, 0)]
            f.B[rows] = 1.0
        return update

    method = build("disjoint", {"tasks": 3})
    method.begin_task(adapter, [update_in(1), update_in(2)])
    method.begin_task(adapter, [update_in(1, 2, 3)])  # of another method, which changes every row
    for earlier in ([update_in(1, 2)], [update_in(1), update_in(1, 3)]):
        with pytest.raises(
            InputErrors, match=r"^method\.name: disjoint would train rows that an earlier update"
        ):
            method.begin_task(adapter, earlier)


def test_one_task_is_incremental_lora(adapter: LoraAdapter) -> None:
    spread(adapter)
    before = adapter.state()
    loss(adapter.model).backward()
    plain = {name: f.B.grad.clone() for name, f in adapter.factors().items()}  # type: ignore[union-attr]
    adapter.model.zero_grad()
    begun(adapter, stage=3, tasks=1)
    loss(adapter.model).backward()
    for name, f in adapter.factors().items():
        assert torch.equal(f.B, before[name].B)
        assert f.B.grad is not None
        assert torch.equal(f.B.grad, plain[name])


def test_a_stage_without_room_or_without_a_number_of_tasks_does_not_begin(adapter: LoraAdapter) -> None:
    with pytest.raises(InputErrors, match="split among 2 tasks, but this is task 3; use at least 3"):
        build("disjoint", {"tasks": 2}).begin_task(adapter, [adapter.state()] * 2)
    with pytest.raises(InputErrors, match="the number of tasks is not known here"):
        build("disjoint", {}).begin_task(adapter, [])


def test_no_two_tasks_of_a_run_change_the_same_entry(tmp_path: Path, tiny_model: TinyModel) -> None:
    train = {"epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 5e-3, "weight_decay": 0.1}
    learn(write_config(tmp_path, tiny_model("llama"), method="disjoint", train=train))
    first, second = (load_factors(tmp_path / f"run/outputs/{s}/adapter") for s in ("1-colors", "2-animals"))
    assert first.keys() == second.keys()
    for name, f in first.items():
        one, other = f.update(), second[name].update()
        assert one.any()
        assert other.any()
        assert not (one * other).any()
        rows = [u.any(1).nonzero().flatten().tolist() for u in (one, other)]
        assert rows == [own_rows(name, f.shape[0], Fraction(1, 2), stage, 0) for stage in (1, 2)]
