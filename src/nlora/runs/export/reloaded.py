"""An export, loaded again the way somebody without nlora would load it: by transformers, PEFT or safetensors alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nlora.config.schema import Config
from nlora.models.backbone import Backbone, load_backbone, load_skeleton
from nlora.models.quantization import stored_format
from nlora.runs.checkpoint import Checkpoint
from nlora.runs.export import sparse
from nlora.runs.export.updates import StageUpdates


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A loaded export. activate: makes it the model that answers the task of that index."""

    backbone: Backbone
    activate: Callable[[int], None]


def load(
    folder: Path, form: str, adapters: Sequence[str], checkpoint: Checkpoint, updates: StageUpdates | None
) -> Reloaded:
    """An export in any form. adapters: the folders of form `adapters`. updates: of the run's stages, for that form."""
    config = checkpoint.config
    if form == "merged":
        return load_merged(folder, config)
    if form == "adapter":
        return load_adapter(folder, config)
    if form == "sparse":
        return load_sparse(folder, config)
    assert updates is not None
    return load_adapters([folder / name for name in adapters], config, updates.places)


def load_merged(folder: Path, config: Config) -> Reloaded:
    """A model folder, by AutoModel.from_pretrained. 16-bit weights are computed with in float32."""
    backbone = load_backbone(str(folder), trust_remote_code=config.trust_remote_code)
    return Reloaded(backbone, lambda index: None)


def load_adapter(folder: Path, config: Config) -> Reloaded:
    """The stock backbone and one adapter, by PeftModel.from_pretrained."""
    return load_adapters([folder], config, lambda index: [0])


def load_adapters(
    folders: Sequence[Path], config: Config, active_for: Callable[[int], Sequence[int]]
) -> Reloaded:
    """The stock backbone and several adapters. active_for: the positions of those that answer a task."""
    from peft import PeftModel

    base = bare(config)
    with warnings.catch_warnings():  # a name that PEFT uses and transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model: Any = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name=_name(0))
        for i, folder in enumerate(folders[1:], start=1):
            model.load_adapter(str(folder), adapter_name=_name(i))
    backbone = Backbone(model.get_base_model(), base.tokenizer, base.encoder_decoder, base.name)

    def activate(index: int) -> None:
        model.base_model.set_adapter([_name(i) for i in active_for(index)])

    return Reloaded(backbone, activate)


def load_sparse(folder: Path, config: Config) -> Reloaded:
    """The stock backbone with the stored entries added to its weights."""
    from safetensors.torch import load_file

    backbone = bare(config)
    tensors = load_file(folder / sparse.WEIGHTS_FILE)
    shapes = json.loads((folder / sparse.CONFIG_FILE).read_text(encoding="utf-8"))["shapes"]
    for name, shape in shapes.items():
        update = torch.zeros(shape)
        update.view(-1)[tensors[f"{name}.indices"].long()] = tensors[f"{name}.values"]
        layer: Any = backbone.model.get_submodule(name)
        stored = update if isinstance(layer, torch.nn.Linear) else update.mT  # Conv1D has (in, out)
        with torch.no_grad():
            layer.weight += stored.to(layer.weight.device)
    return Reloaded(backbone, lambda index: None)


def bare(config: Config) -> Backbone:
    """The backbone in float32, or quantized as the run has it."""
    trusted = config.trust_remote_code
    quantized = config.quantize or stored_format(load_skeleton(config.model, trust_remote_code=trusted))
    return load_backbone(
        config.model,
        dtype=config.dtype if quantized else "float32",
        quantize=config.quantize,
        trust_remote_code=trusted,
    )


def _name(position: int) -> str:
    return f"update_{position}"
