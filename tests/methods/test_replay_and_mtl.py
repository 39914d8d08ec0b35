"""Which examples a stage trains on: replay's sample of earlier tasks, mtl's everything at once."""

from __future__ import annotations

from collections import Counter

from nlora.data.task import Example, Task
from nlora.methods.registry import build


def task(name: str, count: int = 40) -> Task:
    train = tuple(Example(str(i), f"{name} {i}", "ab"[i % 4 == 0]) for i in range(count))
    return Task(name, name, "Which?", ("a", "b"), train, train[:2])


TASKS = [task("first"), task("second"), task("third", 6)]


def test_replay_adds_a_sample_of_every_earlier_task_under_its_own_prompt() -> None:
    (own, examples), *kept = build("replay", {"memory": 8}).examples(TASKS, 2, seed=1)
    assert (own, examples) == (TASKS[2], TASKS[2].train)
    assert [task.name for task, _ in kept] == ["first", "second"]
    for earlier, some in kept:
        assert len(some) == 8
        assert set(some) <= set(earlier.train)
        assert Counter(e.label for e in some) == {"a": 6, "b": 2}  # in proportion to the labels


def test_replay_keeps_the_same_examples_at_every_later_stage_and_others_for_another_seed() -> None:
    method = build("replay", {"memory": 8})
    second, third = (dict(enumerate(method.examples(TASKS, index, seed=1))) for index in (1, 2))
    assert second[1] == third[1]
    assert method.examples(TASKS, 1, seed=2)[1] != second[1]


def test_replay_never_uses_test_examples_or_later_tasks() -> None:
    assert build("replay", {}).examples(TASKS, 0, seed=1) == [(TASKS[0], TASKS[0].train)]
    everything = build("replay", {"memory": 1000}).examples(TASKS, 1, seed=1)
    assert [portion[1] for portion in everything] == [TASKS[1].train, TASKS[0].train]


def test_no_memory_is_incremental_lora() -> None:
    for index in range(3):
        assert build("replay", {"memory": 0}).examples(TASKS, index, 1) == build("inclora", {}).examples(
            TASKS, index, 1
        )


def test_mtl_trains_everything_at_the_end() -> None:
    method = build("mtl", {})
    assert method.examples(TASKS, 0, 1) == method.examples(TASKS, 1, 1) == []
    assert method.examples(TASKS, 2, 1) == [(t, t.train) for t in TASKS]
