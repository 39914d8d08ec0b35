"""Any committed stage of a run, to be asked again: the model as it was then, of a finished or an unfinished run.

    stage = read_stage(Path("runs/demo/nlora"), stage=2)      # checks; no weights yet
    served = ServedModel(stage, [task])                            # the backbone, with the updates of stages 1 and 2
    served.answer(task, index=0)                              # the answers that the run itself got then

Nothing of the run is locked or changed: committed stages stay as they are, so another process may be training later
ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nlora.config.base_folder import located
from nlora.config.load import LoadedConfig, load_config
from nlora.config.schema import Config
from nlora.errors import InputErrors, ModelError, Problem
from nlora.methods.registry import build
from nlora.methods.base import Method
from nlora.runs.folder import RunFolder
from nlora.runs.run_yaml import RUN_FILE, read_run_file
from nlora.evaluation.choices import decode_of

if TYPE_CHECKING:
    from nlora.data.task import Task
    from nlora.evaluation.evaluator import Answers
    from nlora.runs.update_history import UpdateHistory
    from nlora.models.backbone import Backbone


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stage that can be asked. stage: from 1; 0 is the backbone before any training. method: the stage's own."""

    loaded: LoadedConfig
    run: RunFolder
    stage: int
    methods: tuple[Method, ...]

    @property
    def config(self) -> Config:
        """The run's configuration, with what was asked to differ in scoring."""
        return self.loaded.config

    @property
    def method(self) -> Method:
        """The method with the options of this stage."""
        return self.methods[max(self.stage - 1, 0)]

    @property
    def name(self) -> str:
        """`stage 2 of 3, agnews`."""
        if not self.stage:
            return "the backbone before any training"
        return f"stage {self.stage} of {len(self.config.tasks)}, {self.config.tasks[self.stage - 1].name}"


def read_stage(folder: Path, stage: int | None, overrides: Sequence[str] = ()) -> Checkpoint:
    """The stage of the run in a folder. stage: from 1, 0 for before any training; None: the last committed one.

    overrides: `evaluate.*` and `data` keys that differ from the run's. Raises RunError where the folder is no run,
    InputErrors where there is no such stage (yet), or the method trained nothing at it.
    """
    read_run_file(folder)  # says best what is wrong with a folder
    moved = f"output_dir={json.dumps(str(folder))}"  # the folder may have been another one then
    loaded = load_config(str(folder / RUN_FILE), [*overrides, moved])
    config = located(loaded.config, loaded.base_folder)
    methods = tuple(
        build(config.method.name, config.method_options(task.name), base_folder=loaded.base_folder)
        for task in config.tasks
    )
    for method in methods:
        method.check_sequence(len(config.tasks))
    run = RunFolder.read(config)
    return Checkpoint(replace(loaded, config=config), run, _checked(run, stage), methods)


def _checked(run: RunFolder, stage: int | None) -> int:
    """The stage that is meant, which is there and has learned something."""
    committed, tasks = run.committed_stages(), len(run.config.tasks)
    before = "0 is the backbone before any training"
    if stage is None and not committed:
        problem = f"{run.folder} has no committed stage yet; {before}"
    elif stage is not None and not 0 <= stage <= tasks:
        problem = f"there is no stage {stage}; the run has {tasks}, counted from 1, and {before}"
    elif stage and stage not in committed:
        last = f"the last committed one is {committed[-1]}" if committed else "none is committed"
        problem = f"stage {stage} is not there yet; {last}"
    else:
        stage = committed[-1] if stage is None else stage
        if not stage or not run.stage_record(stage).is_passed_over:
            return stage
        trained = [k for k in committed if not run.stage_record(k).is_passed_over]
        hint = f"ask stage {trained[-1]}" if trained else "let the run go on first"
        problem = f"{run.config.method.label} trains nothing at stage {stage}; {hint}"
    raise InputErrors([Problem("--stage", problem)])


def merged(stage: Checkpoint, index: int) -> Backbone:
    """The stage's model as a plain one of transformers, with the updates that answer a task in its weights.

    index: as of `ServedModel.answer`. A backbone of 16 bits comes in float32: its own numbers have no room for the updates.
    Raises ModelError where its weights cannot take updates in: they are quantized, or shared by several layers.
    """
    backbone = _backbone(stage.config)
    if stage.method.trains == "adapter" and not getattr(backbone.model, "is_quantized", False):
        backbone.model.float()
    learned = _recalled(stage, backbone)
    learned.activate_for_task(stage.method, index)
    if any(learned.updates) and not learned.is_in_weights:
        raise ModelError(
            f"model {stage.config.model}: its weights are quantized or shared by layers, so that updates cannot be "
            "merged into them; load the adapters of the stages with PEFT, or ask the run itself"
        )
    return backbone


def _backbone(config: Config) -> Backbone:
    from nlora.models.backbone import load_backbone

    return load_backbone(
        config.model,
        dtype=config.dtype,
        quantize=config.quantize,
        trust_remote_code=config.trust_remote_code,
    )


def _recalled(stage: Checkpoint, backbone: Backbone) -> UpdateHistory:
    """What the stage had learned, over a backbone just loaded."""
    from nlora.runs.update_history import UpdateHistory
    from nlora.models.lora_adapter import target_modules

    modules = [module.name for module in target_modules(backbone.model, stage.config.lora)]
    learned = UpdateHistory(backbone.model, modules)
    for k in range(1, stage.stage + 1):
        learned.reload_stage(
            stage.run.stage_folder(k),
            stage.methods[k - 1],
            passed_over=stage.run.stage_record(k).is_passed_over,
            last=k == stage.stage,
        )
    return learned


class ServedModel:
    """The model of a stage, loaded. tasks: those that will be asked; it is tried out on their texts."""

    def __init__(self, stage: Checkpoint, tasks: Sequence[Task]) -> None:
        from nlora.evaluation.evaluator import Evaluator
        from nlora.models.positions import positions_of
        from nlora.runs.plan import make_encoder
        from nlora.runs.tryout import probes, try_out

        config = stage.config
        backbone = _backbone(config)
        encoder = make_encoder(config, positions_of(backbone.model))
        paths = try_out(
            backbone,
            [probes(task, encoder) for task in tasks],
            generates=any(decode_of(task, config.evaluate) == "generate" for task in tasks),
        )
        self._method = stage.method
        self._learned = _recalled(stage, backbone)
        self._evaluator = Evaluator(backbone, encoder, config.evaluate, paths)

    def answer(
        self, task: Task, index: int, on_answered: Callable[[int], None] = lambda count: None
    ) -> Answers:
        """The model's answers to `task.test`.

        index: the task's place in the run, from 0, for methods that answer each task differently; for a task
        that is none of the run's, the number of its tasks.
        """
        self._learned.activate_for_task(self._method, index)
        return self._evaluator.answer(task, on_answered)

    def is_bare(self, index: int) -> bool:
        """Whether none of what was learned answers the task at that place, but the backbone as it came."""
        updates = self._learned.updates
        return any(updates) and not any(self._method.active_for(updates, index))
