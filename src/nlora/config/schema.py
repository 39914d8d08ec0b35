"""One run as typed, frozen values: the keys of a configuration and what they mean.

>>> config = Config(tasks=["agnews", "yahoo"], train={"epochs": 2}, stages={"yahoo": {"train": {"epochs": 3}}})
>>> config.train_options("agnews").epochs, config.train_options("yahoo").epochs
(2.0, 3.0)

A field's description is its help text and its documentation. `nlora.config.load` reads and checks configurations.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nlora.config.auto_weight_options import AutoWeightOptions
from nlora.config.frozen import Frozen
from nlora.config.general_options import GeneralOptions
from nlora.config.outside_code import is_python_file
from nlora.config.paths import HomePath
from nlora.config.replay_options import ReplayOptions
from nlora.config.task_source import TaskSource
from nlora.config.train_options import TrainOptions
from nlora.errors import printable

BUILTIN = "builtin"
"""The value of `data` that means the built-in tasks."""


ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the head."""


class LoraOptions(Frozen):
    """The low-rank update that each task trains: ΔW = alpha/r · B·A."""

    r: int = Field(8, ge=1, description="Rank of each update.")
    alpha: float = Field(32, gt=0, description="The update's scaling is alpha / r.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the update's input during training.")
    targets: tuple[str, ...] | None = Field(
        None,
        description="Names of the modules to update, as PEFT's target_modules; all-linear: every linear layer but the "
        "head, and no experts that are one tensor in each layer (Mixtral and its like), nor layers that PEFT takes for "
        "such experts by their names (DeepSeek's dense ones); null: the query and value projections.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_word(cls, targets: Any) -> Any:
        return [targets] if targets == ALL_LINEAR else targets


class EvaluateOptions(Frozen):
    """How the model is scored on the tasks."""

    decode: Literal["labels", "generate"] = Field(
        "labels",
        description="labels: the most likely of the task's labels; generate: greedy decoding, exact match after the "
        "released normalization. Answers to free-text tasks are always generated.",
    )
    batch_size: int = Field(64, ge=1, description="Prompts per forward pass.")
    max_samples: int | None = Field(
        None, ge=1, description="Score at most this many examples per task, a seeded sample; null: all."
    )
    zero_shot: bool = Field(False, description="Also score every task before any training (R[0]).")
    unseen: bool = Field(
        False,
        description="Also score, after each stage, the tasks not yet learned (forward transfer needs it).",
    )
    split: Literal["test", "validation"] = Field(
        "test",
        description="validation: score on examples held out from train, never on test. Use this for tuning.",
    )
    validation_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the training examples that is held out by split: validation, by train.early_stopping, "
        "and by method.weight: auto.",
    )
    general: GeneralOptions | None = Field(
        None,
        description="Also measure, before the first and after every stage, what the model knew before; {} takes the "
        "defaults of the keys below; null: no.",
    )


class RouterOptions(Frozen):
    """What `serve: routed` guesses a text's task from."""

    reads: Literal["prompt", "text"] = Field(
        "prompt",
        description="prompt: what the model reads, the task's instruction and options included, but not the lines that "
        "name the task; text: the example's own text alone, for texts that come without an instruction.",
    )
    examples: int = Field(
        100, ge=2, description="Training examples of each task that the router learns from, a seeded sample."
    )


class MethodChoice(BaseModel):
    """Which method, and its own options; `nlora ls` names both."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(
        "nlora", description="Name of the method, or the path of a Python file that defines one."
    )

    @property
    def label(self) -> str:
        """What tables call the method: its name, or its file's name without `.py`."""
        return PurePath(self.name).stem if is_python_file(self.name) else self.name

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options; `load_config` checks them."""
        return dict(self.__pydantic_extra__ or {})


WHOLE_RUN = frozenset({"max_source_tokens", "max_target_tokens", "truncate"})
"""Keys of `train` that shape the prompts of every task, also when the tasks are scored later."""


class StageOptions(BaseModel):
    """What differs for one task: partial `train` and `method` options, checked once merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: dict[str, Any] = Field(default_factory=dict, description="Keys of `train` for this task.")
    method: dict[str, Any] = Field(default_factory=dict, description="Keys of `method` for this task.")

    @model_validator(mode="after")
    def _only_what_a_stage_can_change(self) -> StageOptions:
        if fixed := sorted(WHOLE_RUN & self.train.keys()):
            raise ValueError(f"train.{fixed[0]} holds for the whole run; set it under train")
        if "name" in self.method:
            raise ValueError("one method runs the whole sequence; a stage can change only its options")
        return self


RELEASED_CHOICES: dict[str, dict[str, str]] = {
    "train": {"truncate": "released", "batches": "random"},
    "evaluate": {"decode": "generate"},
}
"""Defaults under `protocol: released`."""


def expand_after(values: dict[str, Any]) -> int:
    """Move the adapters of `after` to the front of `tasks`, named after their folders; returns how many they are.

    Values of another kind stay where they are, to be reported there.
    """
    adapters, tasks = values.get("after"), values.get("tasks")
    if not isinstance(adapters, list | tuple) or not isinstance(tasks, list):
        return 0
    if not all(isinstance(adapter, str) for adapter in adapters):
        return 0
    given = (task.get("name") if isinstance(task, dict) else task for task in tasks)
    names = {name for name in given if isinstance(name, str)}
    entries: list[Any] = []
    for adapter in adapters:
        parts = [
            part for part in adapter.replace("\\", "/").split("/") if part not in ("", ".", "..", "adapter")
        ]
        stem = name = parts[-1] if parts else "adapter"
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.add(name)
        entries.append({"name": name, "adapter": adapter})
    values["tasks"], values["after"] = [*entries, *tasks], []
    return len(entries)


