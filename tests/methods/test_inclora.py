"""Incremental LoRA with rescaled updates: what is stored, scored and merged, and that nothing is rescaled twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import learn, write_config
from nlora.errors import InputErrors
from nlora.evaluation.evaluator import Evaluator
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter, load_factors
from tiny import load

TinyModel = Callable[[str], Path]
TRAIN = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-2, "save_every": 1,
         "early_stopping": {"patience": 1}}  # fmt: skip
Q = "model.layers.0.self_attn.q_proj"
STAGES = ("1-colors", "2-animals")


def config(folder: Path, model: Path) -> Path:
    """With early stopping: the epoch that is kept need not be the last."""
    evaluate = {"batch_size": 9, "validation_share": 0.5}
    return write_config(folder, model, method="inclora", train=TRAIN, evaluate=evaluate)


def stored(run: Path) -> list[AdapterState]:
    return [load_factors(run / "outputs" / stage / "adapter") for stage in STAGES]


def killed(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_what_was_trained_is_rescaled_once_and_then_stored_scored_and_merged(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the last step is saved, the update is rescaled, and the program dies before it is stored."""
    path, small = config(tmp_path, tiny_model("llama")), tmp_path / "small"
    learn(path, f"output_dir={tmp_path / 'plain'}")
    overrides = f"output_dir={small}", "method.rescale=0.3"
    with monkeypatch.context() as patch:
        patch.setattr(LoraAdapter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(path, *overrides)
    assert list((small / "resume").iterdir())
    scored: list[torch.Tensor] = []  # a weight of the model, at each call
    original = Evaluator.answer

    def answer(self: Evaluator, *args: Any, **kwargs: Any) -> Any:
        weight = self._backbone.model.get_parameter(f"{Q}.weight")  # type: ignore[attr-defined]
        scored.append(weight.detach().clone())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "answer", answer)
    learn(path, *overrides)

    (first, second), (whole, other) = stored(small), stored(tmp_path / "plain")
    assert first.keys() == whole.keys()
    for name, f in first.items():
        assert torch.equal(f.A, whole[name].A)
        assert torch.equal(f.B, 0.3 * whole[name].B)
        assert f.B.any()
        assert not torch.equal(second[name].A, other[name].A)  # trained on a backbone with another update
    before = load(tiny_model("llama")).get_parameter(f"{Q}.weight")
    torch.testing.assert_close(scored[-1], before + first[Q].update() + second[Q].update())


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_a_factor_that_does_not_shrink_is_refused(value: float) -> None:
    with pytest.raises(InputErrors, match=r"^method\.rescale: "):
        build("inclora", {"rescale": value})
