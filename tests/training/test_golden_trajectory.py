"""The released code's training, step by step: 20 steps on one task, then 20 on the next, losses and factors.

What is tested is ours (the adapter, the loss on the answer's logits, the penalty, folding); the optimizer is that of
transformers 4.28, which the released code ran with, written out below. In the second task the released code has the
first update together with the new one in a single adapter, and here it is merged into the backbone: that the
second trajectory is the same shows that folding gives what concatenating gave.

An L1 penalty has a sign for a gradient, which makes a large difference of the smallest one: the released code itself
differs by 1e-6 (first task) and 2e-3 (second task) when it runs on two threads instead of one. So the tolerances of
the total are of that size for N-LoRA's second task, and far tighter elsewhere. A processor that sums in another order
does the same (below).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden import load_model
from nlora.config.schema import LoraOptions
from nlora.methods.registry import build
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import AdapterState, LoraAdapter, LoraFactors
from nlora.models.merged_updates import MergedUpdates
from tiny import SAME_SUMS

TASKS = ("task1", "task2")
LORA = LoraOptions(r=8, alpha=32, dropout=0.0)
LEARNING_RATE, BETAS, EPSILON = 1e-3, (0.9, 0.999), 1e-8
Update = Callable[[Tensor, int, dict[str, Tensor]], Tensor]
Penalty = Callable[[], Tensor | None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads sum in another order, which the gradient of a sign makes visible."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adamw_of_transformers_4(gradient: Tensor, step: int, moments: dict[str, Tensor]) -> Tensor:
    """The step of transformers 4.28's AdamW: epsilon is added before the bias correction. step: from 1."""
    first, second = _moments(gradient, moments)
    size = LEARNING_RATE * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
    return -size * first / (second.sqrt() + EPSILON)


def adamw_of_torch(gradient: Tensor, step: int, moments: dict[str, Tensor]) -> Tensor:
    """The step of torch's AdamW, which today's Trainer uses: epsilon is added after the bias correction."""
    first, second = _moments(gradient, moments)
    denominator = second.sqrt() / math.sqrt(1 - BETAS[1] ** step) + EPSILON
    return -LEARNING_RATE / (1 - BETAS[0] ** step) * first / denominator


def _moments(gradient: Tensor, moments: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    zeros = torch.zeros_like(gradient)
    moments["m"] = moments.get("m", zeros).lerp(gradient, 1 - BETAS[0])
    moments["v"] = BETAS[1] * moments.get("v", zeros) + (1 - BETAS[1]) * gradient.square()
    return moments["m"], moments["v"]


@dataclass(frozen=True)
class Golden:
    """What the released code wrote of one run of two tasks. Factors as of run `tensors`; init is the same for all."""

    run: dict[str, Any]
    tensors: dict[str, Tensor]
    batches: dict[str, Tensor]

    def initial(self, task: str) -> AdapterState:
        return {
            module: LoraFactors(A, torch.zeros(A.shape[1], A.shape[0]), 4.0)
            for module, A in self._factor(f"{task}/init/", "A").items()
        }

    def final(self, task: str) -> AdapterState:
        As, Bs = (self._factor(f"{task}/final/", factor) for factor in "AB")
        return {module: LoraFactors(A, Bs[module], 4.0) for module, A in As.items()}

    def batch(self, task: str, step: int) -> dict[str, Tensor]:
        prefix = f"{task}/{step:02d}/"
        return {key.removeprefix(prefix): t for key, t in self.batches.items() if key.startswith(prefix)}

    def _factor(self, prefix: str, factor: str) -> dict[str, Tensor]:
        suffix = f".loranew_{factor}.default.weight"
        return {
            key.removeprefix(prefix).removesuffix(suffix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix) and key.endswith(suffix)
        }


def golden_of(shared: Path, name: str, tensors: str) -> Golden:
    folder = shared / "golden"
    run = json.loads((folder / "trajectory.json").read_text(encoding="utf-8"))["runs"][name]
    with np.load(folder / f"traj/batches_{run['arch']}.npz") as stored:
        batches = {key: torch.from_numpy(stored[key].astype(np.int64)) for key in stored.files}
    return Golden(run, load_file(folder / f"traj/{tensors}.safetensors"), batches)


def cross_entropy(adapter: LoraAdapter, batch: dict[str, Tensor]) -> Tensor:
    if "loss_mask" not in batch:
        fed = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        logits, targets = answer_logits(adapter.model, fed)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    # LLaMA as released: summed over the mask without its last column, divided by the sum of the whole mask.
    logits = adapter.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    tokens = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    return (tokens * batch["loss_mask"][:, :-1]).sum() / batch["loss_mask"].sum()


def nlora_penalty(run: dict[str, Any], adapter: LoraAdapter, earlier: Sequence[AdapterState]) -> Penalty:
    method = build("nlora", {"penalty": "factor_l1", "weight": run["lamda_1"]})
    method.begin_task(adapter, earlier)
    return lambda: method.penalty(adapter)


def olora_penalty(run: dict[str, Any], adapter: LoraAdapter, earlier: Sequence[AdapterState]) -> Penalty:
    method = build("olora", {"weight": run["lamda_1"], "norm_weight": run["lamda_2"]})
    method.begin_task(adapter, earlier)
    return lambda: method.penalty(adapter)


@dataclass(frozen=True)
class Seen:
    """One of our steps next to the released code's record of it."""

    ce: float
    total: float
    norm: float
    released: dict[str, Any]


def learn(
    adapter: LoraAdapter, golden: Golden, task: str, earlier: Sequence[AdapterState], update: Update
) -> list[Seen]:
    """The 20 steps of one task."""
    make = nlora_penalty if golden.run["method"] == "nlora" else olora_penalty
    penalty = make(golden.run, adapter, earlier)
    parameters = [p for f in adapter.factors().values() for p in (f.A, f.B)]
    moments: list[dict[str, Tensor]] = [{} for _ in parameters]
    steps = []
    for step, released in enumerate(golden.run[task]["steps"]):
        ce, added = cross_entropy(adapter, golden.batch(task, step)), penalty()
        total = ce if added is None else ce + added
        for p in parameters:
            p.grad = None
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, golden.run["optimizer"]["max_grad_norm"])
        with torch.no_grad():
            for p, state in zip(parameters, moments, strict=True):
                assert p.grad is not None
                p += update(p.grad, step + 1, state)
        steps.append(Seen(ce.item(), total.item(), norm.item(), released))
    return steps


