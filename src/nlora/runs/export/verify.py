"""Whether two models answer alike: an export against the run's own answers, and against the model it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from nlora.data.collate import Collator
from nlora.data.select import select_tasks
from nlora.data.task import Task, TokenizedExample
from nlora.errors import InputErrors, NloraError, Problem, RunError
from nlora.evaluation.answer import Answer, graded, percent
from nlora.evaluation.choices import Metric, decode_of, metric_name, metric_of
from nlora.evaluation.evaluator import Evaluator
from nlora.evaluation.label_scoring import LabelTree, label_scores
from nlora.models.logits import answer_logits
from nlora.models.positions import positions_of
from nlora.runs.answers import TextKey, by_text, read_answers, text_keys
from nlora.runs.checkpoint import Checkpoint
from nlora.runs.events import Progress
from nlora.runs.layout import PREDICTIONS_FILE
from nlora.runs.plan import make_encoder
from nlora.runs.preflight import preflight, probes

if TYPE_CHECKING:
    from nlora.data.task import Example
    from nlora.data.tokenize import ExampleTokenizer
    from nlora.models.backbone import Backbone
    from nlora.models.fast_paths import FastPaths

_TIE = 1e-3
"""Two answers whose log-probabilities differ by less are equally likely, but for the rounding of float32."""
_TIE_QUANTIZED = 0.1
"""The same for a quantized backbone, which rounds the activations to 8 or 16 bits."""
_SHOWN = 5
_SHOWN_CHARACTERS = 60

Texts = dict[str, list[str]]
"""Answers by task, in the order of the examples."""


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """A task whose first test examples are answered. index: its place in the run. stored: the run's own answers."""

    task: Task
    index: int
    metric: Metric
    stored: tuple[Answer, ...]

    def score(self, texts: Sequence[str]) -> float:
        """Of these answers, in percent, by the task's own metric."""
        return percent(graded(self.task, texts), self.metric)

    def answers(self, texts: Sequence[str]) -> dict[TextKey, Answer]:
        """These answers in the form of the stored ones, by example."""
        return dict(zip(_keys(self.task.test), graded(self.task, texts), strict=True))

    @property
    def run_score(self) -> float:
        """Of the run's own answers, graded as those of the export are."""
        return self.score(self.stored_texts)

    @property
    def stored_texts(self) -> list[str]:
        """The run's own answers."""
        return [answer.prediction for answer in self.stored]


def tasks_to_check(
    checkpoint: Checkpoint, examples: int | None, wanted: Callable[[int], bool]
) -> list[CheckedTask]:
    """The tasks that the run scored at the stage, with their first test examples and the answers stored for these.

    examples: how many of each task; None: all. wanted: whether the export answers the task of that index.
    Raises InputErrors if data is missing, its examples are not the ones that the run scored, or it scored none.
    """
    config, record = checkpoint.config, checkpoint.run.stage_record(checkpoint.stage)
    names = [task.name for i, task in enumerate(config.tasks) if task.name in record.scores and wanted(i)]
    if not names:
        what = (
            f"at {checkpoint.name} the run scored no task that the export answers, so it could not be checked"
        )
        raise InputErrors([Problem(str(checkpoint.run.folder), f"{what}; export another stage or task")])
    loaded = select_tasks(config, checkpoint.loaded.base_folder, names=names)
    path = checkpoint.run.stage_folder(checkpoint.stage) / PREDICTIONS_FILE
    stored = read_answers(path, names)
    found, problems = [], []
    for one in loaded:
        task = replace(one.task, test=one.task.test[:examples])
        known_answers = by_text(stored[task.name])
        answers = [known_answers.get(key) for key in _keys(task.test)]
        are_missing = examples is None and len(task.test) < len(stored[task.name])
        same = all(a is not None and a.others == e.others for a, e in zip(answers, task.test, strict=True))
        if are_missing or not same:
            what = (
                f"its test examples are not the ones that stage {checkpoint.stage} was scored on, so the export cannot "
                "be checked; restore the file"
            )
            problems.append(Problem(f"task {task.name}", what))
        known = record.tasks.get(task.name)
        metric = known.metric if known else metric_of(task, config, "exact_match")
        assert one.index is not None
        checked = CheckedTask(task, one.index, metric, tuple(a for a in answers if a is not None))
        found.append(checked)
        if (
            not problems
            and abs((then := percent(checked.stored, metric)) - (now := checked.run_score)) >= 0.05
        ):
            what = (
                f"{metric_name(metric)} gives the run's own answers {now:.1f} now and gave them {then:.1f} when stage "
                f"{checkpoint.stage} was scored; restore the function"
            )
            problems.append(Problem(f"task {task.name}", what))
    if problems:
        raise InputErrors(problems)
    return found


def _keys(examples: Sequence[Example]) -> list[TextKey]:
    return text_keys((example.sentence, example.label) for example in examples)


