"""A run to look at and to ask: what `nlora.run` and `nlora.open_run` return.

run = Run("runs/support")
run.summary.average_accuracy, run.accuracy_matrix["urgency", "tickets"]
model, tokenizer = run.model()
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nlora.config.load import load_config
from nlora.config.schema import Config
from nlora.errors import InputErrors, Problem, did_you_mean
from nlora.report.accuracy_matrix import AccuracyMatrix
from nlora.runs.run_yaml import RUN_FILE, read_run_file
from nlora.runs.summary import Summary, read_summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nlora.cli.evaluate import Report
    from nlora.report.run_files import StageFiles
    from nlora.runs.checkpoint import Checkpoint


class Run:
    """A run in its folder, finished or not. What it says is read anew each time; the folder is not locked.

    Raises RunError where the folder is no run.

    >>> run = nlora.open_run("runs/support")
    >>> run
    Run('runs/support')
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._given = os.fspath(folder)
        self.folder = Path(folder).absolute()  # the current folder may change later
        read_run_file(Path(folder))

    def __repr__(self) -> str:
        return f"Run({self._given!r})"

    @property
    def config(self) -> Config:
        """The configuration that the folder belongs to, every key of it.

        >>> run.config.method.name
        'nlora'
        """
        return load_config(self.folder / RUN_FILE, {"output_dir": str(self.folder)}).config

    @property
    def summary(self) -> Summary:
        """What summary.json says: scores, averages, times.

        >>> run.summary.tasks, run.summary.status
        (('tickets', 'urgency'), 'complete')
        """
        return read_summary(self.folder)

    @property
    def accuracy_matrix(self) -> AccuracyMatrix:
        """The scores on every task after every stage, in percent.

        >>> run.accuracy_matrix["urgency", "tickets"] == run.summary.R[1][0]
        True
        """
        return AccuracyMatrix(self.summary)

    @property
    def stages(self) -> tuple[StageFiles, ...]:
        """The stages committed so far: number, task, folder, record, losses, the file of its answers.

        >>> [(stage.number, stage.task) for stage in run.stages]
        [(1, 'tickets'), (2, 'urgency')]
        """
        from nlora.report.run_files import load_run

        return load_run(self.folder).stages

    def model(
        self, stage: int | None = None, *, task: str | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after a stage, a plain one of transformers with all updates merged in, and its tokenizer.

        stage: from 1; 0: before any training; None: the last committed one. task: of the run; needed only where the
            method answers each task with another model (pertask).
        Over a bfloat16 backbone it comes in float32, which has room for the updates. Raises ModelError where the
        weights cannot take updates in (quantized ones), InputErrors for a stage that is not there.

        >>> model, tokenizer = run.model()
        >>> type(model).__name__
        'LlamaForCausalLM'
        """
        from nlora.runs.checkpoint import merged

        with _named_as_in_python():
            chosen = self._stage(stage)
            backbone = merged(chosen, _index(chosen, task))
        model: PreTrainedModel = backbone.model.requires_grad_(True)  # type: ignore[assignment]
        return model, backbone.tokenizer

    def predict(self, texts: Sequence[str], *, task: str, stage: int | None = None) -> list[str]:
        """The model's answers to new texts, asked with a task's prompt; as `nlora predict`.

        Each call loads the model: give many texts at once. stage: as of `model`. Raises InputErrors with every text
        that is none, and for a task or a stage that is not there.

        >>> answers = run.predict(["the fox has gone", "the market is down"], task="tickets")
        >>> set(answers) <= {"billing", "network", "hardware"}
        True
        """
        from nlora.cli.predict import predict
        from nlora.data.rows import ProblemList, to_texts
        from nlora.runs.events import EventProgress

        if isinstance(texts, str):
            raise InputErrors([Problem("texts", "is one text; give a list of texts")])
        problems = ProblemList("texts")
        rows = to_texts([(f"texts[{i}]", text) for i, text in enumerate(texts)], problems)
        if found := problems.report():
            raise InputErrors(found)
        with _named_as_in_python():
            answered = predict(self._stage(stage), task, rows, EventProgress(None))
        return [str(row["prediction"]) for row in answered]

    def evaluate(self, tasks: Sequence[str] | None = None, *, stage: int | None = None) -> Report:
        """Scores of a stage on any tasks, with every answer; as `nlora eval`.

        tasks: names of the run's tasks, of data sets beside them, or of built-in ones; None: those that the run scored
            at the stage. stage: as of `model`. Raises InputErrors for tasks or a stage that are not there.

        >>> report = run.evaluate(["tickets"], stage=1)
        >>> report.scores[0].score == run.accuracy_matrix["tickets", "tickets"]
        True
        """
        from nlora.cli.evaluate import evaluate, tasks_to_ask
        from nlora.runs.events import EventProgress

        names = [tasks] if isinstance(tasks, str) else list(tasks or ())
        with _named_as_in_python():
            chosen = self._stage(stage)
            return evaluate(chosen, tasks_to_ask(chosen, names), EventProgress(None))

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the page about the run, and return its path. path: None: report.html in the run's folder.

        >>> run.report("support.html").name
        'support.html'
        """
        from nlora.report.write import REPORT_FILE, write_report

        return write_report([self.folder], self.folder / REPORT_FILE if path is None else Path(path))

    def _stage(self, stage: int | None) -> Checkpoint:
        from nlora.runs.checkpoint import read_stage

        return read_stage(self.folder, stage)


def _index(stage: Checkpoint, task: str | None) -> int:
    """The place of the task whose model is wanted: the named one, or any where all have the same."""
    names = [source.name for source in stage.config.tasks]
    if task is not None:
        if task not in names:
            hint = did_you_mean(task, names) or f"; the tasks are {', '.join(names)}"
            raise InputErrors([Problem("task", f"no task of the run is called '{task}'{hint}")])
        return names.index(task)
    if stage.method.updates == "per_task" and stage.stage > 1:
        method = stage.config.method.label
        raise InputErrors(
            [Problem("task", f"{method} has a model for each task; say which, as task='{names[0]}'")]
        )
    return 0


@contextmanager
def _named_as_in_python() -> Iterator[None]:
    """Mistakes in options of the command line (`--stage`) as such in arguments (`stage`)."""
    try:
        yield
    except InputErrors as error:
        raise InputErrors(Problem(p.where.removeprefix("--"), p.what) for p in error.problems) from None
