"""The model of a stage as it answers tasks: the same for all of them, or each task's own, or the one of a guess."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from nlora.evaluation.evaluator import Answers, mean_answer_tokens

if TYPE_CHECKING:
    from nlora.data.task import Task
    from nlora.evaluation.evaluator import Evaluator
    from nlora.methods.base import Method
    from nlora.runs.task_router import TaskRouter
    from nlora.runs.update_history import UpdateHistory


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A stage's model that answers tasks. router: guesses the task of each text; None: the task is known."""

    method: Method
    history: UpdateHistory
    evaluator: Evaluator
    router: TaskRouter | None = None

    def answer(
        self,
        task: Task,
        index: int,
        on_answered: Callable[[int], None] = lambda count: None,
        *,
        probabilities: bool = False,
        is_known: bool = False,
    ) -> Answers:
        """The model's answers to `task.test`.

        index: the task's position in the run, from 0, for methods with a model for each task. For a task that is not
        in the run, the number of the run's tasks. is_known: the task is not to be guessed.
        """
        if self.router is None or is_known or not self.router.tasks:
            self.history.activate_for_task(self.method, index)
            beginning = partial(self.method.beginning, index)
            return self.evaluator.answer(task, on_answered, probabilities=probabilities, beginning=beginning)
        begin = time.perf_counter()
        guesses = self.router.guess(task)
        guessing = time.perf_counter() - begin
        parts = []
        for i, name in enumerate(self.router.tasks):  # each model is made active once
            places = [place for place, guess in enumerate(guesses) if guess == name]
            if not places:
                continue
            some = replace(task, test=tuple(task.test[place] for place in places))
            self.history.activate_for_task(self.method, i)
            given = task if len(places) == len(task.test) else some
            parts.append((places, self.evaluator.answer(given, on_answered, probabilities=probabilities)))
        joined = _joined(parts, len(task.test))
        return replace(joined, seconds=joined.seconds + guessing, guesses=tuple(guesses))

    def is_bare(self, index: int) -> bool:
        """Whether the task at that position is answered by the untrained backbone although something was trained."""
        updates = self.history.updates
        if self.router is not None and self.router.tasks:
            return False
        return any(updates) and not any(self.method.answering(updates, index))


def _joined(parts: Sequence[tuple[Sequence[int], Answers]], count: int) -> Answers:
    """The answers to all examples. parts: the places of some examples, and the answers to these."""
    texts = [""] * count
    probabilities: list[tuple[float, ...]] = [()] * count
    for places, answers in parts:
        for n, place in enumerate(places):
            texts[place] = answers.texts[n]
            probabilities[place] = () if answers.probabilities is None else answers.probabilities[n]
    given = [answers for _, answers in parts]
    return Answers(
        tuple(texts),
        given[0].decode,
        sum(a.seconds for a in given),
        batches=sum(a.batches for a in given),
        answer_tokens=mean_answer_tokens(given),
        probabilities=None if given[0].probabilities is None else tuple(probabilities),
    )
