"""What a run's own options rule out, told before anything is loaded or written.

problems = [*family_problems(config, encoder_decoder), *quantize_problems(loaded, methods), *missing_extras(loaded)]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from nlora.config.load import LoadedConfig
from nlora.config.schema import Config
from nlora.errors import Problem, missing
from nlora.methods.base import Method


def family_problems(config: Config, encoder_decoder: bool) -> list[Problem]:
    """Why the model is of the wrong kind for these settings; empty when it fits or any kind may come.

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
    return [Problem("model", what)]


def quantize_problems(loaded: LoadedConfig, methods: Sequence[Method]) -> list[Problem]:
    """Why this run cannot have a quantized backbone; empty where it can, or wants none."""
    config = loaded.config
    if config.quantize is None:
        return []
    where = loaded.places.where(("quantize",))
    problems = []
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(Problem(where, missing("bitsandbytes")))
    if config.model.lower().endswith(".gguf"):
        what = (
            "a GGUF file cannot be quantized again; leave quantize out, or give a folder or hub id as model"
        )
        problems.append(Problem(where, what))
    if any(method.needs_float_weights for method in methods):
        what = f"{config.method.name} needs the backbone's weights as numbers; leave quantize out"
        problems.append(Problem(where, what))
    return problems


def missing_extras(loaded: LoadedConfig) -> list[Problem]:
    return [
        Problem(loaded.places.where(("train", "report_to")), missing(name))
        for name in loaded.config.train.report_to
        if importlib.util.find_spec(name) is None
        and not (name == "tensorboard" and importlib.util.find_spec("tensorboardX"))
    ]
