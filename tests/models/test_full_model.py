"""Full fine-tuning: what a stage wrote comes back to the bit, and what cannot come back is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.errors import RunError
from nlora.models.full_model import MODEL, FullModel
from tiny import assert_bitwise, load, weights


def changed(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


@pytest.fixture
def stage(
    tmp_path: Path, tiny_model: Callable[[str], Path], tiny_tokenizer: Callable[[bool], Any]
) -> Callable[[Any], Path]:
    """commit(model) -> the folder of a stage that trained it."""

    def commit(model: Any) -> Path:
        FullModel.attach(model).commit(tmp_path, base_model="tiny", tokenizer=tiny_tokenizer(False))
        return tmp_path

    return commit


# Experts in one tensor, which transformers writes one by one; names that it writes otherwise; one weight used twice.
@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "gemma2"])
def test_a_reloaded_stage_is_the_trained_model(
    stage: Callable[[Any], Path], tiny_family: Callable[[str], Any], family: str
) -> None:
    model = tiny_family(family).to(torch.bfloat16)
    folder, trained = stage(model), weights(model)
    numbers = torch.get_rng_state()
    FullModel.load(changed(model), folder)
    assert_bitwise(model, trained)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_damaged_missing_or_other_model_is_refused(
    stage: Callable[[Any], Path], tiny_model: Callable[[str], Path], tiny_family: Callable[..., Any]
) -> None:
    model = load(tiny_model("llama"))
    folder, before = stage(model), weights(model)
    wider = tiny_family("llama", vocab_size=401)
    for other, what in ((load(tiny_model("gpt2")), "lacks "), (wider, "has another shape of ")):
        with pytest.raises(RunError, match=rf"model: {what}\S+; restore it, or move .* away"):
            FullModel.load(other, folder)
    file = folder / MODEL / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model: is broken \(.*\); restore it, or move .* away"):
        FullModel.load(model, folder)
    file.unlink()
    with pytest.raises(RunError, match=r"model: is missing; restore it, or move .* away"):
        FullModel.load(model, folder)
    assert_bitwise(model, before)
