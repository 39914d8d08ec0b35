"""Random factors and adapters, and the measures of two updates by their definitions, entry by entry."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.runs.summary import Summary, write_summary

SHAPES = {"model.layers.0.q_proj": (12, 16), "model.layers.1.q_proj": (12, 16)}
TASKS = ("r8", "news", "tweets")


def random_factors(out: int, n_in: int, r: int, seed: int, scaling: float = 2.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(r, n_in, generator=generator), torch.randn(out, r, generator=generator), scaling
    )


def random_state(shapes: dict[str, tuple[int, int]], r: int, seed: int) -> AdapterState:
    return {
        name: random_factors(out, n_in, r, 1000 * seed + i)
        for i, (name, (out, n_in)) in enumerate(shapes.items())
    }


def of_matrix(matrix: Tensor) -> LoraFactors:
    """A matrix as an update of full rank, so that any support can be made."""
    return LoraFactors(matrix.float(), torch.eye(len(matrix)), 1.0)


def plain_measures(one: AdapterState, other: AdapterState, threshold: float) -> dict[str, float]:
    """What `Measurements.pair_measures` gives for a pair, from whole updates in float64."""
    pairs = [(one[name], other[name]) for name in one if name in other]
    updates = [
        (f.scaling * f.B.double() @ f.A.double(), g.scaling * g.B.double() @ g.A.double()) for f, g in pairs
    ]
    entries = sum(a.numel() for a, _ in updates)
    both = sum(int(((a.abs() > threshold) & (b.abs() > threshold)).sum()) for a, b in updates)
    unlike = sum(int(((a.abs() > threshold) & (b.abs() > threshold) & (a * b < 0)).sum()) for a, b in updates)
    chance = [float((a.abs() > threshold).double().mean() * (b.abs() > threshold).sum()) for a, b in updates]
    norms = math.sqrt(sum(float(a.square().sum()) for a, _ in updates))
    norms *= math.sqrt(sum(float(b.square().sum()) for _, b in updates))
    return {
        "collision_rate": both / entries,
        "chance_rate": sum(chance) / entries,
        "sign_conflict": unlike / both,
        "overlap_energy": sum(float((a * b).abs().sum()) for a, b in updates) / norms,
        "cosine": sum(float((a * b).sum()) for a, b in updates) / norms,
        "orthogonality": sum(float((f.A.double() @ g.A.double().T).square().sum()) for f, g in pairs),
        "update_orthogonality": math.sqrt(sum(float((a.T @ b).square().sum()) for a, b in updates)),
    }


def write_adapter(
    folder: Path,
    state: AdapterState,
    *,
    base: str = "tiny",
    tensors: dict[str, Tensor] | None = None,
    **config: object,
) -> Path:
    """A stock PEFT folder; its factors must all have scaling 2 and one rank, unless `config` says otherwise."""
    folder.mkdir(parents=True)
    r = next(iter(state.values())).A.shape[0]
    values = {
        "peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "base_model_name_or_path": base, **config
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(values))
    halves = {
        f"base_model.model.{name}.lora_{half}.weight": getattr(f, half).contiguous()
        for name, f in state.items()
        for half in "AB"
    }
    save_file({**halves, **(tensors or {})}, folder / "adapter_model.safetensors")
    return folder


def write_run(
    folder: Path, *, stages: int = 3, method: str = "inclora", shapes: dict[str, tuple[int, int]] = SHAPES
) -> list[AdapterState]:
    """A run's folder with this many finished stages; returns their adapters."""
    R = [[90.0, None, None], [70.0, 80.0, None], [75.0, 60.0, 50.0]]
    rows = [row if k < stages else [None] * 3 for k, row in enumerate(R)]
    folder.mkdir(parents=True)
    write_summary(
        folder,
        Summary(
            status="complete",
            name="small",
            method=method,
            model="tiny",
            seed=1,
            tasks=TASKS,
            R=rows,
            schema=1,
        ),
    )
    (folder / "run.yaml").write_text(yaml.safe_dump({"config": {"method": {"name": method}}, "versions": {}}))
    states = [random_state(SHAPES, 2, seed) for seed in range(stages)]
    for k, state in enumerate(states, start=1):
        write_adapter(folder / "outputs" / f"{k}-{TASKS[k - 1]}" / "adapter", state)
    return states