class Config(Frozen):
    """Everything that decides the outcome of a run.

    `nlora.load_config` makes one and reports mistakes in plain words; the class itself raises pydantic's errors.

    >>> config = nlora.Config(name="support", tasks=["agnews", "yahoo"], method="olora")
    >>> config.output_dir, config.method.name, config.lora.r
    ('runs/support', 'olora', 8)
    """

    name: str = Field("run", min_length=1, description="Name of the run in tables.")
    protocol: Literal["released", "repaired"] = Field(
        "repaired",
        description="released: the choices of the released code (train.truncate: released, train.batches: random, "
        "evaluate.decode: generate, test examples labeled '-' kept and counted as wrong, the score pooled over "
        "examples shown next to the mean over tasks); repaired: the defaults of this table. A key that is set wins.",
    )
    model: str = Field("smollm2", description="Hub id, folder, GGUF file, or smollm2 (the built-in default).")
    family: Literal["encoder-decoder", "causal"] | None = Field(
        None, description="Kind of model the settings are meant for; another kind is refused; null: any."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Number format of the backbone; the updates themselves are always float32. bfloat16 takes half the "
        "memory, and less time if nlora check reports that its matrix products are faster.",
    )
    quantize: Literal["4bit", "8bit"] | None = Field(
        None,
        description="Quantize the frozen backbone while loading it, with bitsandbytes (pip install bitsandbytes): "
        "4bit, QLoRA's NF4; 8bit, LLM.int8(); null: not at all.",
    )
    fsdp: bool = Field(
        False,
        description="Shard the frozen backbone over the run's processes with torch's FSDP2: each holds a part of every "
        "layer. For a model that one GPU cannot hold; needs several processes.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that is part of the model.")
    data: str | None = Field(
        None, description="Folder in the released layout, or builtin (the built-in tasks), or left out."
    )
    tasks: tuple[TaskSource, ...] = Field(min_length=1, description="The tasks, in learning order.")
    method: MethodChoice = MethodChoice(name="nlora")
    auto_weight: AutoWeightOptions = AutoWeightOptions()
    replay: ReplayOptions = ReplayOptions()
    lora: LoraOptions = LoraOptions()
    train: TrainOptions = TrainOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    serve: Literal["pertask", "routed"] | None = Field(
        None,
        description="Which model answers a task. pertask: the model as it was right after learning that task, so the "
        "task of each text must be known; routed: the same, but a router guesses the task; null: as the method says, "
        "mostly the latest model.",
    )
    router: RouterOptions = RouterOptions()
    stages: dict[str, StageOptions] = Field(
        default_factory=dict, description="Settings that differ for single tasks, by task name."
    )
    after: tuple[str, ...] = Field(
        (),
        description="LoRA adapters that exist already, as tasks learned before the first: folders in PEFT's format or "
        "hub ids. Short for entries of tasks with only a name and an adapter.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Determines every random choice of the run.")
    output_dir: HomePath = Field(description="Folder that the run writes to.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """`tasks: [agnews]` and `method: inclora` are short for mappings with just a name."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if isinstance(values.get("tasks"), list | tuple):
            values["tasks"] = [{"name": t} if isinstance(t, str) else t for t in values["tasks"]]
        expand_after(values)
        if isinstance(values.get("method"), str):
            values["method"] = {"name": values["method"]}
        if "output_dir" not in values and isinstance(values.get("name", "run"), str):
            values["output_dir"] = f"runs/{values.get('name', 'run')}"
        return values

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, values: Any) -> Any:
        """`protocol: released` fills in keys that are not set, so that run.yaml has the choices themselves."""
        if not isinstance(values, dict) or values.get("protocol") != "released":
            return values
        values = dict(values)
        for section, choices in RELEASED_CHOICES.items():
            said = values.get(section, {})
            if isinstance(said, BaseModel):
                said = said.model_dump(exclude_unset=True)
            if isinstance(said, dict):  # anything else is a mistake, which is reported as such
                values[section] = {**choices, **said}
        return values

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if name != printable(name):
            raise ValueError("holds a line end or a character that steers a terminal; leave it out")
        return name

    @property
    def method_label(self) -> str:
        """What tables call the run's method: `inclora`, `inclora + replay`, or `inclora, routed`."""
        learner = f"{self.method.label} + replay" if self.replay.is_on else self.method.label
        return learner if self.serve is None else f"{learner}, {self.serve}"

    def train_options(self, task_name: str) -> TrainOptions:
        """Training options of one task: `train`, overridden by the task's entry in `stages`."""
        stage = self.stages.get(task_name)
        if stage is None or not stage.train:
            return self.train
        return TrainOptions.model_validate({**self.train.model_dump(), **stage.train})

    def method_options(self, task_name: str) -> dict[str, Any]:
        """The method's own options for one task."""
        stage = self.stages.get(task_name)
        return {**self.method.options, **(stage.method if stage else {})}
