"""What a run's own options rule out, reported before anything is loaded or written.

>>> config = Config(tasks=["agnews"], model="google-t5/t5-base", family="causal")
>>> family_problems(config, encoder_decoder=True)[0].key
('model',)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from nlora.config.schema import Config
from nlora.data.rows import outside
from nlora.data.task import Task
from nlora.errors import InputErrors, Key, Problem, missing
from nlora.evaluation.answer import own_score
from nlora.methods.base import Method
from nlora.methods.registry import default_weight, with_weight
from nlora.runs.held_out import held_out_problem
from nlora.runs.layout import RUN_FILE
from nlora.runs.run_yaml import committed_stages, read_run_file

if TYPE_CHECKING:
    from torch import nn

    from nlora.models.positions import Positions
    from nlora.models.target_modules import ModuleShape


_FEWEST_TEXTS = 2
"""Of a task, for a router: the covariance is that within tasks."""


def family_problems(config: Config, encoder_decoder: bool) -> list[Problem]:
    """Why the model is of the wrong kind for these settings; empty if it fits or any kind may come.

    encoder_decoder: what the model is, by its own configuration.
    """
    family = "encoder-decoder" if encoder_decoder else "causal"
    if config.family in (None, family):
        return []
    kinds = {
        "encoder-decoder": "an encoder-decoder model, such as T5",
        "causal": "a causal model, such as LLaMA",
    }
    what = (
        f"{config.model} is {kinds[family]}, but these settings are meant for {kinds[str(config.family)]}; "
        "take a recipe of its kind (nlora ls recipes), or set family=null to run it all the same"
    )
    return [Problem.at(("model",), what)]


def quantize_problems(
    config: Config, methods: Sequence[Method], model: nn.Module | None = None
) -> list[Problem]:
    """Why this run cannot have a quantized backbone; empty if it can, or has none.

    model: its skeleton, which knows whether it is quantized already; None if it could not be built.
    """
    is_gguf = config.model.lower().endswith(".gguf")  # whose weights are dequantized on loading
    quantized = None if is_gguf else getattr(getattr(model, "config", None), "quantization_config", None)
    label, found = config.method.label, []
    by_bitsandbytes = quantized and quantized.get("quant_method", "bitsandbytes") == "bitsandbytes"
    needs_floats = any(method.needs_float_weights for method in methods)
    is_installed = importlib.util.find_spec("bitsandbytes") is not None
    if config.quantize is not None:
        if not is_installed:
            found.append(missing("bitsandbytes"))
        if is_gguf:
            found.append(
                "a GGUF file cannot be quantized again; leave quantize out, or give a folder or hub id as model"
            )
        if quantized:
            found.append("the model is quantized already; leave quantize out")
        elif needs_floats:
            found.append(f"{label} needs the backbone's weights as numbers; leave quantize out")
    problems = [Problem.at(("quantize",), what) for what in found]
    # Other libraries' formats may keep the adapted layers as they are.
    if by_bitsandbytes and needs_floats:
        what = (
            f"is quantized already, and {label} needs the backbone's weights as numbers; take one that is not"
        )
        problems.append(Problem.at(("model",), what))
    if by_bitsandbytes and config.quantize is None and not is_installed:
        problems.append(Problem.at(("model",), f"is quantized already; {missing('bitsandbytes')}"))
    return problems


def fsdp_problems(
    config: Config, methods: Sequence[Method], model: nn.Module, modules: Sequence[ModuleShape]
) -> list[Problem]:
    """Why this run cannot have a sharded backbone; empty if it can, or needs none.

    model: its skeleton. modules: the layers to adapt.
    """
    if not config.fsdp:
        return []
    from nlora.models.inspection import drops_layers, is_encoder_decoder, shards_by_layer
    from nlora.models.target_modules import is_of_expert

    found = []
    if any(method.needs_float_weights for method in methods):
        found.append(f"{config.method.label} needs the backbone's whole weights, or their gradients")
    if any(method.trains == "prompts" for method in methods):
        found.append(f"{config.method.label} trains prompts beside the embedding, which would be sharded")
    if config.quantize is not None or hasattr(model.config, "quantization_config"):
        found.append("quantized weights cannot be sharded; several processes can train them without it")
    if config.model.lower().endswith(".gguf"):
        found.append("a GGUF file cannot be loaded in parts; give a folder or hub id as model")
    if is_encoder_decoder(model):
        found.append("an encoder-decoder model cannot be sharded")
    elif not shards_by_layer(model):
        found.append(f"transformers does not know how to shard the layers of {type(model).__name__}")
    if drops_layers(model):
        found.append("a model that leaves out layers at random (layerdrop) cannot be sharded")
    if experts := [module.name for module in modules if is_of_expert(module.name)]:
        found.append(f"adapters of experts, such as {experts[0]}, cannot be trained with it")
    return [Problem.at(("fsdp",), f"{what}; leave fsdp out") for what in found]


def most_soft_tokens(config: Config, methods: Sequence[Method]) -> int:
    """The most soft tokens that a text of the run begins with; 0 for most methods."""
    return max((method.soft_tokens(len(config.tasks)) for method in methods), default=0)


def position_problems(config: Config, methods: Sequence[Method], positions: Positions) -> list[Problem]:
    """Why the model has too few positions for soft prompts and the text after them; empty if it has enough."""
    soft = most_soft_tokens(config, methods)
    if not soft or positions.text is None:
        return []
    # An encoder-decoder model has other positions for its answers.
    answer = config.train.max_target_tokens if positions.answer is None else 0
    room = positions.text - soft - answer
    if room >= config.train.max_source_tokens:
        return []
    parts = f"{soft} soft tokens before a text{f' and {answer} of an answer' if answer else ''}"
    what = f"{config.model} has {positions.text} positions, and {config.method.label} needs {parts}"
    if room < 1:
        return [Problem.at(("method",), f"{what}; shorten the prompts, or take another model")]
    return [Problem.at(("train", "max_source_tokens"), f"{what}; set it to {room} or less")]


def _key(config: Config, task: str, option: str) -> Key:
    """Where an option of a task's training is set: under its stage, or for all tasks."""
    stage = config.stages.get(task)
    return ("stages", task, "train", option) if stage and option in stage.train else ("train", option)


