"""What an export calls its base model: the name on the hub where it has one, and no path where others will read it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from nlora.models.backbone import BUILTIN_MODEL
from nlora.models.lora_factors import CONFIG_FILE
from nlora.runs.export import sparse

_HUB_NAMES = {BUILTIN_MODEL: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_KEY = "base_model_name_or_path"


def hub_name(model: str) -> str | None:
    """The base model's name on the hub; None for a folder or file.

    >>> hub_name("smollm2"), hub_name("Qwen/Qwen3-0.6B"), hub_name("models/mine.gguf")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'Qwen/Qwen3-0.6B', None)
    """
    if model in _HUB_NAMES:
        return _HUB_NAMES[model]
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model) and not model.endswith(".gguf")
    return model if is_name and not Path(model).exists() else None


def public_name(model: str) -> str:
    """Of a local path only the last part."""
    return hub_name(model) or Path(model).name


def name_base(folder: Path, model: str, *, is_public: bool) -> None:
    """Write the base model's name into the configurations of an export. is_public: others will read it."""
    base = public_name(model) if is_public else hub_name(model) or model
    for file in (*folder.rglob(CONFIG_FILE), *folder.rglob(sparse.CONFIG_FILE)):
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get(_KEY) != base:
            file.write_text(json.dumps(values | {_KEY: base}, indent=2) + "\n", encoding="utf-8")
