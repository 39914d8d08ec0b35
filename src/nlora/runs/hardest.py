"""`replay.choose: hardest`: the examples of highest loss, which a stage keeps for the later ones.

They are chosen once a task is learned, and written to its stage's folder (replay.json). So later stages train on the
same ones, whoever computes them. The loss of an example is the mean cross-entropy of the tokens of its answer, by the
model after the stage.

Source: SuRe (arXiv 2511.22367), which keeps the sequences with the highest mean negative log-likelihood of a token.
Departures: its score is the mean over all tokens of a sequence, the prompt's included; here it is over those of the
answer, which alone are trained on. Its authors' code (github.com/HHazard2002/continual-learning) names both as
variants, and scoring before or after a task is trained on; we do not know which of these the published numbers have.
Its buffer is of one size for all tasks. Its second adapter, a moving average, is not part of this.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nlora.data.replay import hardest, hardest_within
from nlora.errors import unusable
from nlora.models.processes import by_main, from_main
from nlora.runs.atomic import write_json
from nlora.runs.layout import REPLAY_FILE
from nlora.runs.replay_plan import rows_of_each, tokens_of_each
from nlora.runs.stage_examples import stage_examples
from nlora.training.answer_losses import all_answer_losses

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone
    from nlora.models.fast_paths import FastPaths
    from nlora.runs.plan import Plan
    from nlora.runs.stored_run import StoredRun

log = logging.getLogger("nlora")


class HardestExamples(BaseModel):
    """The contents of replay.json.

    examples: indices of training examples, ascending. losses: of these, in nats per answer token.
    """

    model_config = ConfigDict(frozen=True)

    examples: tuple[int, ...]
    losses: tuple[float, ...]


def keep_hardest(plan: Plan, backbone: Backbone, stage: int, folder: Path, paths: FastPaths | None) -> None:
    """Write which of its examples a stage keeps, if `replay.choose` is hardest. All processes call it.

    The backbone is the model after the stage. folder: the stage's.
    """
    options, task = plan.config.replay, plan.tasks[stage - 1]
    if not options.by_loss:
        return
    begin = time.perf_counter()
    rows = plan.examples[stage - 1].own
    model: Any = backbone.model
    given = plan.methods[stage - 1].beginning(stage - 1, model, rows)
    found = all_answer_losses(
        backbone, given, given.lengths, paths=paths, batch_size=plan.config.evaluate.batch_size
    )
    losses = []
    for first, last in rows_of_each(task, rows, plan.encoder):
        sums, tokens = zip(*found[first:last], strict=True)
        losses.append(sum(sums) / sum(tokens))
    if options.tokens is None:
        kept = hardest(losses, options.memory)
    else:
        kept = hardest_within(losses, tokens_of_each(task, rows, plan.encoder), options.tokens)
    _write(folder, HardestExamples(examples=tuple(kept), losses=tuple(losses[i] for i in kept)))
    seconds = time.perf_counter() - begin
    log.info("stage %d: %s, the hardest %d examples found in %.1f s", stage, task.name, len(kept), seconds)


def with_hardest(plan: Plan, run: StoredRun, stage: int) -> Plan:
    """The plan of a run whose stages before this one are committed, with what they keep for it.

    Raises RunError if a file is missing or broken.
    """
    if not plan.config.replay.by_loss:
        return plan
    earlier = [
        (task, run.stage_folder(k)) for k, task in enumerate(plan.tasks[: stage - 1], start=1) if task.train
    ]
    indices = from_main(lambda: [_read(folder).examples for _, folder in earlier])
    kept = {
        task.name: [task.train[i] for i in some] for (task, _), some in zip(earlier, indices, strict=True)
    }
    at, method = stage - 1, plan.methods[stage - 1]
    known = stage_examples(plan.config, plan.tasks, method, plan.encoder, at, kept)
    options = plan.config.train_options(plan.tasks[at].name)
    counted = replace(
        plan.stages[at],
        train_examples=len(known.tokens),
        replayed=known.replayed,
        steps=options.steps(known.in_epoch),
    )
    return replace(
        plan,
        examples=(*plan.examples[:at], known, *plan.examples[stage:]),
        stages=(*plan.stages[:at], counted, *plan.stages[stage:]),
    )


@by_main
def _write(folder: Path, kept: HardestExamples) -> None:
    write_json(folder / REPLAY_FILE, kept.model_dump(mode="json"))


def _read(folder: Path) -> HardestExamples:
    path = folder / REPLAY_FILE
    try:
        return HardestExamples.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise unusable(path, error, moved=folder) from error
