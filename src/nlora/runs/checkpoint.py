"""The model of a run as it was after any committed stage. The run may be finished or not.

Nothing in the run's folder is locked or changed. Committed stages never change, so another process may be training
later ones at the same time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nlora.config.base_folder import located
from nlora.config.load import LoadedConfig, load_config
from nlora.config.overrides import Overrides, as_overrides
from nlora.config.schema import Config, EvaluateOptions
from nlora.errors import InputErrors, MissingExtraError, ModelError, Problem, missing
from nlora.evaluation.choices import decode_of
from nlora.methods.base import Method
from nlora.methods.registry import methods_of
from nlora.runs.folder import RunFolder
from nlora.runs.layout import RUN_FILE
from nlora.runs.run_yaml import read_run_file

if TYPE_CHECKING:
    from nlora.data.task import Task
    from nlora.models.backbone import Backbone
    from nlora.runs.served_model import ServedModel
    from nlora.runs.task_router import TaskRouter
    from nlora.runs.update_history import UpdateHistory


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed stage of a run. stage: from 1; 0 is the backbone before any training."""

    loaded: LoadedConfig
    run: RunFolder
    stage: int
    methods: tuple[Method, ...]

    @property
    def config(self) -> Config:
        """The run's configuration, with any overrides for scoring."""
        return self.loaded.config

    @property
    def method(self) -> Method:
        """The method, with this stage's options."""
        return self.methods[max(self.stage - 1, 0)]

    @property
    def name(self) -> str:
        """`stage 2 of 3, agnews`."""
        if not self.stage:
            return "the backbone before any training"
        return f"stage {self.stage} of {len(self.config.tasks)}, {self.config.tasks[self.stage - 1].name}"


def read_stage(
    folder: Path,
    stage: int | None,
    overrides: Overrides = (),
    *,
    counting: Collection[str] = EvaluateOptions.model_fields,
    option: str = "--stage",
) -> Checkpoint:
    """A stage of the run in a folder; no weights are loaded yet.

    stage: from 1; 0 is the backbone before any training; None is the last committed stage.
    overrides: `evaluate.*` and `data` keys that differ from the run's. counting: the keys of `evaluate` that change
    what is asked for; others are refused. option: what asked for the stage, for messages.

    Raises RunError if the folder is no run, InputErrors if there is no such stage (yet) or the method trained nothing
    at it, and for overrides that are wrong or change nothing.
    """
    if isinstance(stage, bool) or not isinstance(stage, Integral | None):
        raise InputErrors([Problem(option, f"must be the number of a stage, not {stage!r}")])
    read_run_file(folder)  # has the clearest message for a folder that is no run
    _refuse_ignored(overrides, counting)
    loaded = load_config(folder / RUN_FILE, overrides)
    # The folder may have been moved since.
    here = loaded.config.model_copy(update={"output_dir": str(folder)})
    config = located(here, loaded.base_folder)
    methods = tuple(methods_of(config, loaded.base_folder))
    for method in methods:
        method.check_sequence(len(config.tasks))
    run = RunFolder.read(config)
    return Checkpoint(replace(loaded, config=config), run, _checked(run, stage, option), methods)


def _refuse_ignored(overrides: Overrides, counting: Collection[str]) -> None:
    """Raises InputErrors for keys of `evaluate` that would change nothing. Other mistakes are left to `load_config`."""
    what = f"changes nothing here; the keys of evaluate that do are {', '.join(counting)}"
    known = {("evaluate", key) for key in EvaluateOptions.model_fields if key not in counting}
    if found := [one.place.problem(what) for one in as_overrides(overrides, []) if one.path[:2] in known]:
        raise InputErrors(found)


def _checked(run: RunFolder, stage: int | None, option: str) -> int:
    """The number of the stage, which exists and has trained something."""
    run.refuse_gap()
    committed, tasks = run.committed_stages(), len(run.config.tasks)
    before = "0 is the backbone before any training"
    if stage is None and not committed:
        problem = f"{run.folder} has no committed stage yet; {before}"
    elif stage is not None and not 0 <= stage <= tasks:
        problem = f"there is no stage {stage}; the run has {tasks}, counted from 1, and {before}"
    elif stage and stage not in committed:
        last = f"the last committed one is {committed[-1]}" if committed else "none is committed"
        problem = f"stage {stage} does not exist yet; {last}"
    else:
        stage = committed[-1] if stage is None else stage
        if not stage or not run.stage_record(stage).is_skipped:
            return stage
        trained = [k for k in committed if not run.stage_record(k).is_skipped]
        hint = f"use stage {trained[-1]}" if trained else "let the run continue first"
        problem = f"{run.config.method.label} trains nothing at stage {stage}; {hint}"
    raise InputErrors([Problem(option, problem)])


_MERGED: WeakKeyDictionary[Any, frozenset[Path]] = WeakKeyDictionary()


