"""Nested states, such as an optimizer's `state_dict`, as two files: tensors as safetensors, and the rest as JSON.

Unlike `torch.save`, nothing in these files can run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

TENSORS_FILE = "tensors.safetensors"
VALUES_FILE = "values.json"


def write_state(folder: Path, state: Any) -> None:
    """Write dictionaries, lists, tensors, numbers, texts, booleans and None, nested in any way, into a folder.

    Tuples are read back as lists. Raises TypeError for any other kind of value.
    """
    tensors: dict[str, Tensor] = {}
    values = json.dumps(_encoded(state, "", tensors))
    safetensors.torch.save_file(tensors, folder / TENSORS_FILE)
    (folder / VALUES_FILE).write_text(values, encoding="utf-8")


def read_state(folder: Path) -> Any:
    """What `write_state` wrote, with all tensors on the CPU."""
    tensors = safetensors.torch.load_file(folder / TENSORS_FILE)
    return _decoded(json.loads((folder / VALUES_FILE).read_text(encoding="utf-8")), tensors)


def _encoded(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):  # pairs, because an optimizer's keys are numbers
        return {"dict": [[key, _encoded(inner, f"{path}/{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_encoded(inner, f"{path}/{i}", tensors) for i, inner in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path.lstrip('/')}: a {type(value).__name__} cannot be saved")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(inner, tensors) for inner in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _decoded(inner, tensors) for key, inner in value["dict"]}
    return value
