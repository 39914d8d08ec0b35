"""Training's invariants: accumulation changes nothing, and the penalty counts once per optimizer step."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from nlora.training import arguments
from nlora.training.trainer import train

PREFIX = tuple(range(20, 34))
EXAMPLES = [
    TokenizedExample((*PREFIX, *range(40, 40 + i % 5 + 1)), (50 + i % 7, *range(60, 60 + i % 3), 1))
    for i in range(22)
]


def trained(folder: Path, model: Path, *, weight: float = 1e-3, **options: Any) -> AdapterState:
    backbone: Any = load_backbone(str(model))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=4, alpha=8, dropout=0.0), seed=1)
    method = build("nlora", {"weight": weight})
    values = {"batch_size": 8, "epochs": 2, "learning_rate": 5e-3, **options}
    train(
        backbone,
        adapter,
        EXAMPLES,
        TrainOptions(**values),
        penalty=lambda: method.penalty(adapter),
        seed=5,
        folder=folder,
    )
    return adapter.state()


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("micro", [1, 4])
def test_accumulated_micro_batches_give_the_same_update(
    tmp_path: Path, tiny_model: Callable[[str], Path], family: str, micro: int
) -> None:
    # 22 examples in batches of 8: the last step of an epoch has 6, of which 1x6 and 4+2 are accumulated. One epoch,
    # as |x| and ReLU have kinks: a value rounded to the other side changes all later steps by about 1e-5.
    whole = trained(tmp_path, tiny_model(family), epochs=1, learning_rate=1e-3)
    parts = trained(tmp_path, tiny_model(family), epochs=1, learning_rate=1e-3, micro_batch_size=micro)
    for name, factors in whole.items():
        update = factors.update()
        assert update.abs().max() > 5e-4
        torch.testing.assert_close(parts[name].update(), update, rtol=0, atol=1e-5)


def test_batches_by_length_pad_less_and_train_on_every_example(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """Half the examples are three times as long as the others: batches of one kind need no padding.

    Packed batches (llama) need none whatever is in them.
    """
    examples = [TokenizedExample((*range(20, 30 + 20 * (i % 2)),), (60 + i % 5, 1)) for i in range(32)]
    shares = {}
    for family, batches in (("t5", "by_length"), ("t5", "random"), ("llama", "random")):
        backbone: Any = load_backbone(str(tiny_model(family)))
        adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=2), seed=1)
        options = TrainOptions(batch_size=8, batches=batches)
        result = train(backbone, adapter, examples, options, penalty=lambda: None, seed=5, folder=tmp_path)
        assert (result.steps, result.examples) == (4, 32)
        shares[family, batches] = result.padding_share
    # Sorted, the 16 short ones fill two batches and the 16 long ones the other two.
    assert shares["t5", "by_length"] == 0
    assert shares["t5", "random"] > 0.05
    assert shares["llama", "random"] == 0


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    plain = trained(tmp_path, tiny_model("llama"))
    checkpointed = trained(tmp_path, tiny_model("llama"), gradient_checkpointing=True)
    for name, factors in plain.items():
        torch.testing.assert_close(checkpointed[name].B, factors.B, rtol=0, atol=1e-5)


@pytest.mark.parametrize("micro", [8, 2])
def test_the_penalty_is_called_once_per_optimizer_step(
    tmp_path: Path, tiny_model: Callable[[str], Path], micro: int
) -> None:
    backbone: Any = load_backbone(str(tiny_model("llama")))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=4), seed=1)
    calls = []

    def penalty() -> torch.Tensor:
        calls.append(1)
        return sum(f.A.sum() for f in adapter.factors().values())  # type: ignore[return-value]

    options = TrainOptions(batch_size=8, epochs=2, micro_batch_size=micro)
    result = train(backbone, adapter, EXAMPLES, options, penalty=penalty, seed=5, folder=tmp_path)
    assert len(calls) == result.steps == options.steps(len(EXAMPLES)) == 6


def test_a_stronger_penalty_leaves_a_smaller_update(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    norms = [
        sum(f.update().abs().sum().item() for f in trained(tmp_path, tiny_model("llama"), weight=w).values())
        for w in (0.0, 1e-2, 1.0)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_the_first_steps_equal_a_loop_written_by_hand(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """One optimizer step over all examples: AdamW on mean answer cross-entropy + weight·Σ|s·B·A|, clipped."""
    state = trained(tmp_path, tiny_model("llama"), batch_size=22, epochs=2, max_grad_norm=0.5)
    backbone: Any = load_backbone(str(tiny_model("llama")))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=4, alpha=8, dropout=0.0), seed=1)
    factors = adapter.factors()
    parameters = [p for f in factors.values() for p in (f.A, f.B)]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    for _ in range(2):
        total, count = torch.zeros(()), 0
        for example in EXAMPLES:
            ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
            answers = len(example.answer_ids)
            logits = adapter.model(input_ids=ids).logits[0, -answers - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, -answers:], reduction="sum")
            count += answers
        penalty = sum((f.scaling * (f.B @ f.A)).abs().sum() for f in factors.values())
        optimizer.zero_grad()
        (total / count + 1e-3 * penalty).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    for name, f in state.items():
        torch.testing.assert_close(f.A, factors[name].A.detach(), rtol=0, atol=2e-5)
        torch.testing.assert_close(f.B, factors[name].B.detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("batch_size", "every", "logged"), [(22, 10, [1, 2]), (2, 10, [1, 10, 20, 22]), (4, 4, [1, 4, 8, 12])]
)
def test_the_log_holds_the_first_and_the_last_step(
    tmp_path: Path, tiny_model: Callable[[str], Path], batch_size: int, every: int, logged: list[int]
) -> None:
    """The logged penalty covers the same steps as the loss: both average to the training's means."""
    backbone: Any = load_backbone(str(tiny_model("llama")))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=2), seed=1)
    options = TrainOptions(batch_size=batch_size, epochs=2, logging_steps=every)
    penalty = lambda: sum(f.B.abs().sum() for f in adapter.factors().values())  # noqa: E731
    result = train(backbone, adapter, EXAMPLES, options, penalty=cast(Any, penalty), seed=5, folder=tmp_path)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    lines = [line for line in state["log_history"] if "loss" in line]
    assert [line["step"] for line in lines] == logged
    assert result.steps == state["global_step"] == logged[-1]
    taken = [b - a for a, b in pairwise([0, *logged])]
    for key, mean in (("loss", result.loss), ("penalty", result.penalty)):
        total = sum(line[key] * steps for line, steps in zip(lines, taken, strict=True))
        assert total / result.steps == pytest.approx(mean, rel=1e-4)
    assert lines[0]["penalty"] == 0 < lines[-1]["penalty"]


