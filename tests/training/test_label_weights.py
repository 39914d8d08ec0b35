"""`train.label_weights`: the weighted mean of an optimizer step, against a loop and other invariants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from helpers import COLORS, learn, write_config, write_task
from nlora.config.load import load_config
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.columns import TokenizedExamples
from nlora.data.task import TokenizedExample
from nlora.errors import InputErrors
from nlora.methods.registry import build
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.runs.plan import make_plan
from nlora.training.trainer import train
from tiny import spread

TinyModel = Callable[[str], Path]
# Answers of one to three tokens, so that the weights of tokens and of examples differ.
EXAMPLES = [
    TokenizedExample([*range(20, 30 + i % 4)], [50 + i % 7, *range(60, 60 + i % 3), 1]) for i in range(10)
]
OTHERS = [TokenizedExample([20, *range(70, 76), 80 + i], [50 + i, 1]) for i in range(5)]
MIXED = TokenizedExamples(TokenizedExamples.of(some).parts[0] for some in (EXAMPLES[::2], OTHERS))
"""Of two tasks."""
WEIGHTS = np.asarray([1 + i % 3 * 1.5 for i in range(10)], dtype=np.float32)


class _Gradients(TrainerCallback):
    """The gradient of every optimizer step, as one vector."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(gradient(kwargs["model"].parameters()))


def gradient(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def attached(model: Path) -> tuple[Any, LoraAdapter]:
    backbone: Any = load_backbone(str(model))
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(r=4, alpha=8, dropout=0.0), seed=1)
    spread(adapter)
    return backbone, adapter


def gradients(
    folder: Path,
    model: Path,
    weights: Any,
    *,
    method: str = "inclora",
    examples: Sequence[TokenizedExample] = EXAMPLES,
    **options: Any,
) -> list[torch.Tensor]:
    """Of three steps: two with four examples and one with two. The factors all but stay as they are."""
    backbone, adapter = attached(model)
    learner = build(method, {"weight": 0.01} if method == "nlora" else {})
    learner.begin_task(adapter, [adapter.state()])
    seen = _Gradients()
    values = {"batch_size": 4, "epochs": 1, "learning_rate": 1e-12, "max_grad_norm": 0, **options}
    train(
        backbone,
        adapter,
        examples,
        TrainOptions(**values),
        penalty=lambda: learner.penalty(adapter),
        extra_loss=learner.extra_loss,
        seed=5,
        folder=folder,
        weights=weights,
        callbacks=[seen],
    )
    return seen.steps


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        # Not entry by entry: ReLU has kinks, and a value rounded to the other side changes some entries by 1e-4.
        assert (a - b).norm() < 1e-3 * a.norm()


@pytest.mark.parametrize(("family", "examples"), [("llama", EXAMPLES), ("llama", MIXED), ("t5", EXAMPLES)])
def test_a_gradient_equals_that_of_a_loop_written_by_hand(
    tmp_path: Path, tiny_model: TinyModel, family: str, examples: Sequence[TokenizedExample]
) -> None:
    """Of Σ w·cross-entropy / Σ w over the answer tokens of all examples, one after another and token by token."""
    found = gradients(tmp_path, tiny_model(family), WEIGHTS, examples=examples, batch_size=10)
    _, adapter = attached(tiny_model(family))
    adapter.model.train()
    total, weight_sum = torch.zeros(()), 0.0
    for example, weight in zip(examples, WEIGHTS.tolist(), strict=True):
        prompt, answer = torch.tensor([example.prompt_ids]), torch.tensor([example.answer_ids])
        if family == "t5":
            logits = adapter.model(input_ids=prompt, labels=answer).logits[0]
        else:
            ids = torch.cat([prompt, answer], dim=1)
            logits = adapter.model(input_ids=ids).logits[0, prompt.shape[1] - 1 : -1]
        for position, token in enumerate(example.answer_ids):
            total = total - weight * logits[position].log_softmax(-1)[token]
            weight_sum += weight
    (total / weight_sum).backward()  # type: ignore[no-untyped-call]
    assert_same([gradient(adapter.model.parameters())], found)


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_change_nothing(tmp_path: Path, tiny_model: TinyModel, family: str, micro: int) -> None:
    """llama's batches are packed, t5's are padded."""
    whole = gradients(tmp_path, tiny_model(family), WEIGHTS)
    assert_same(whole, gradients(tmp_path, tiny_model(family), WEIGHTS, micro_batch_size=micro))
    unweighted = gradients(tmp_path, tiny_model(family), None)
    assert all((a - b).norm() > 0.05 * a.norm() for a, b in zip(whole, unweighted, strict=True))