class Answering:
    """Makes several models answer alike: the same prompts, and the same paths through the model.

    The paths are found on the first model.
    """

    def __init__(self, checkpoint: Checkpoint, tasks: Sequence[CheckedTask], progress: Progress) -> None:
        self._checkpoint, self._tasks, self._progress = checkpoint, tasks, progress
        self._paths: FastPaths | None = None

    def by(self, backbone: Backbone) -> Answerer:
        """The answers by this model; by an export with a tokenizer of its own, through that."""
        config = self._checkpoint.config
        named = config.model_copy(update={"model": backbone.name})
        encoder = make_encoder(named, positions_of(backbone.model))
        if self._paths is None:
            self._paths = preflight(
                backbone,
                [probes(checked.task, encoder) for checked in self._tasks],
                generates=any(decode_of(c.task, config.evaluate) == "generate" for c in self._tasks),
                longest=encoder.longest_text([checked.task for checked in self._tasks]),
            )

        def on_answered(task: Task) -> Callable[[int], None]:
            return self._progress.scoring(self._checkpoint.stage, task.name, len(task.test))

        return Answerer(self._checkpoint, self._tasks, backbone, encoder, self._paths, on_answered)


class Answerer:
    """Answers the tasks to check with one model. paths: as `nlora.runs.preflight.preflight` found."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tasks: Sequence[CheckedTask],
        backbone: Backbone,
        encoder: ExampleTokenizer,
        paths: FastPaths,
        on_answered: Callable[[Task], Callable[[int], None]],
    ) -> None:
        self._options = checkpoint.config.evaluate
        self._tie = _TIE_QUANTIZED if getattr(backbone.model, "is_quantized", False) else _TIE
        self._tasks, self._backbone, self._encoder = tasks, backbone, encoder
        self._evaluator = Evaluator(backbone, encoder, self._options, paths)
        self._on_answered = on_answered

    @property
    def end_ids(self) -> list[int]:
        """The tokens at which answers end: of the tasks that are checked, each once."""
        return list(dict.fromkeys(i for one in self._tasks for i in self._encoder.end_ids(one.task)))

    def answer(self, activate: Callable[[int], None] = lambda index: None) -> Texts:
        """The answers to every task. activate: makes the model the one that answers a task, by its index."""
        texts = {}
        for checked in self._tasks:
            activate(checked.index)
            answers = self._evaluator.answer(checked.task, self._on_answered(checked.task))
            texts[checked.task.name] = list(answers.texts)
        return texts

    def differences(
        self,
        expected: Texts,
        found: Texts,
        activate: Callable[[int], None] = lambda index: None,
    ) -> list[str]:
        """A line for each example whose answers differ, unless this model finds both equally likely."""
        lines = []
        for checked in self._tasks:
            activate(checked.index)
            name = checked.task.name
            pairs = zip(checked.task.test, expected[name], found[name], strict=True)
            for example, right, other in pairs:
                if right != other and not self._is_tie(checked.task, example, right, other):
                    text = example.sentence[:_SHOWN_CHARACTERS]
                    lines.append(f"{name}, example {example.id}: '{right}', exported '{other}': {text}")
        return lines

    @torch.no_grad()
    def _is_tie(self, task: Task, example: Example, one: str, other: str) -> bool:
        """Whether rounding may decide between two answers."""
        try:
            rows = list(self._encoder.encode(task, [replace(example, label=text) for text in (one, other)]))
        except NloraError:  # an answer that cannot be written as a label
            return False
        model, tokenizer = self._backbone.model, self._backbone.tokenizer
        device = next(model.parameters()).device
        collate = Collator(tokenizer.pad_token_id, self._backbone.encoder_decoder)
        labels = task.labels or ()
        if decode_of(task, self._options) == "labels" and {one, other} <= set(labels):
            tree = LabelTree.build(
                self._encoder.label_ids(labels, chat=task.chat), self._encoder.end_ids(task)[0]
            )
            batch = collate([TokenizedExample(rows[0].prompt_ids, [])])
            scores = label_scores(model, {k: v.to(device) for k, v in batch.items()}, tree)[0]
            return abs(float(scores[labels.index(one)] - scores[labels.index(other)])) < self._tie
        a, b = list(rows[0].answer_ids), list(rows[1].answer_ids)
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if at is None:
            return False
        batch = collate([rows[0]])
        logits, _ = answer_logits(model, {k: v.to(device) for k, v in batch.items()})
        there = logits[0, logits.shape[1] - len(a) + at].float()
        return abs(float(there[a[at]] - there[b[at]])) < self._tie


def refuse(differences: Sequence[str], what: str) -> None:
    """Raises RunError with the first of these differences, if there are any."""
    if not differences:
        return
    more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    listed = "".join(f"\n  {line}" for line in differences[:_SHOWN])
    raise RunError(f"{what}; nothing was written. {len(differences)} answers differ:{listed}{more}")


def scores(tasks: Sequence[CheckedTask], texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Percent by task."""
    return {checked.task.name: checked.score(texts[checked.task.name]) for checked in tasks}
