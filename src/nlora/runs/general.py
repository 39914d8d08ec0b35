"""Measures what a run's model knew before: `evaluate.general`, before the first stage and after every stage.

After a stage, this is the model that answers the stage's own task, read without soft prompts. Mostly that is the
model, with all updates so far. Where each task has a model of its own (pertask, or `serve`), it is the newest one's.
Soft prompts change no weight, so a method that learns nothing else always has the numbers of the untouched model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nlora.config.general_options import GeneralOptions, text_in_words
from nlora.config.paths import found_in, is_folder, looked_in
from nlora.config.schema import Config
from nlora.data.general_text import TEXT_KEY, GeneralText, general_text
from nlora.errors import InputErrors, Problem
from nlora.models.positions import Positions
from nlora.models.processes import by_main, from_main
from nlora.runs.general_scores import GeneralScores, general_line, write_before
from nlora.runs.stored_run import StoredRun
from nlora.training.random_state import random_state, set_random_state

if TYPE_CHECKING:
    from nlora.data.tokenize import ExampleTokenizer
    from nlora.methods.base import Method
    from nlora.models.backbone import Backbone
    from nlora.runs.events import Progress
    from nlora.runs.folder import RunFolder
    from nlora.runs.update_history import UpdateHistory

_LARGEST_LOSS = 700.0
"""In nats; exp of more is no number."""
_log = logging.getLogger("nlora")


@dataclass(frozen=True, slots=True)
class GeneralPlan:
    """What is measured.

    windows: of the text, each with `begin` begin tokens. tokens: of the text; 0 without one.
    harness_folder: where the task files of the user's own are. batch_size: of the harness.
    """

    options: GeneralOptions
    batch_size: int
    harness_folder: str | None = None
    text: GeneralText | None = None
    windows: Sequence[Sequence[int]] = ()
    begin: int = 0
    tokens: int = 0

    def without(self, known: GeneralScores) -> GeneralPlan | None:
        """What these numbers lack; None for nothing."""
        has = {*known.harness, *known.harness_names}
        names = tuple(name for name in self.options.harness if name not in has)
        text = self.text if known.text is None else None
        if text is None and not names:
            return None
        return replace(self, options=self.options.model_copy(update={"harness": names}), text=text)

    @property
    def in_words(self) -> str:
        """`the perplexity of mine.txt (4,000 tokens), arc_easy`."""
        text = self.text and f"the perplexity of {text_in_words(self.text.name)} ({self.tokens:,} tokens)"
        return ", ".join([*([text] if text else []), *self.options.harness])


def general_plan(
    config: Config, folders: Sequence[Path], encoder: ExampleTokenizer, positions: Positions
) -> GeneralPlan | None:
    """What the run measures; None for nothing. folders: where to look for relative paths.

    Raises InputErrors with everything that stands in its way.
    """
    options = config.evaluate.general
    if options is None:
        return None
    folder, problems = _harness_folder(options, folders)
    if not problems:
        problems = _harness_problems(config, options, folder)
    if options.text is not None and encoder.encoder_decoder:
        what = (
            f"{config.model} is an encoder-decoder model, which gives a plain text no probability of its own; set it "
            "to null and name tasks under harness, or leave evaluate.general out"
        )
        problems.append(Problem.at(TEXT_KEY, what))
    text = None
    try:
        text = general_text(options, folders)
    except InputErrors as error:
        problems += error.problems
    if problems:
        raise InputErrors(problems)
    plan = GeneralPlan(options, config.evaluate.batch_size, folder)
    return plan if text is None else _with_text(plan, text, encoder, positions)


def _with_text(
    plan: GeneralPlan, text: GeneralText, encoder: ExampleTokenizer, positions: Positions
) -> GeneralPlan:
    from nlora.evaluation.perplexity import windows

    ids = encoder.plain_ids(text.text)
    cut = windows(ids, encoder.begin_ids, positions.text)
    if not cut:
        what = f"{text.name} has only one token, and perplexity needs two; give a longer text"
        raise InputErrors([Problem.at(TEXT_KEY, what)])
    return replace(plan, text=text, windows=cut, begin=len(encoder.begin_ids), tokens=len(ids))


def _harness_folder(options: GeneralOptions, folders: Sequence[Path]) -> tuple[str | None, list[Problem]]:
    """The folder of the user's own task files, if any."""
    if options.harness_path is None:
        return None, []
    if found := found_in(folders, options.harness_path, is_folder):
        return str(found), []
    what = f"no such folder: {options.harness_path}{looked_in(folders, options.harness_path)}"
    return None, [Problem.at(("evaluate", "general", "harness_path"), what)]