@pytest.mark.parametrize("method", ["nlora", "lwf"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_equal_weights_are_no_weights(
    tmp_path: Path, tiny_model: TinyModel, method: str, scale: float
) -> None:
    """Whatever their size: neither penalty nor distillation gains or loses by it."""
    equal = np.full(10, scale, dtype=np.float32)
    plain = gradients(tmp_path, tiny_model("llama"), None, method=method)
    assert_same(plain, gradients(tmp_path, tiny_model("llama"), equal, method=method))
    alone = gradients(tmp_path, tiny_model("llama"), None)
    assert (plain[0] - alone[0]).norm() > 3e-3 * alone[0].norm()  # the method does add to the loss


def test_balanced_weights_make_all_labels_the_same_in_sum(tmp_path: Path, tiny_model: TinyModel) -> None:
    """Of each task by its own labels, in a stage that replays earlier ones too."""
    config = write_config(tmp_path, tiny_model("llama"), method={"name": "replay", "memory": 5})
    plan = make_plan(load_config(config, ["train.label_weights=balanced"]))
    first, second = plan.weights
    assert first is not None
    labels = [example.label for example in plan.tasks[0].train]
    assert Counter(labels) == {"red": 6, "green": 5, "blue": 5}
    sums = [sum(w for w, label in zip(first, labels, strict=True) if label == color) for color in COLORS]
    assert sums == pytest.approx([16 / 3] * 3)
    assert second is not None
    assert len(second) == len(plan.encoded[1]) == 16 + 5
    assert second[:16].sum() == pytest.approx(16)
    assert second[16:].sum() == pytest.approx(5)
    assert make_plan(load_config(config)).weights == (None, None)


def test_weights_of_one_task_leave_the_other_stage_as_it_was(tmp_path: Path, tiny_model: TinyModel) -> None:
    plain = write_config(tmp_path, tiny_model("llama"))
    weights = {"train": {"label_weights": {"fox": 4, "dog": 0.5}}}
    learn(plain)
    learn(plain, f"stages.animals={json.dumps(weights)}", f"output_dir={tmp_path / 'other'}")
    files = "outputs/{}/adapter/adapter_model.safetensors"
    one, other = (
        [(tmp_path / run / files.format(stage)).read_bytes() for stage in ("1-colors", "2-animals")]
        for run in ("run", "other")
    )
    assert one[0] == other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.label_weights={rde: 2}", "rde: task colors: label 'rde' is not one of the task's labels"),
        ("train.label_weights.red=2", "weights of single tasks are set under stages.animals.train"),
        ("stages.animals.train.label_weights.fix=2", "fox, dog, ox; did you mean 'fox'?"),
        ("train.label_weights=balance", "must be balanced, a mapping of labels to weights, or null"),
        ("train.label_weights={red: 0}", "the weight of 'red' must be a number > 0 (1e-30 to 1e30), not 0"),
        (
            "train.label_weights={red: 1.0e39}",
            "the weight of 'red' must be a number > 0 (1e-30 to 1e30), not 1e+39",
        ),
        ("train.label_weights={1: 2}", "1: task colors: label '1' is not one of the task's labels"),
        ("train.label_weights={yes: 2}", "the key yes must be text; put it in quotes: 'yes'"),
        ("train.class_weight=balanced", "unknown key; use train.label_weights: balanced, or {label: weight}"),
    ],
)
def test_weights_that_cannot_be_are_one_line(
    tmp_path: Path, tiny_model: TinyModel, override: str, said: str
) -> None:
    with pytest.raises(InputErrors) as error:
        make_plan(load_config(write_config(tmp_path, tiny_model("llama")), [override]))
    assert any(said in str(problem) for problem in error.value.problems)
    assert all(len(str(problem).splitlines()) == 1 for problem in error.value.problems)


@pytest.mark.parametrize("weights", [{0: 2, 1: 0.5}, {"0": 2, "1": 0.5}])
def test_labels_that_are_numbers_need_no_quotes(
    tmp_path: Path, tiny_model: TinyModel, weights: dict[Any, float]
) -> None:
    task = write_task(tmp_path, "numbers", ["0", "1"])
    file = write_config(tmp_path, tiny_model("llama"), tasks=[task], train={"label_weights": weights})
    override = "train={label_weights: " + repr(weights) + "}"
    for config in (load_config(file), load_config(file, [override])):
        assert config.config.train.label_weights == {"0": 2, "1": 0.5}
    (given,) = make_plan(config).weights
    assert given is not None
    assert list(given[:4]) == [2, 0.5, 2, 0.5]


def test_free_text_has_no_label_weights(tmp_path: Path, tiny_model: TinyModel) -> None:
    task = write_task(tmp_path, "free", COLORS)
    del task["labels"]
    config = write_config(tmp_path, tiny_model("llama"), tasks=[task])
    with pytest.raises(InputErrors, match=r"train\.label_weights.*task free has free text as answers"):
        make_plan(load_config(config, ["train.label_weights=balanced"]))