def trajectory(
    shared: Path, golden: Golden, update: Update = adamw_of_transformers_4
) -> dict[str, tuple[list[Seen], AdapterState]]:
    """Both tasks: their steps and the factors that they end with."""
    model = load_model(shared, golden.run["arch"])
    updates: list[AdapterState] = []
    done = {}
    for task in TASKS:
        adapter = begun(model, golden, task, updates)
        steps = learn(adapter, golden, task, updates, update)
        done[task] = steps, adapter.state()
        updates.append(adapter.state())
        adapter.detach()
    return done


def begun(model: Any, golden: Golden, task: str, earlier: Sequence[AdapterState]) -> LoraAdapter:
    """The released code's fresh factors of a task, over the backbone with the earlier updates merged in."""
    start = golden.initial(task)
    MergedUpdates(model, list(start)).activate(earlier)
    adapter = LoraAdapter.attach(model, LORA, seed=0)
    adapter.load_state(start)
    adapter.model.eval()
    return adapter


Trajectory = dict[str, tuple[list[Seen], AdapterState]]
Runs = Callable[[str, str], tuple[Golden, Trajectory]]


@pytest.fixture(scope="module")
def runs(shared: Path) -> Runs:
    """runs(name, whose init factors) -> the released run and ours, each learned once."""
    done: dict[str, tuple[Golden, Trajectory]] = {}

    def of(name: str, tensors: str) -> tuple[Golden, Trajectory]:
        if name not in done:
            golden = golden_of(shared, name, tensors)
            done[name] = golden, trajectory(shared, golden)
        return done[name]

    return of


def assert_steps(steps: Sequence[Seen], *, ce: float, total: float) -> None:
    """ce, total: how far any of the 20 losses may be from the released one, absolutely."""
    assert len(steps) == 20
    for seen in steps:
        assert seen.ce == pytest.approx(seen.released["ce"], abs=ce)
        assert seen.total == pytest.approx(seen.released["total"], abs=total)


# Seen on one machine: about half of each tolerance for N-LoRA's second task, less than a third elsewhere.
SLOW = pytest.mark.slow
RUNS = [
    # run, whose init factors, ((ce, total) of task 1, of task 2)
    pytest.param("nlora_t5", "nlora_t5", ((1e-6, 2e-5), (5e-4, 4e-3)), id="nlora"),
    pytest.param("olora_t5", "olora_t5", ((2e-6, 2e-6), (5e-6, 1e-4)), id="olora"),
    pytest.param(
        "nlora_t5_lambda0", "nlora_t5", ((2e-6, 2e-6), (2e-5, 2e-5)), id="nlora without penalty", marks=SLOW
    ),
    pytest.param("olora_t5_l2", "olora_t5", ((2e-6, 1e-5), (5e-6, 2e-5)), id="olora with norms", marks=SLOW),
    pytest.param("nlora_llama", "nlora_llama", ((5e-6, 5e-6), (5e-6, 5e-6)), id="nlora on llama", marks=SLOW),
    pytest.param("olora_llama", "nlora_llama", ((5e-6, 5e-6), (5e-6, 1e-3)), id="olora on llama", marks=SLOW),
]