def _harness_problems(config: Config, options: GeneralOptions, folder: str | None) -> list[Problem]:
    from nlora.evaluation.harness import harness_problem

    what = None
    if options.harness and config.fsdp:
        what = "the harness reads the model in one process, which fsdp does not allow; leave one of them out"
    elif options.harness:
        what = harness_problem(options.harness, folder)
    return [] if what is None else [Problem.at(("evaluate", "general", "harness"), what)]


@by_main
def refuse_other_numbers(run: StoredRun, plan: GeneralPlan | None) -> None:
    """Raise InputErrors if the run's earlier numbers would not compare with those of the plan."""
    if plan is None:
        return
    known = {"the untouched model": run.general_before()}
    known |= {f"stage {stage}": run.stage_record(stage).general for stage in run.committed_stages()}
    options, sha256 = plan.options, plan.text and plan.text.sha256
    for who, scores in known.items():
        if scores is None:
            continue
        if sha256 and scores.text_sha256 not in (None, sha256):
            what = f"is not the text that {who} was measured on; restore it, or choose another output_dir"
            raise InputErrors([Problem.at(TEXT_KEY, what)])
        if scores.harness and options.harness and scores.harness_limit != options.harness_limit:
            then = "null" if scores.harness_limit is None else scores.harness_limit
            what = f"was {then} when {who} was measured; restore it, or choose another output_dir"
            raise InputErrors([Problem.at(("evaluate", "general", "harness_limit"), what)])


class GeneralProbe:
    """Measures the model of a run at its stages. plan: None: nothing is measured."""

    def __init__(
        self,
        plan: GeneralPlan | None,
        backbone: Backbone,
        history: UpdateHistory,
        run: RunFolder,
        progress: Progress,
    ) -> None:
        self._plan, self._backbone, self._history = plan, backbone, history
        self._run, self._progress = run, progress
        self._before: GeneralScores | None = None

    def before(self) -> None:
        """Measure the untouched model on what the run has no numbers of."""
        if self._plan is None:
            return
        known = self._before = from_main(self._run.general_before)
        lacking = self._plan if known is None else self._plan.without(known)
        if lacking is not None:
            found = self._measure(lacking)
            self._before = found if known is None else known.with_more(found)
            write_before(self._run.folder, self._before)
            self._say("before the first task", found, None)

    def after(self, stage: int, task: str, method: Method) -> GeneralScores | None:
        """The numbers after a stage (from 1); None if nothing is measured."""
        if self._plan is None:
            return None
        self._history.activate_for_task(method, stage - 1)
        scores = self._measure(self._plan)
        self._say(f"stage {stage}, {task}", scores, self._before)
        return scores

    def _say(self, when: str, scores: GeneralScores, before: GeneralScores | None) -> None:
        line = f"{when}: {general_line(scores, before)}"
        self._progress.say(line)
        _log.info("%s", line)

    def _measure(self, plan: GeneralPlan) -> GeneralScores:
        from nlora.evaluation.perplexity import mean_loss, predicted

        begin = time.perf_counter()
        harness = from_main(self._harness, plan) if plan.options.harness else {}
        names, limit = plan.options.harness, plan.options.harness_limit
        if plan.text is None:
            seconds = time.perf_counter() - begin
            return GeneralScores(harness=harness, harness_names=names, harness_limit=limit, seconds=seconds)
        loss = mean_loss(self._backbone.model, plan.windows, plan.begin)
        is_finite = loss < _LARGEST_LOSS  # not so for NaN
        bits = loss / math.log(2) * plan.tokens / plan.text.bytes
        return GeneralScores(
            text=plan.text.name,
            text_sha256=plan.text.sha256,
            tokens=predicted(plan.windows, plan.begin),
            loss=loss if is_finite else None,
            perplexity=math.exp(loss) if is_finite else None,
            bits_per_byte=bits if is_finite else None,
            harness=harness,
            harness_names=names,
            harness_limit=limit,
            seconds=time.perf_counter() - begin,
        )

    def _harness(self, plan: GeneralPlan) -> dict[str, dict[str, float]]:
        from nlora.evaluation.harness import run_harness

        state = random_state()
        try:
            return run_harness(
                self._backbone,
                plan.options.harness,
                folder=plan.harness_folder,
                limit=plan.options.harness_limit,
                batch_size=plan.batch_size,
            )
        finally:
            set_random_state(state)
