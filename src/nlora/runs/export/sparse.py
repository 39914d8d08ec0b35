"""An update without its small entries: as a file, and how much of it there is at each threshold.

`update.safetensors` holds two tensors for each module, `<module>.indices` (int32, into the flattened ΔW of shape
(out, in), row by row) and `<module>.values` (float32). `sparse_config.json` holds the shapes and the threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from nlora.errors import RunError
from nlora.models.lora_factors import LoraFactors
from nlora.runs.export.combine import Update, dense_update

WEIGHTS_FILE = "update.safetensors"
CONFIG_FILE = "sparse_config.json"
FACTORS = (0.01, 0.1, 0.3, 1.0, 3.0)
"""The table's thresholds, as multiples of the root mean square of all entries."""
DEFAULT_FACTOR = 0.1
_BYTES_PER_ENTRY = 8  # an int32 index and a float32 value


class AboveThreshold(Mapping[str, Update]):
    """An update with the entries whose magnitude is below a threshold set to zero."""

    def __init__(self, update: Mapping[str, Update], threshold: float) -> None:
        self._update, self.threshold = update, threshold

    def __getitem__(self, name: str) -> Tensor:
        dense = dense_update(self._update[name])
        return torch.where(dense.abs() >= self.threshold, dense, 0.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._update)

    def __len__(self) -> int:
        return len(self._update)


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """A line of the table. factor: the threshold over the RMS. is_stored: of the file. scores: percent, by task."""

    threshold: float
    factor: float
    entries_kept: int
    share_kept: float
    is_stored: bool = False
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def sparse_bytes(self) -> int:
        """Indices and values."""
        return _BYTES_PER_ENTRY * self.entries_kept


@dataclass(frozen=True, slots=True)
class Sizes:
    """Entries of ΔW over all modules, and bytes of the other ways to keep it. factors_bytes: None without low rank."""

    entries: int
    rms: float
    factors_bytes: int | None

    @property
    def dense_bytes(self) -> int:
        """The whole ΔW."""
        return 4 * self.entries


def sizes(update: Mapping[str, Update]) -> Sizes:
    """Measures an update."""
    entries, squares, factors = 0, [], 0
    is_low_rank = True
    for name in update:
        one = update[name]
        dense = dense_update(one)
        entries += dense.numel()
        squares.append(float(dense.double().square().sum()))
        if isinstance(one, LoraFactors):
            factors += 4 * (one.A.numel() + one.B.numel())
        else:
            is_low_rank = False
    rms = math.sqrt(math.fsum(squares) / entries) if entries else 0.0
    return Sizes(entries, rms, factors if is_low_rank else None)


def thresholds(given: float | None, rms: float) -> tuple[float, list[float]]:
    """The threshold of the file, and those of the table, ascending."""
    chosen = DEFAULT_FACTOR * rms if given is None else given
    return chosen, sorted({factor * rms for factor in FACTORS} | {chosen})


def count_kept(update: Mapping[str, Update], several: list[float]) -> list[int]:
    """How many entries each threshold keeps; entries that are zero are never kept."""
    counts = [0] * len(several)
    for name in update:
        size = dense_update(update[name]).abs()
        for i, threshold in enumerate(several):
            counts[i] += int(((size >= threshold) & (size > 0)).sum())
    return counts


def write_sparse(update: AboveThreshold, folder: Path, base_model: str) -> None:
    """Writes both files. Raises RunError for a layer with too many entries for int32."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name in update:
        dense = update[name]
        if dense.numel() > torch.iinfo(torch.int32).max:
            raise RunError(f"{name} has {dense.numel()} entries, too many for --as sparse; use --as adapter")
        flat = dense.reshape(-1)
        indices = flat.nonzero()[:, 0]
        tensors[f"{name}.indices"] = indices.to(torch.int32)
        tensors[f"{name}.values"] = flat[indices].contiguous()
        shapes[name] = list(dense.shape)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    config = {
        "format": "nlora-sparse-update",
        "version": 1,
        "base_model_name_or_path": base_model,
        "threshold": update.threshold,
        "shapes": shapes,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
