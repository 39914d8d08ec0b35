"""Writes an export in its form, into a folder that does not matter to anybody yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch.nn.functional import pad

from nlora.data.permissions import open_to_others
from nlora.models.backbone import Backbone
from nlora.models.lora_factors import CONFIG_FILE, WEIGHTS_FILE, LoraFactors, check_finite
from nlora.models.quiet_bars import quiet_bars
from nlora.models.recompress import recompress
from nlora.models.target_modules import linear_layer
from nlora.runs.atomic import write_json
from nlora.runs.export.combine import Update, dense_update
from nlora.runs.export.updates import StageUpdate, folder_names

if TYPE_CHECKING:
    from torch import nn

_LIMITS = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Keys of an adapter's configuration with which short names stand for fewer modules than the model has of them."""


@dataclass(frozen=True, slots=True)
class RankLoss:
    """What a smaller rank lost of ΔW, relative Frobenius norms from 0 to 1. worst: the module that lost the most."""

    rank: int
    overall: float
    worst_module: str
    worst: float

    def __str__(self) -> str:
        return (
            f"rank {self.rank} loses {100 * self.overall:.2g} % of the update's Frobenius norm, and of a "
            f"single module's at most {100 * self.worst:.2g} % ({self.worst_module})"
        )


def round_weights(model: nn.Module, dtype: str) -> None:
    """Round the parameters to a number format, in float32. Buffers stay: they are computed, not loaded."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype)).float()


def rounding_note(model: nn.Module, update: Mapping[str, Update], dtype: str) -> str:
    """What a number format costs an update that is merged into the weights. model: not rounded yet."""
    rounding = size = 0.0
    for name in update:
        weight = linear_layer(model, name).weight
        assert isinstance(weight, torch.Tensor)
        exact = weight.detach()
        rounding += float((exact.to(getattr(torch, dtype)).float() - exact).double().square().sum())
        size += float(dense_update(update[name]).double().square().sum())
    share = (rounding / size) ** 0.5 if size else 0.0
    return (
        f"{dtype} rounds the updated layers by {100 * share:.2g} % of the update's norm; the scores are those of the "
        "rounded weights, computed in float32"
    )


def write_merged(backbone: Backbone, folder: Path, dtype: str, end_ids: Sequence[int]) -> None:
    """The whole model with its tokenizer and generation settings, as transformers saves them.

    end_ids: where answers end. Those that the settings lack are added, or a server would write on after an answer: a
    chat template may close turns with another token than the model's own.
    """
    model: Any = backbone.model
    given = model.generation_config.eos_token_id
    known = [] if given is None else given if isinstance(given, list) else [given]
    missing = [i for i in end_ids if i not in known]
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    with quiet_bars():
        model.save_pretrained(folder)
    if (
        missing
    ):  # in the file: transformers refuses to write many published settings once a program changed them
        file = folder / "generation_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, settings | {"eos_token_id": [*known, *missing]})
    backbone.tokenizer.save_pretrained(folder)
    _copy_processor(backbone, folder)
    open_to_others(folder)


def _copy_processor(backbone: Backbone, folder: Path) -> None:
    """What servers need to load a model that also sees or hears, although it was trained with texts alone."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.hub import cached_file

    model: Any = backbone.model
    if type(model.config) not in PROCESSOR_MAPPING:
        return
    for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        found = cached_file(
            backbone.name,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def recompressed(update: Mapping[str, Update], rank: int) -> tuple[dict[str, LoraFactors], RankLoss]:
    """The closest update of at most this rank in every module."""
    found = {name: recompress(update[name], rank) for name in update}
    losses = {name: (one.lost / one.total) ** 0.5 if one.total else 0.0 for name, one in found.items()}
    total = sum(one.total for one in found.values())
    overall = (sum(one.lost for one in found.values()) / total) ** 0.5 if total else 0.0
    worst = max(losses, key=losses.__getitem__)
    return {name: one.factors for name, one in found.items()}, RankLoss(rank, overall, worst, losses[worst])


def write_adapter(
    factors: Mapping[str, LoraFactors], sources: Sequence[StageUpdate], folder: Path, base_model: str
) -> None:
    """One stock PEFT LoRA adapter, scaling 1. factors: scaling 1 (`stack`). sources: the adapters it is made of.

    All modules get the largest rank, filled up with zeros: llama.cpp's converter and vLLM know no other one for a
    single module. Raises AdapterError if a factor is not finite.
    """
    from peft import LoraConfig

    check_finite(factors, str(folder))
    configs = [json.loads((u.folder / CONFIG_FILE).read_text(encoding="utf-8")) for u in sources]
    rank = max(f.A.shape[0] for f in factors.values())
    config = LoraConfig(
        task_type=configs[0].get("task_type"),
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        fan_in_fan_out=any(c.get("fan_in_fan_out") for c in configs),
        target_modules=_targets(configs, sources, list(factors)),
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    config.target_modules = sorted(config.target_modules)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": factor.float().cpu().contiguous()
        for name, f in factors.items()
        for more in (rank - f.A.shape[0],)
        for letter, factor in (("A", pad(f.A, (0, 0, 0, more))), ("B", pad(f.B, (0, more))))
    }
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    config.save_pretrained(str(folder))


def _targets(
    configs: Sequence[Mapping[str, Any]], sources: Sequence[StageUpdate], names: list[str]
) -> list[str]:
    """The sources' own short names, if all of them adapt the same modules under the same names; else whole names.

    A merge may have modules that its source's own adapter lacks, and so do the names there.
    """
    targets = configs[0].get("target_modules")
    limited = any(c.get(key) not in (None, []) for c in configs for key in _LIMITS)
    same = not limited and all(
        c.get("target_modules") == targets and u.state.keys() == set(names)
        for c, u in zip(configs, sources, strict=True)
    )
    if not same or not isinstance(targets, list):
        return sorted(names)
    named = tuple(f".{target}" for target in targets)
    return sorted(targets) if all(f".{name}".endswith(named) for name in names) else sorted(names)


def write_adapters(updates: list[StageUpdate], folder: Path) -> list[str]:
    """A copy of each task's adapter, in a folder of the task's name. Returns the names."""
    names = folder_names(updates)
    for name, update in zip(names, updates, strict=True):
        shutil.copytree(update.folder, folder / name)
    return names