# The same on a processor without AVX512, for T5: about twice what was seen with AVX2. LLaMA's are those above.
IF_OTHER_SUMS = {
    "nlora_t5": ((1e-4, 2.5e-3), (5e-4, 1e-2)),
    "olora_t5": ((5e-6, 5e-6), (1e-4, 1e-3)),
    "nlora_t5_lambda0": ((5e-6, 5e-6), (5e-5, 5e-5)),
    "olora_t5_l2": ((5e-6, 1e-5), (1e-5, 3e-5)),
}


@pytest.mark.parametrize(("name", "tensors", "tolerances"), RUNS)
def test_losses_of_two_tasks(
    name: str, tensors: str, tolerances: tuple[tuple[float, float], ...], runs: Runs
) -> None:
    golden, done = runs(name, tensors)
    if not SAME_SUMS:
        tolerances = IF_OTHER_SUMS.get(name, tolerances)
    for task, (ce, total) in zip(TASKS, tolerances, strict=True):
        steps, state = done[task]
        assert_steps(steps, ce=ce, total=total)
        norm = torch.stack([p.norm() for f in state.values() for p in (f.A, f.B)]).norm().item()
        assert norm == pytest.approx(golden.run["final_norms"][task], rel=5e-4)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("nlora_t5", 1e-4 if SAME_SUMS else 4e-3, 1e-2), ("olora_t5", 2e-4, 1e-3), ("nlora_llama", 1e-6, 1e-6)],
)  # largest difference of an entry; the released code on two threads: 8e-6 and 3e-3 for nlora_t5
def test_factors_after_each_task(name: str, first: float, second: float, runs: Runs) -> None:
    golden, done = runs(name, name)
    for task, tolerance in zip(TASKS, (first, second), strict=True):
        state, wanted = done[task][1], golden.final(task)
        assert state.keys() == wanted.keys()
        for module, f in state.items():
            torch.testing.assert_close(f.A, wanted[module].A, rtol=0, atol=tolerance)
            torch.testing.assert_close(f.B, wanted[module].B, rtol=0, atol=tolerance)
    assert max(float(f.B.abs().max()) for f in golden.final("task1").values()) > 1e-3  # nothing is zero


@pytest.mark.parametrize("name", ["nlora_t5", "olora_t5", "nlora_llama"])
def test_merging_gives_what_concatenating_gave(name: str, shared: Path) -> None:
    """The second task's first step, over the released factors of the first task; we train nothing before it."""
    golden = golden_of(shared, name, name)
    released = golden.run["task2"]["steps"][0]
    first = golden.final("task1")
    adapter = begun(load_model(shared, golden.run["arch"]), golden, "task2", [first])
    one_step = replace(golden, run={**golden.run, "task2": {"steps": [released]}})
    (seen,) = learn(adapter, one_step, "task2", [first], adamw_of_transformers_4)
    assert seen.ce == pytest.approx(released["ce"], abs=1e-6)
    assert seen.norm == pytest.approx(released["grad_norm_before_clip"], rel=2e-5)
    # Without the first update, the loss would differ.
    alone = begun(load_model(shared, golden.run["arch"]), golden, "task2", [])
    assert abs(cross_entropy(alone, golden.batch("task2", 0)).item() - released["ce"]) > 1e-4


def test_todays_optimizer_gives_the_released_codes_other_run(shared: Path, runs: Runs) -> None:
    """The same with torch's AdamW, which runs use today: another trajectory, also recorded."""
    golden = golden_of(shared, "nlora_t5_adamw_torch", "nlora_t5")
    done = trajectory(shared, golden, adamw_of_torch)
    assert_steps(done["task1"][0], ce=1e-6 if SAME_SUMS else 5e-6, total=2e-5 if SAME_SUMS else 1e-3)
    assert_steps(done["task2"][0], ce=1e-3, total=5e-3)
    before = runs("nlora_t5", "nlora_t5")[0].run["task1"]["steps"]
    apart = max(abs(a.total - b["total"]) for a, b in zip(done["task1"][0], before, strict=True))
    assert 5e-3 < apart < 1e-2