def label_weight_problems(config: Config, tasks: Sequence[Task]) -> list[Problem]:
    """Why tasks cannot have the label weights of the configuration: other labels, or free text."""
    found = []
    for task in tasks:
        weights, key = config.train_options(task.name).label_weights, _key(config, task.name, "label_weights")
        way_out = (
            "" if key[0] == "stages" else f"; weights of single tasks are set under stages.{task.name}.train"
        )
        if weights is None or not task.train:  # without examples, an adapter from elsewhere
            continue
        if task.labels is None:
            found.append(Problem.at(key, f"task {task.name} has free text as answers, not labels{way_out}"))
            continue
        for label in weights if isinstance(weights, dict) else ():
            if label not in task.labels:
                what = f"task {task.name}: {outside(label, task.labels)}{way_out}"
                found.append(Problem.at((*key, label), what))
    return found


def scorer_problems(tasks: Sequence[Task]) -> list[Problem]:
    """Why tasks cannot be scored by the user's own functions, which are tried on one example each."""
    found = []
    for i, task in enumerate(tasks):
        examples = task.train or task.test
        if task.scorer is None or not examples:
            continue
        try:
            own_score(task, examples[0], examples[0].label)
        except InputErrors as error:
            found += [Problem.at(("tasks", i, "metric"), problem.what) for problem in error.problems]
    return found


def serve_problems(config: Config, methods: Sequence[Method], tasks: Sequence[Task]) -> list[Problem]:
    """Why this run cannot have a model for each task, or guess tasks. methods, tasks: empty if not loaded."""
    if config.serve is None:
        return []
    found, label = [], config.method.label
    if any(method.trains == "weights" for method in methods):
        found.append(f"{label} keeps only its latest weights, not the model after each task")
    if any(method.trains == "prompts" for method in methods):
        found.append(f"{label} trains soft prompts and says itself which of them answer a task")
    if any(method.at_once for method in methods):
        found.append(f"{label} trains one model on all tasks at once")
    if any(method.merges and method.options != methods[0].options for method in methods):
        found.append(f"{label} with other options at a later task would change the answers to earlier ones")
    if config.serve == "routed" and config.fsdp:
        found.append("a router reads the backbone without its head, which fsdp does not allow")
    problems = [f"{what}; leave serve out" for what in found]
    if config.serve == "routed":
        if importlib.util.find_spec("sklearn") is None:
            problems.append(missing("scikit-learn"))
        texts = {task.name: len({example.sentence for example in task.train}) for task in tasks}
        problems += [
            f"a router needs {_FEWEST_TEXTS} different training texts of each task, but {name} has {count}; "
            "give it more, or set serve: pertask"
            for name, count in texts.items()
            if count < _FEWEST_TEXTS
        ]
    return [Problem.at(("serve",), what) for what in problems]


