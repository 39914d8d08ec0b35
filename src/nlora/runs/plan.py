"""Everything that can be checked and counted before training: what a run will do, and all that is wrong with it.

    plan = make_plan(load_config("my-run.yaml"))       # InputErrors lists every mistake at once
    for stage in plan.stages:
        print(stage.task, stage.steps, stage.prompt_tokens)

Nothing is trained and no weights are loaded: the model is laid out on the meta device, which takes about a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nlora.config.schema import Config
from nlora.data.columns import TokenizedExamples
from nlora.data.load import load_tasks
from nlora.data.task import Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, NloraError, Problem
from nlora.methods.base import Method
from nlora.methods.registry import build
from nlora.models.positions import Positions, positions_of
from nlora.runs.checks import family_problems, missing_extras, quantize_problems
from nlora.runs.run_yaml import folder_problem
from nlora.runs.stage_plan import StagePlan, stage_plans

if TYPE_CHECKING:
    from torch import nn

    from nlora.config.load import LoadedConfig
    from nlora.models.lora_adapter import ModuleShape

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked run: all that the sequence needs, but for the model's weights."""

    config: Config
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    modules: tuple[ModuleShape, ...]
    positions: Positions
    encoder: ExampleTokenizer
    encoded: tuple[TokenizedExamples, ...]
    stages: tuple[StagePlan, ...]

    @property
    def limits(self) -> list[str]:
        """What is shorter than the configuration allows, because the model has no positions for more."""
        train, encoder, positions = self.config.train, self.encoder, self.positions
        prompts = sorted({encoder.longest_prompt(task) for task in self.tasks})
        notes = []
        if prompts[0] < train.max_source_tokens:
            tokens = f"{prompts[0]} to {prompts[-1]}" if len(prompts) > 1 else prompts[0]
            notes.append(f"prompts are cut at {tokens} tokens: the model has {positions.text} positions")
        if encoder.max_target_tokens < train.max_target_tokens:
            notes.append(
                f"answers are cut at {encoder.max_target_tokens} tokens: the model's decoder has "
                f"{positions.answer} positions"
            )
        return notes

    @property
    def trained_parameters(self) -> int:
        """Parameters of one update: r·(in + out) summed over the modules."""
        r = self.config.lora.r
        return sum(r * (m.in_features + m.out_features) for m in self.modules)

    @property
    def seconds(self) -> float:
        """Rough guess of the whole run's time on this machine."""
        return sum(stage.seconds for stage in self.stages)


def make_plan(loaded: LoadedConfig) -> Plan:
    """Checks a configuration against its data, its model and the output folder, and counts the work.

    Raises InputErrors with every mistake found.
    """
    config = loaded.config
    problems: list[Problem] = []
    tasks = _collect(
        problems, lambda: load_tasks(config, base_folder=loaded.base_folder, skip=_doubtful_tasks(loaded))
    )
    problems = [*loaded.problems, *(_placed(problem, loaded) for problem in problems)]
    methods = None if loaded.doubts("method", "name") else _collect(problems, lambda: _methods(loaded))
    modules: list[ModuleShape] | None = None
    encoder: ExampleTokenizer | None = None
    parameters = 0
    positions = Positions(None, None)
    skeleton = None if loaded.doubts("model") else _collect(problems, lambda: _skeleton(config))
    if skeleton is not None:
        positions = positions_of(skeleton)
        if not loaded.doubts("lora"):
            modules, parameters = _collect(problems, lambda: _layout(skeleton, config)) or (None, 0)
        encoder = _collect(problems, lambda: make_encoder(config, positions))
        if encoder is not None:
            wrong = family_problems(config, encoder.encoder_decoder)
            problems += [Problem(loaded.places.where((p.where,)), p.what) for p in wrong]
    problems += missing_extras(loaded)
    problems += [] if loaded.doubts("quantize") else quantize_problems(loaded, (methods or [])[:1])
    wrong_folder = None if loaded.doubts("output_dir") else folder_problem(Path(config.output_dir))
    if wrong_folder:
        problems.append(Problem(loaded.places.where(("output_dir",)), wrong_folder))
    if modules:
        # Stages may differ in their options: the same complaint is made once.
        complaints = [
            p
            for method in methods or ()
            for p in (*method.check(modules), *method.check_sequence(len(config.tasks)))
        ]
        problems += list(dict.fromkeys(complaints))
    if (
        tasks is None
        or methods is None
        or encoder is None
        or loaded.doubts("tasks")
        or loaded.doubts("train")
    ):
        raise InputErrors(problems)
    encoded = _collect(problems, lambda: _encode(tasks, methods, encoder, config.seed))
    if encoded is not None:  # else the same complaints would be made twice
        cut = _collect(problems, lambda: [encoder.encode(task, task.test).cut_examples for task in tasks])
    if problems or modules is None or encoded is None or cut is None:
        raise InputErrors(problems)
    stages = stage_plans(config, tasks, encoder, encoded, cut, parameters)
    return Plan(config, tuple(tasks), tuple(methods), tuple(modules), positions, encoder, encoded, stages)


