"""Everything that can be checked and counted before training.

>>> plan = make_plan(nlora.load_config("support.yaml"))
>>> [(stage.task, stage.train_examples) for stage in plan.stages]
[('tickets', 16), ('urgency', 16)]

Nothing is trained and no weights are loaded: the model is built on the meta device, which takes about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nlora.config.schema import Config
from nlora.data.columns import TokenizedExamples
from nlora.data.label_weights import Weights
from nlora.data.load import load_tasks
from nlora.data.task import Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, NloraError, Problem
from nlora.methods.base import Method
from nlora.methods.registry import methods_of
from nlora.models.positions import Positions, positions_of
from nlora.models.processes import size
from nlora.runs.adopted import Adopted, adopted_adapters
from nlora.runs.checks import (
    auto_weight_problems,
    early_stopping_problems,
    extension_problems,
    family_problems,
    fsdp_problems,
    label_weight_problems,
    missing_extras,
    most_soft_tokens,
    position_problems,
    quantize_problems,
    scorer_problems,
    serve_problems,
    shared_option_problems,
)
from nlora.runs.general import GeneralPlan, general_plan
from nlora.runs.replay_plan import planned_examples, replay_problems
from nlora.runs.run_yaml import folder_problem
from nlora.runs.stage_examples import StageExamples, stage_examples
from nlora.runs.stage_plan import StagePlan, stage_plans

if TYPE_CHECKING:
    from torch import nn

    from nlora.config.load import LoadedConfig
    from nlora.models.lora_adapter import ModuleShape

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked run: everything it needs except the model's weights.

    trained_parameters: those of one stage, unless it trains weights. adopted: adapters from elsewhere, by stage.
    general: what is measured beside the tasks, if anything. fused: the model's weights of experts that are one tensor
    in each layer, which no adapter updates.
    """

    config: Config
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    modules: tuple[ModuleShape, ...]
    positions: Positions
    encoder: ExampleTokenizer
    examples: tuple[StageExamples, ...]
    stages: tuple[StagePlan, ...]
    trained_parameters: int
    adopted: Mapping[int, Adopted] = field(default_factory=dict)
    general: GeneralPlan | None = None
    fused: int = 0

    @property
    def encoded(self) -> tuple[TokenizedExamples, ...]:
        """Every stage's training examples as tokens."""
        return tuple(stage.tokens for stage in self.examples)

    @property
    def weights(self) -> tuple[Weights | None, ...]:
        """Their weights in the loss; None where all count the same."""
        return tuple(stage.weights for stage in self.examples)

    @property
    def adopted_modules(self) -> list[str]:
        """The layers that adapters from elsewhere update."""
        return [name for adapter in self.adopted.values() for name in adapter.update]

    @property
    def limits(self) -> list[str]:
        """Limits below those of the configuration, because the model has fewer positions."""
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
    def soft_tokens(self) -> int:
        """The most soft tokens that a text begins with; 0 for most methods."""
        return most_soft_tokens(self.config, self.methods)

    def seconds(self, stages: Iterable[int] | None = None) -> float:
        """A rough guess of how long the run takes on this machine with its number of processes.

        stages: those that are to be learned, from 1; by default all.
        """
        chosen = range(1, len(self.stages) + 1) if stages is None else stages
        return sum(self.stages[stage - 1].seconds for stage in chosen) / size()