def early_stopping_problems(config: Config, methods: Sequence[Method]) -> list[Problem]:
    """Why this method cannot keep the best epoch."""
    found = []
    for task, method in zip(config.tasks, methods, strict=True):
        if config.train_options(task.name).early_stopping is None:
            continue
        if method.trains != "adapter":
            trained = "soft prompts" if method.trains == "prompts" else "the model's own weights"
            what = f"{config.method.label} trains {trained}, and only adapters can be taken back"
        elif method.at_once:
            what = f"{config.method.label} trains on all tasks at once, and epochs are compared on one task"
        else:
            continue
        found.append(Problem.at(_key(config, task.name, "early_stopping"), f"{what}; leave it out"))
    return found


def auto_weight_problems(config: Config, methods: Sequence[Method], tasks: Sequence[Task]) -> list[Problem]:
    """Why a task's weight cannot be chosen by trying. methods: empty if they could not be loaded."""
    found = []
    for source, task, method in zip(config.tasks, tasks, methods, strict=bool(methods)):
        if not method.chooses_weight or source.adapter is not None:
            continue
        stage = config.stages.get(task.name)
        own = ("stages", task.name) if stage and "weight" in stage.method else ()
        key: Key = (*own, "method", "weight")
        if default_weight(method) <= 0:
            what = f"auto tries multiples of the default weight, and {config.method.label} has none, or 0"
            found.append(Problem.at(key, f"{what}; give a number"))
        elif (refused := _refused_weight(config, method)) is not None:
            what = f"auto would also try {refused:g}, which {config.method.label} does not allow"
            found.append(Problem.at(key, f"{what}; lower auto_weight.tries, or give a number"))
        elif problem := held_out_problem(config, task):
            found.append(Problem.at(key, f"{problem}; raise the share, or give a number"))
    return found


def _refused_weight(config: Config, method: Method) -> float | None:
    """The first weight of the search that a method's own bounds rule out."""
    for weight in (0.0, *config.auto_weight.weights(default_weight(method))):
        try:
            with_weight(method, weight)
        except ValidationError:
            return weight
    return None


def shared_option_problems(config: Config, methods: Sequence[Method]) -> list[Problem]:
    """Which options of single tasks have to be the same for all of them."""
    return [
        Problem.at(
            ("stages", task, "method", option),
            f"{config.method.label} needs the same {option} at all stages; set method.{option} instead",
        )
        for option in (methods[0].shared_options if methods else ())
        if len({getattr(method.options, option) for method in methods}) > 1
        for task, stage in config.stages.items()
        if option in stage.method
    ]


def extension_problems(config: Config, methods: Sequence[Method]) -> list[Problem]:
    """Why the run in the output folder cannot go on with the number of tasks that it has now."""
    folder = Path(config.output_dir)
    if not (folder / RUN_FILE).is_file():
        return []
    old = read_run_file(folder)["config"]
    before, after = len(old.get("tasks", [])), len(config.tasks)
    if before == after or not committed_stages(folder, old):
        return []
    return [problem for method in methods for problem in method.check_extension(before, after)]


def missing_extras(config: Config) -> list[Problem]:
    """Trackers of `train.report_to`, of all tasks or of single ones, whose package is not installed."""
    return [
        Problem.at(_key(config, task.name, "report_to"), missing(name))
        for task in config.tasks
        for name in config.train_options(task.name).report_to
        if importlib.util.find_spec(name) is None
        and not (name == "tensorboard" and importlib.util.find_spec("tensorboardX"))
    ]