def test_a_scheduler_s_environment_variable_does_not_split_the_batch(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trained(tmp_path, tiny_model("llama"))
    monkeypatch.setenv("WORLD_SIZE", "2")  # and no process group, no rank
    again = trained(tmp_path, tiny_model("llama"))
    assert all(torch.equal(again[name].B, f.B) for name, f in alone.items())


def test_several_visible_gpus_do_not_split_a_batch(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two visible GPUs, the Trainer's arguments say 2; emulated here without any."""

    class WithTwo(arguments.TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            assert self.n_gpu <= 1
            self._n_gpu = 2

    alone = trained(tmp_path, tiny_model("llama"))
    monkeypatch.setattr(arguments, "TrainingArguments", WithTwo)

    def wrapped(*args: Any) -> None:
        pytest.fail("wrapped in DataParallel")

    monkeypatch.setattr(torch.nn.DataParallel, "__init__", wrapped)
    again = trained(tmp_path, tiny_model("llama"))
    assert all(torch.equal(again[name].B, f.B) for name, f in alone.items())


def test_what_the_host_has_frozen_stays_frozen(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """As after `gc.freeze()` in a server that forks."""
    gc.freeze()
    trained(tmp_path, tiny_model("llama"), epochs=1)
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    trained(tmp_path, tiny_model("llama"), epochs=1)
    assert gc.get_freeze_count() == 0