def merged_adapters(model: Any) -> frozenset[Path]:
    """The folders of the adapters that `merged` has merged into a model that it returned."""
    return _MERGED.get(model, frozenset())


def merged(stage: Checkpoint, index: int) -> Backbone:
    """The stage's model as a plain transformers model, with the updates that answer a task merged into its weights.

    index: as for `ServedModel.answer`. A 16-bit backbone is converted to float32, because 16 bits would round most of
    an update away. Raises ModelError if the weights cannot hold an update: they are quantized or shared by several
    layers; and for soft prompts, which are no part of the weights.
    """
    if stage.method.trains == "prompts":
        raise ModelError(
            f"{stage.config.method.label} trains soft prompts, which a plain model does not put before its texts; "
            "use nlora predict, or Run.predict"
        )
    backbone = _backbone(stage.config)
    if stage.method.trains == "adapter" and not getattr(backbone.model, "is_quantized", False):
        backbone.model.float()
    history = _history(stage, backbone)
    history.activate_for_task(stage.method, index)
    if any(history.updates) and not history.is_merged:
        raise ModelError(
            f"model {stage.config.model}: its weights are quantized or shared by several layers, so updates cannot be "
            "merged into them; load the adapters of the stages with PEFT, or use the run itself"
        )
    stages = range(1, stage.stage + 1)
    if stage.method.updates == "per_task":
        stages = stages[index : index + 1]
    _MERGED[backbone.model] = frozenset(stage.run.adapter_folder(k).resolve() for k in stages)
    return backbone


def _backbone(config: Config) -> Backbone:
    from nlora.models.backbone import load_backbone

    return load_backbone(
        config.model,
        dtype=config.dtype,
        quantize=config.quantize,
        trust_remote_code=config.trust_remote_code,
    )


def _history(stage: Checkpoint, backbone: Backbone) -> UpdateHistory:
    """The updates up to the stage, over a freshly loaded backbone."""
    from nlora.models.lora_adapter import target_modules
    from nlora.models.lora_factors import load_factors
    from nlora.runs.update_history import UpdateHistory

    modules = [module.name for module in target_modules(backbone.model, stage.config.lora)]
    records = {k: stage.run.stage_record(k) for k in range(1, stage.stage + 1)}
    adopted = [
        load_factors(stage.run.adapter_folder(k)) for k, record in records.items() if record.is_adopted
    ]
    history = UpdateHistory(backbone.model, modules, others=[name for update in adopted for name in update])
    for k, record in records.items():
        if record.is_skipped:
            history.skip()
        else:
            folder, is_last = stage.run.stage_folder(k), k == stage.stage
            method = stage.methods[k - 1]
            history.reload_stage(folder, method, is_last=is_last, is_adopted=record.is_adopted)
    return history


class StageModel:
    """The weights of a stage, loaded once; `serve` makes them answer tasks.

    Raises MissingExtraError if the run guesses tasks and scikit-learn is not installed.
    """

    def __init__(self, stage: Checkpoint) -> None:
        if stage.config.serve == "routed" and importlib.util.find_spec("sklearn") is None:
            raise MissingExtraError(missing("scikit-learn"))
        self._backbone = _backbone(stage.config)
        self._history: UpdateHistory | None = None
        self._router: TaskRouter | None = None

    def serve(self, stage: Checkpoint, tasks: Sequence[Task]) -> ServedModel:
        """The model, ready to answer these tasks: how to run it is found out on their own texts.

        stage: the loaded one; its evaluate options may differ from those of an earlier call.
        """
        from nlora.evaluation.evaluator import Evaluator
        from nlora.models.positions import positions_of
        from nlora.runs.checks import most_soft_tokens
        from nlora.runs.plan import make_encoder
        from nlora.runs.preflight import preflight, probes
        from nlora.runs.served_model import ServedModel
        from nlora.runs.task_router import TaskRouter

        options = stage.config.evaluate
        encoder = make_encoder(stage.config, positions_of(self._backbone.model))
        if self._history is not None:
            self._history.deactivate()
        paths = preflight(
            self._backbone,
            [probes(task, encoder) for task in tasks],
            method=stage.method,
            generates=any(decode_of(task, options) == "generate" for task in tasks),
            longest=most_soft_tokens(stage.config, [stage.method]) + encoder.longest_text(tasks),
        )
        self._history = self._history or _history(stage, self._backbone)
        evaluator = Evaluator(self._backbone, encoder, options, paths)
        if stage.config.serve == "routed" and self._router is None:
            self._router = TaskRouter(self._backbone, encoder, self._history, stage.config)
            for k in range(1, stage.stage + 1):
                self._router.reload(stage.run.stage_folder(k), stage.config.tasks[k - 1].name)
        return ServedModel(stage.method, self._history, evaluator, self._router)
