"""What is odd about the outcome of a stage, in plain sentences: what a table of scores does not show.

Each note is certain, not a guess. `training_notes` compares the loss of the same examples before and after, without
dropout, so the noise between batches plays no role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from nlora.data.task import Task
from nlora.evaluation.text_metrics import normalize, told_apart

if TYPE_CHECKING:
    from nlora.config.train_options import TrainOptions
    from nlora.evaluation.evaluator import Answers
    from nlora.models.lora_factors import AdapterState
    from nlora.runs.plan import Plan
    from nlora.training.finite_guard import NotFiniteError
    from nlora.training.result import TrainResult

_UNMOVED = 1e-3
"""A loss that changed by less than this share has not moved. A learning rate a thousand times too small changes it
less; one epoch on a few examples that it can learn from changes it by tenths."""
_NOTHING_TO_LEARN = 1e-2
"""A loss below this had nowhere to go."""
_FEWEST_STEPS, _STEPS_FROM_ZERO = 30, 4
"""AdamW moves an entry by about a learning rate per step. If after 30 steps or more every entry of a factor is within
four steps of zero, something pulled it back. (SmolLM2 after 25 steps: 12 steps away, and 2.4 to 2.8 with a weight of
1 to 100.)"""
_FEWEST_ANSWERS = 20
_SHOWN = 40
"""Characters of an example's text in a message."""


def training_notes(result: TrainResult, update: AdapterState, options: TrainOptions) -> list[str]:
    """What is odd about a stage's training. update: what it trained; empty if it trained weights."""
    return [*_update_notes(result, update, options), *_loss_notes(result)]


def _update_notes(result: TrainResult, update: AdapterState, options: TrainOptions) -> Iterator[str]:
    zeros = [name for name, factors in update.items() if not factors.B.any()]
    if zeros:
        more = f" and of {len(zeros) - 1} more layers" if len(zeros) > 1 else ""
        yield f"the update of {zeros[0]}{more} is still 0; it learned nothing"
    near = _STEPS_FROM_ZERO * options.learning_rate
    full = _full_steps(result.steps, options.warmup(result.examples))
    if result.penalty > 0 and full >= _FEWEST_STEPS and len(zeros) < len(update):
        largest = max(
            min(float(f.A.abs().max()), float(f.B.abs().max())) for f in update.values() if f.A.numel()
        )
        if largest <= near:
            yield (
                f"the penalty drove the update to zero: after {result.steps} steps, no entry of B (or of A) is larger "
                f"than {largest:.1g} in any layer, {_STEPS_FROM_ZERO} steps of learning rate {options.learning_rate:g} "
                "or less; try a smaller method.weight"
            )


def _full_steps(steps: int, warmup: int) -> float:
    """How many steps at the whole learning rate go as far as these, some of which are a warm-up."""
    return steps - warmup / 2 if steps > warmup else steps**2 / (2 * warmup)


def _loss_notes(result: TrainResult) -> Iterator[str]:
    before, after = result.loss_before, result.loss_after
    if before is None or after is None or before < _NOTHING_TO_LEARN:
        return
    if abs(after - before) < _UNMOVED * before:
        yield (
            f"the loss never moved: on the first training examples it is {before:.4g} before and {after:.4g} after "
            f"{result.steps} steps; try a larger train.learning_rate"
            f"{' or a smaller method.weight' if result.penalty > 0 else ''}"
        )


def answer_notes(tasks: Sequence[Task], answers: Mapping[str, Answers]) -> list[str]:
    """The tasks of which all answers are one label, although their test examples have several."""
    return [note for task in tasks if task.name in answers for note in _one_answer(task, answers[task.name])]


def _one_answer(task: Task, answers: Answers) -> Iterator[str]:
    if task.labels is None or len(answers.texts) < _FEWEST_ANSWERS:
        return
    same = normalize if told_apart(task.labels) else str
    given, right = {same(text) for text in answers.texts}, [same(example.label) for example in task.test]
    if not given & {same(label) for label in task.labels}:
        yield (
            f"none of the {len(answers.texts)} answers to {task.name} is one of its labels; the first is "
            f"'{answers.texts[0][:_SHOWN]}'; evaluate.decode: labels chooses among them"
        )
        return
    if len(given) == 1 and len(set(right)) > 1:
        share = right.count(next(iter(given)))
        yield (
            f"all {len(answers.texts)} answers to {task.name} are '{answers.texts[0]}', which is right for {share} "
            "of them"
        )


def not_finite_in_words(error: NotFiniteError, plan: Plan, stage: int) -> str:
    """The message of a refused step, with its stage and the examples' ids and texts."""
    task = plan.tasks[stage - 1]
    portions = plan.examples[stage - 1].portions
    examples = [(source.name, example) for source, some in portions for example in some]
    where = f"stage {stage}, {task.name}, "
    if len(examples) != len(plan.encoded[stage - 1]):  # some conversations are several sequences
        return error.in_words(where)

    def named(row: int) -> str:
        source, example = examples[row]
        text = " ".join(example.sentence.split())
        beginning = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
        return f'{"" if source == task.name else f"{source} "}{example.id} "{beginning}"'

    return error.in_words(where, named)