def _placed(problem: Problem, loaded: LoadedConfig) -> Problem:
    """A problem of a task with the line, or the override, in which its key stands."""
    key = re.fullmatch(r"tasks\.(\d+)(?:\.(\w+))?", problem.where)
    if key is None:
        return problem
    path = ("tasks", int(key[1]), *(() if key[2] is None else (key[2],)))
    return Problem(loaded.places.where(path), problem.what)


def _doubtful_tasks(loaded: LoadedConfig) -> frozenset[int]:
    """The tasks that cannot be looked at because of a mistake in the configuration."""
    tasks = enumerate(loaded.config.tasks)
    no_data = loaded.doubts("data")
    return frozenset(i for i, t in tasks if loaded.doubts("tasks", i) or (no_data and t.train is None))


def _collect(problems: list[Problem], step: Callable[[], T]) -> T | None:
    """The step's result, or None with its mistakes added to the list."""
    try:
        return step()
    except InputErrors as error:
        problems.extend(error.problems)
    except NloraError as error:
        problems.append(Problem("", str(error)))
    return None


def _methods(loaded: LoadedConfig) -> list[Method]:
    """One method per stage: options may differ from task to task."""
    config = loaded.config
    problems: list[Problem] = []
    common = _method(loaded, config.method.options, ("method",), problems)
    methods = []
    for task in config.tasks:
        stage = config.stages.get(task.name)
        if common is not None and stage is not None and stage.method:
            where = ("stages", task.name, "method")
            methods.append(_method(loaded, config.method_options(task.name), where, problems))
        else:
            methods.append(common)
    if problems:
        raise InputErrors(problems)
    return [method for method in methods if method is not None]


def _method(
    loaded: LoadedConfig, options: dict[str, Any], where: tuple[str, ...], problems: list[Problem]
) -> Method | None:
    """The method with these options; each mistake is added with the file and line that it stands on."""
    prefix = ".".join(where)
    try:
        return build(loaded.config.method.name, options, where=prefix)
    except InputErrors as error:
        for problem in error.problems:
            rest = problem.where.removeprefix(prefix).strip(".")
            path = (*where, *rest.split(".")) if rest else where
            problems.append(Problem(loaded.places.where(path), problem.what))
    return None


def _skeleton(config: Config) -> nn.Module:
    from nlora.models.backbone import load_skeleton

    return load_skeleton(config.model, trust_remote_code=config.trust_remote_code)


def _layout(model: nn.Module, config: Config) -> tuple[list[ModuleShape], int]:
    """The modules to update, and the number of parameters that every token meets (embeddings left out)."""
    from nlora.models.lora_adapter import LoraAdapter, target_modules

    modules = target_modules(model, config.lora)
    LoraAdapter.attach(model, config.lora, seed=config.seed).detach()  # some layers PEFT refuses to adapt
    embeddings = {id(p) for m in model.modules() if type(m).__name__ == "Embedding" for p in m.parameters()}
    return modules, sum(p.numel() for p in model.parameters() if id(p) not in embeddings)


def make_encoder(config: Config, positions: Positions) -> ExampleTokenizer:
    """The encoder of a run: its tokenizer, its limits, and the cache of token ids.

    positions: those of the model, beyond which no prompt and no answer may go.
    """
    from nlora.data.token_cache import TokenCache
    from nlora.models.backbone import embedding_rows, load_config, load_tokenizer

    model_config = load_config(config.model, trust_remote_code=config.trust_remote_code)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    train, encoder_decoder = config.train, bool(getattr(model_config, "is_encoder_decoder", False))
    return ExampleTokenizer(
        tokenizer,
        encoder_decoder=encoder_decoder,
        max_source_tokens=train.max_source_tokens,
        max_target_tokens=min(train.max_target_tokens, positions.answer or train.max_target_tokens),
        text_positions=positions.text,
        known_tokens=embedding_rows(model_config),
        generates=config.evaluate.decode == "generate",
        truncate=train.truncate,
        cache=TokenCache(tokenizer),
    )


def _encode(
    tasks: Sequence[Task], methods: Sequence[Method], encoder: ExampleTokenizer, seed: int
) -> tuple[TokenizedExamples, ...]:
    """Every stage's training examples as tokens; finds prompts without room and labels of the same tokens."""
    problems: list[Problem] = []
    encoded = []
    for index, method in enumerate(methods):
        try:
            portions = [encoder.encode(*portion) for portion in method.examples(tasks, index, seed)]
            encoded.append(TokenizedExamples(block for portion in portions for block in portion.blocks))
        except InputErrors as error:
            problems.extend(error.problems)
    if problems:
        raise InputErrors(problems)
    return tuple(encoded)
