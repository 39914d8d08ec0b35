"""Run: what `nlora.run` and `nlora.open_run` return."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from nlora.api.arguments import folder_of, quiet_python
from nlora.config.load import load_config
from nlora.config.paths import expanded
from nlora.config.schema import Config
from nlora.errors import InputErrors, Problem, RunError, did_you_mean
from nlora.report.accuracy_matrix import AccuracyMatrix
from nlora.runs.layout import RUN_FILE
from nlora.runs.run_yaml import read_run_file
from nlora.runs.summary import Summary, read_summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nlora.api.evaluation import Evaluation
    from nlora.report.run_files import StageFiles
    from nlora.runs.checkpoint import Checkpoint, StageModel
    from nlora.runs.events import Progress
    from nlora.runs.export.result import Export


class Run:
    """A run in its folder, finished or not. Files are read anew each time, and the folder is never locked.

    Raises RunError if the folder is not a run.

    >>> run = nlora.open_run("runs/support")
    >>> run
    Run('runs/support')
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise RunError(f"{folder!r} is no path; give the output_dir of a run")
        self._given = os.fspath(folder)
        self.folder = expanded(folder).absolute()  # the current folder may change later
        read_run_file(expanded(folder))
        self._loaded: tuple[tuple[int, int], StageModel] | None = None

    def __repr__(self) -> str:
        return f"Run({self._given!r})"

    @property
    def config(self) -> Config:
        """The configuration of the run, with every key.

        >>> run.config.method.name
        'nlora'
        """
        return load_config(self.folder / RUN_FILE, {"output_dir": str(self.folder)}).config

    @property
    def summary(self) -> Summary:
        """The contents of summary.json: scores, averages, times.

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
        """The committed stages, each with its number, task, folder, record, losses and file of answers.

        >>> [(stage.number, stage.task) for stage in run.stages]
        [(1, 'tickets'), (2, 'urgency')]
        """
        from nlora.report.run_files import load_run

        return load_run(self.folder).stages

    def model(
        self, stage: int | None = None, *, task: str | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after a stage, as a plain transformers model with all updates merged, and its tokenizer.

        stage: from 1; 0 is before any training; None is the last committed stage. task: of the run; needed only if the
            method has a model for each task (pertask).
        A bfloat16 backbone is returned in float32, because bfloat16 would round the updates away. Raises ModelError if
        the weights are quantized, so that updates cannot be merged; InputErrors for a stage that does not exist.

        >>> model, tokenizer = run.model()
        >>> type(model).__name__
        'LlamaForCausalLM'
        """
        from nlora.runs.checkpoint import merged

        with quiet_python():
            chosen = self._checkpoint(stage)
            backbone = merged(chosen, _index(chosen, task))
        model: PreTrainedModel = backbone.model.requires_grad_(True)  # type: ignore[assignment]
        return model, backbone.tokenizer

    @overload
    def predict(
        self,
        texts: Sequence[str | Mapping[str, Any]],
        *,
        probabilities: Literal[True],
        task: str | None = None,
        **settings: Any,
    ) -> list[dict[str, float]]: ...
    @overload
    def predict(
        self, texts: Sequence[str | Mapping[str, Any]], *, task: str | None = None, **settings: Any
    ) -> list[str]: ...
    def predict(
        self,
        texts: Sequence[str | Mapping[str, Any]],
        *,
        task: str | None = None,
        stage: int | None = None,
        probabilities: bool = False,
        **settings: Any,
    ) -> list[str] | list[dict[str, float]]:
        """The model's answers to new texts, using a task's prompt, as `nlora predict`.

        texts: a task with a template of several columns takes mappings with these columns instead of texts.
        task: None guesses it for each text, which takes a run with `serve: routed` and `router.reads: text`.
        stage: as for `model`. probabilities: return those of the task's labels instead of the answers.
        settings: keys of `evaluate` that differ from the run's: batch_size, decode.
        The model stays loaded for the next call: see `release`. Raises InputErrors naming every text that is none, for
        a task or a stage that does not exist, and for settings that are wrong or change nothing.

        >>> answers = run.predict(["the fox has gone", "the market is down"], task="tickets")
        >>> set(answers) <= {"billing", "network", "hardware"}
        True
        >>> (found,) = run.predict(["the fox has gone"], task="tickets", probabilities=True)
        >>> max(found, key=found.get) == answers[0]
        True
        """
        from nlora.api import prediction

        with quiet_python():
            checkpoint = self._checkpoint(stage, settings, prediction.SETTINGS)
            asked = prediction.asked_for(checkpoint, task)
            rows = prediction.given_rows(texts, asked.fields)
            if probabilities:
                prediction.check_probabilities(checkpoint, asked)
            if not rows:
                return []
            model, field = self._model(checkpoint), "probabilities" if probabilities else "prediction"
            progress = _progress()
            answered = prediction.predict(
                model, checkpoint, asked, rows, progress, probabilities=probabilities
            )
            return [row[field] for row in answered]

    def evaluate(
        self, tasks: Sequence[str] | None = None, *, stage: int | None = None, **settings: Any
    ) -> Evaluation:
        """Scores of a stage on any tasks, with every answer, as `nlora eval`.

        tasks: names of the run's tasks, of other data sets in its data folder, or of built-in tasks; None: those that
            the run scored at the stage. stage: as for `model`.
        settings: keys of `evaluate` that differ from the run's: batch_size, decode, max_samples, split, unseen,
            validation_share.

        The model stays loaded for the next call: see `release`. Raises InputErrors for tasks, a stage or settings that
        do not exist, and for settings that change nothing.

        >>> evaluation = run.evaluate(["tickets"], stage=1, batch_size=8)
        >>> evaluation.scores[0].score == run.accuracy_matrix["tickets", "tickets"]
        True
        """
        from nlora.api import evaluation

        names = [tasks] if isinstance(tasks, str) else tasks
        with quiet_python():
            checkpoint = self._checkpoint(stage, settings, evaluation.SETTINGS)
            selected = evaluation.tasks_of(checkpoint, names)
            return evaluation.evaluate(self._model(checkpoint), checkpoint, selected, _progress())

    def release(self) -> None:
        """Free the memory of the model that `predict` and `evaluate` have loaded; `with` does so at its end.

        >>> with nlora.open_run("runs/support") as run:
        ...     answers = run.predict(["the fox has gone"], task="tickets")
        >>> run.release()
        """
        if self._loaded is None:
            return
        import gc

        import torch

        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the report of the run, and return its path. path: None is report.html in the run's folder.

        >>> run.report("support.html").name
        'support.html'
        """
        from nlora.report.write import write_report
        from nlora.runs.layout import REPORT_FILE

        return write_report(
            [self.folder], self.folder / REPORT_FILE if path is None else folder_of(path, "path")
        )

    def export(
        self,
        out: str | os.PathLike[str],
        form: str,
        *,
        stage: int | None = None,
        push: str | None = None,
        **options: Any,
    ) -> Export:
        """Write a stage's model as a folder that others load, and check its answers, as `nlora export`.

        form: merged, adapter, adapters or sparse. stage: as for `model`. push: a repository of the Hugging Face Hub.
        options: rank, threshold, merge, density, task, dtype, examples, as on the command line.
        Raises InputErrors for options that are wrong or do not fit the form, RunError if the export's answers are not
        the run's; then nothing is left at `out`.

        >>> found = run.export("exports/support", "merged")
        >>> found.scores == found.run
        True
        """
        from nlora.runs.export.export import export
        from nlora.runs.export.options import ExportOptions

        with quiet_python():
            return export(
                self.folder, folder_of(out, "out"), ExportOptions(form, **options), stage=stage, push=push
            )

    def _checkpoint(
        self, stage: int | None, settings: Mapping[str, Any] | None = None, counting: Sequence[str] = ()
    ) -> Checkpoint:
        """counting: the keys of `evaluate` that `settings` may have."""
        from nlora.runs.checkpoint import read_stage

        overrides = {f"evaluate.{key}": value for key, value in (settings or {}).items()}
        return read_stage(self.folder, stage, overrides, counting=counting)

    def _model(self, stage: Checkpoint) -> StageModel:
        """The stage's model: the one of the last call if it has the same weights."""
        from nlora.runs.checkpoint import StageModel

        # A stage may have been deleted and trained again since.
        written = stage.run.stage_folder(stage.stage).stat().st_mtime_ns if stage.stage else 0
        if self._loaded is None or self._loaded[0] != (stage.stage, written):
            self.release()
            self._loaded = (stage.stage, written), StageModel(stage)
        return self._loaded[1]


def _progress() -> Progress:
    from nlora.api.notebook import notebook_bar
    from nlora.runs.events import Progress

    return Progress(notebook_bar())


def _index(stage: Checkpoint, task: str | None) -> int:
    """The position of the task whose model is wanted; any will do if all tasks share a model."""
    names = [source.name for source in stage.config.tasks]
    if task is not None:
        if task not in names:
            hint = did_you_mean(task, names) or f"; the tasks are {', '.join(names)}"
            raise InputErrors([Problem("task", f"no task of the run is called '{task}'{hint}")])
        from nlora.api.prediction import refuse_untrained

        refuse_untrained(stage, task, names.index(task), "task")
        return names.index(task)
    if stage.method.needs_task and stage.stage > 1:
        method = stage.config.method.label
        raise InputErrors(
            [Problem("task", f"{method} has a model for each task; say which, as task='{names[0]}'")]
        )
    return 0