def make_plan(loaded: LoadedConfig) -> Plan:
    """Check a configuration against its data, model, method and output folder, and count the work.

    Raises InputErrors with every mistake found.
    """
    config = loaded.config
    problems: list[Problem] = []
    tasks = _collect(problems, lambda: load_tasks(config, base_folder=loaded.base_folder))
    methods = _collect(problems, lambda: methods_of(config, loaded.base_folder)) or []
    skeleton = _collect(problems, lambda: _skeleton(config))
    layout = encoder = None
    if skeleton is not None:
        positions = positions_of(skeleton)
        layout = _collect(problems, lambda: _layout(skeleton, config, methods))
        encoder = _collect(problems, lambda: make_encoder(config, positions))
        problems += fsdp_problems(config, methods, skeleton, layout[0] if layout else ())
        problems += position_problems(config, methods, positions)
    general = None
    if encoder is not None:
        problems += family_problems(config, encoder.encoder_decoder)
        folders = [Path(), loaded.base_folder]
        general = _collect(problems, lambda: general_plan(config, folders, encoder, positions))
    problems += [
        *missing_extras(config),
        *quantize_problems(config, methods, skeleton),
        *serve_problems(config, methods, tasks or ()),
        *(early_stopping_problems(config, methods) if methods else ()),
        *extension_problems(config, methods),
        *shared_option_problems(config, methods),
    ]
    if wrong_folder := folder_problem(Path(config.output_dir)):
        problems.append(Problem.at(("output_dir",), wrong_folder))
    if layout is not None:
        for method in methods:
            problems += [*method.check(layout[0]), *method.check_sequence(len(config.tasks))]
    adopted: dict[int, Adopted] = {}
    if skeleton is not None and methods:
        found = _collect(problems, lambda: adopted_adapters(config, loaded.base_folder, methods, skeleton))
        adopted = found or {}
    if tasks is not None:
        problems += [
            *label_weight_problems(config, tasks),
            *scorer_problems(tasks),
            *replay_problems(config, methods, tasks),
            *auto_weight_problems(config, methods, tasks),
        ]
    examples = cut = None
    if tasks is not None and methods and encoder is not None:
        examples = _collect(problems, lambda: _examples(config, tasks, methods, encoder))
        if examples is not None:  # otherwise the same mistakes would be reported twice
            cut = _collect(problems, lambda: [encoder.encode(task, task.test).cut_examples for task in tasks])
    if problems or tasks is None or layout is None or encoder is None or examples is None or cut is None:
        # A mistake that several stages share is reported once.
        raise InputErrors(dict.fromkeys(map(loaded.places.located, problems)))
    modules, parameters, layers, trained, fused = layout
    measured = 0 if general is None else general.tokens
    stages = stage_plans(config, tasks, methods, encoder, examples, cut, parameters, layers, measured)
    return Plan(
        config,
        tuple(tasks),
        tuple(methods),
        tuple(modules),
        positions,
        encoder,
        tuple(examples),
        stages,
        trained,
        adopted,
        general,
        fused,
    )


def _collect(problems: list[Problem], step: Callable[[], T]) -> T | None:
    """The step's result, or None, with its mistakes added to the list."""
    try:
        return step()
    except InputErrors as error:
        problems.extend(error.problems)
    except NloraError as error:
        problems.append(Problem("", str(error)))
    return None


def _skeleton(config: Config) -> nn.Module:
    from nlora.models.backbone import load_skeleton

    return load_skeleton(config.model, trust_remote_code=config.trust_remote_code)


def _layout(
    model: nn.Module, config: Config, methods: Sequence[Method]
) -> tuple[list[ModuleShape], int, int, int, int]:
    """The modules to update; parameters of the model and layers that have them, without embeddings; and
    `Plan.trained_parameters` and `Plan.fused`.
    """
    from nlora.models.lora_adapter import LoraAdapter, target_modules
    from nlora.models.target_modules import is_of_expert

    modules = target_modules(model, config.lora)
    LoraAdapter.attach(model, config.lora, seed=config.seed).detach()  # PEFT refuses some layers
    embeddings = {id(p) for m in model.modules() if type(m).__name__ == "Embedding" for p in m.parameters()}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    layers = sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in model.modules())
    trained = sum(m.r * (m.in_features + m.out_features) for m in modules)
    if methods and methods[0].trains == "prompts":
        prompts = methods[0].attach(model, config.lora, stage=1, seed=config.seed)
        trained = sum(tensor.numel() for tensor in prompts.live_tensors().values())
    fused = sum(p.numel() for name, p in model.named_parameters() if is_of_expert(name) and p.dim() == 3)
    return modules, parameters, layers, trained, fused


def make_encoder(config: Config, positions: Positions) -> ExampleTokenizer:
    """The run's tokenizer with its limits and its cache of token ids.

    positions: those of the model, which limit the length of prompts and answers.
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


def _examples(
    config: Config, tasks: Sequence[Task], methods: Sequence[Method], encoder: ExampleTokenizer
) -> list[StageExamples]:
    """What every stage trains on. Raises InputErrors with the mistakes of all of them."""
    problems: list[Problem] = []
    kept = planned_examples(config, tasks, encoder)
    found = [
        _collect(problems, partial(stage_examples, config, tasks, method, encoder, index, kept))
        for index, method in enumerate(methods)
    ]
    if problems:
        raise InputErrors(problems)
    return [examples for examples in found if examples is not None]
