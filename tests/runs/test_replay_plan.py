"""What `replay` keeps by the plan of a run, and what it refuses before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers import ANIMALS, COLORS, write_config, write_task
from nlora.config.load import load_config
from nlora.data.columns import Columns, TokenizedExamples
from nlora.data.task import Example, Task, TokenizedExample
from nlora.errors import InputErrors
from nlora.runs.plan import make_plan
from nlora.runs.replay_plan import replay_notes, rows_of_each, tokens_of_each

TinyModel = Callable[[str], Path]


def plan_of(config: Path, *overrides: str) -> Any:
    return make_plan(load_config(config, overrides))


def test_examples_that_are_held_out_are_not_replayed(tmp_path: Path, tiny_model: TinyModel) -> None:
    """All that is left of each task is kept, and weighted by the labels of what is kept."""
    config = write_config(tmp_path, tiny_model("llama"), replay={"memory": 10})
    plan = plan_of(
        config, "evaluate={split: validation, validation_share: 0.2}", "train.early_stopping={patience: 1}",
        "train.label_weights=balanced",
    )  # fmt: skip
    first = plan.tasks[0]
    own, *replayed = plan.examples[1].portions
    assert own == (plan.tasks[1], plan.tasks[1].train)
    assert [task.name for task, _ in replayed] == ["colors"]
    held = {*first.test, *first.validation}
    assert len(held) >= 3
    assert set(replayed[0][1]) == set(first.train)
    assert not held & set(replayed[0][1])
    assert plan.weights[1][-10:].sum() == pytest.approx(10)
    assert plan.stages[1].replayed == {"colors": 10}


def test_of_a_smaller_task_everything_is_kept_and_that_is_said(tmp_path: Path, tiny_model: TinyModel) -> None:
    """The memory cannot change once a run has begun, so a small task must not keep others from being appended."""
    tasks = [
        write_task(tmp_path / "data", "colors", COLORS, train=24),
        write_task(tmp_path / "data", "animals", ANIMALS, train=12),
    ]
    config = write_config(tmp_path, tiny_model("llama"), tasks=tasks, replay={"memory": 20})
    for order in ([0, 1], [1, 0]):
        plan = plan_of(config, f"tasks={json.dumps([tasks[i] for i in order])}")
        first, (kept, some) = plan.tasks[0], plan.examples[1].portions[1]
        assert (kept, len(some)) == (first, min(20, len(first.train)))
        notes = [note for note in replay_notes(plan.config, plan.tasks) if "are kept" in note]
        assert notes == ["animals has 12 training examples, so all of them are kept"]


def test_a_budget_of_tokens_is_kept_to(tmp_path: Path, tiny_model: TinyModel) -> None:
    plan = plan_of(write_config(tmp_path, tiny_model("llama"), replay={"tokens": 260}))
    _, *replayed = plan.examples[1].portions
    for task, some in replayed:
        lengths = plan.encoder.encode(task, some).lengths
        assert 0 < sum(lengths) <= 260
        assert len(some) < len(task.train)


def test_a_conversation_that_has_become_several_sequences_counts_as_one_example() -> None:
    train = tuple(
        Example(str(i), "x" * i, "y") for i in (2, 1, 3)
    )  # each as many sequences as it has letters
    task = Task("chat", "chat", "", None, train, ())

    class Encoder:
        def encode(self, task: Task, examples: Sequence[Example], *, all_turns: bool) -> TokenizedExamples:
            rows = [TokenizedExample([1] * n, [2]) for e in examples for n in range(1, len(e.sentence) + 1)]
            return TokenizedExamples([Columns.of((row, False) for row in rows)])

    encoder: Any = Encoder()
    rows = encoder.encode(task, train, all_turns=True)
    assert list(rows_of_each(task, rows, encoder)) == [(0, 2), (2, 3), (3, 6)]
    assert tokens_of_each(task, rows, encoder) == [2 + 3, 2, 2 + 3 + 4]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "replay={memory: 17}",
            "replay.memory: 17 is more than the 16 training examples of task colors, and no task has more; set it to",
        ),
        ("replay={memory: 4, tokens: 9}", "memory 4 and tokens 9 exclude each other; set one of them"),
        ("replay={share: 0.5}", "nothing says how much is kept; set memory, in examples of each task, or"),
        (
            "replay={tokens: 9}",
            "replay.tokens: 9 are too few for any example of task colors; the shortest has",
        ),
        (
            "replay={memory: 4, share: 0.05}",
            "replay.share: 0.05 of a batch of 8 is none of its examples; change it",
        ),
        ("replay={memory: 4, share: 1}", "replay.share: must be a number > 0 and < 1, or null, not 1"),
        ("replay={memory: -1}", "replay.memory: must be a whole number >= 0, not -1"),
        ("replay={memory: 4, choose: random}", "replay.choose: must be stratified or hardest, not 'random'"),
        ("replay=32", "must be a mapping of keys, not 32"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    tmp_path: Path, tiny_model: TinyModel, override: str, said: str
) -> None:
    with pytest.raises(InputErrors) as error:
        plan_of(write_config(tmp_path, tiny_model("llama")), override)
    lines = [str(problem) for problem in error.value.problems]
    assert any(said in line for line in lines), lines
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["mtl", "replay"])
def test_methods_that_choose_examples_themselves_refuse_it(
    tmp_path: Path, tiny_model: TinyModel, method: str
) -> None:
    with pytest.raises(InputErrors) as error:
        plan_of(
            write_config(tmp_path, tiny_model("llama"), method=method, replay={"memory": 4, "share": 0.5})
        )
    (problem,) = error.value.problems
    assert f"replay: {method} chooses the examples of a stage itself; leave replay out" in str(problem)
