"""Guesses the task of a text, for `serve: routed`.

A text is seen as the mean over its tokens of the last hidden states of the frozen backbone, without any update. These
features never change, so the router of a stage is fitted from stored ones: linear discriminant analysis, which takes
the features of each task to be Gaussian around a mean of its own, with one covariance for all. That is estimated within
tasks and shrunk as Ledoit and Wolf do (scikit-learn's LinearDiscriminantAnalysis). All tasks are taken to be equally
likely. CoDe-LoRA (arXiv 2610.08312) has a router of this kind, by a second-hand note.

Each stage's folder has the features of some training examples of its task, and no texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from nlora.data.prompts import names, prompt
from nlora.data.splits import sample
from nlora.errors import unusable
from nlora.evaluation.hidden_states import Features, mean_hidden_states
from nlora.models.processes import by_main, from_main
from nlora.runs.checksums import refuse_damaged_file
from nlora.runs.layout import ROUTER_FILE

if TYPE_CHECKING:
    from nlora.config.schema import Config
    from nlora.data.task import Example, Task
    from nlora.data.tokenize import ExampleTokenizer
    from nlora.models.backbone import Backbone
    from nlora.runs.update_history import UpdateHistory


class TaskRouter:
    """The tasks learned so far, as the router knows them. tasks: their names, in order."""

    def __init__(
        self, backbone: Backbone, encoder: ExampleTokenizer, history: UpdateHistory, config: Config
    ) -> None:
        self._backbone, self._encoder, self._history = backbone, encoder, history
        self._options, self._batch_size = config.router, config.evaluate.batch_size
        self.tasks: list[str] = []
        self._learned: list[Features] = []
        self._classifier: Any = None
        # By task; the examples tell whether another call is about the same ones.
        self._known: dict[str, tuple[Sequence[Example], Features]] = {}

    def learn(self, folder: Path, task: Task, seed: int) -> None:
        """Learn a stage's task from a sample of its training examples, and keep the features in the stage's folder.

        Features that are there already are taken.
        """
        if not from_main((folder / ROUTER_FILE).is_file):
            chosen = sample(task.train, self._options.examples, seed)
            _write(folder, self._features(task, chosen))
        self.reload(folder, task.name)

    def reload(self, folder: Path, task: str) -> None:
        """Learn a stage's task from the features in its folder. Raises RunError if they are missing or damaged."""
        self._learned.append(from_main(_read, folder))
        self.tasks.append(task)
        self._classifier = None

    def guess(self, task: Task) -> list[str]:
        """The name of the task that each of `task.test` seems to be of."""
        if len(self.tasks) == 1:
            return [self.tasks[0]] * len(task.test)
        given, known = self._known.get(task.name, (None, None))
        if known is None or given is not task.test:
            known = self._features(task, task.test)
            self._known[task.name] = task.test, known
        # Processes must not disagree about a text on the border.
        return [self.tasks[i] for i in from_main(partial(self._predicted, known))]

    def _features(self, task: Task, examples: Sequence[Example]) -> Features:
        self._history.deactivate()
        tokenizer, encoder = self._backbone.tokenizer, self._encoder
        texts = [text_read(self._options.reads, task, example) for example in examples]
        most = min(encoder.max_source_tokens, encoder.text_positions or encoder.max_source_tokens)
        given = tokenizer(texts, truncation=True, max_length=most, split_special_tokens=True, verbose=False)
        ids = [ids or [encoder.end_id] for ids in given["input_ids"]]
        return mean_hidden_states(self._backbone, ids, self._batch_size)

    def _predicted(self, features: Features) -> list[int]:
        if self._classifier is None:
            self._classifier = fitted(self._learned)
        found: list[int] = self._classifier.predict(features.astype(np.float64)).tolist()
        return found


def text_read(reads: Literal["prompt", "text"], task: Task, example: Example) -> str:
    """What the router reads of an example: never the two lines of the released prompt that name the task."""
    return example.sentence if reads == "text" else prompt(task, example).removeprefix(names(task))


def fitted(features: Sequence[Features]) -> Any:
    """The discriminant analysis of two or more tasks, whose classes are their positions. features: of each task."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    tasks = len(features)
    classes = np.repeat(np.arange(tasks), [len(rows) for rows in features])
    equal = np.full(tasks, 1 / tasks)
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=equal)
    return analysis.fit(np.concatenate(features).astype(np.float64), classes)


@by_main
def _write(folder: Path, features: Features) -> None:
    (folder / ROUTER_FILE).write_bytes(safetensors.numpy.save({"features": features}))


def _read(folder: Path) -> Features:
    path = folder / ROUTER_FILE
    refuse_damaged_file(path)
    try:
        return safetensors.numpy.load_file(path)["features"]
    except (OSError, KeyError, SafetensorError) as error:
        raise unusable(path, error, moved=folder) from error
