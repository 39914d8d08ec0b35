"""OSF on PEFT's tuner: what stays frozen, and that a saved stage is the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nlora.config.schema import LoraOptions
from nlora.errors import ModelError, RunError
from nlora.methods.registry import build
from nlora.models.osf_layers import WEIGHTS_FILE, OsfLayers
from nlora.models.target_modules import ModuleShape
from tiny import load, logits, loss, weights

TinyModel = Callable[[str], Path]


def trained(model: torch.nn.Module, preserved: float = 0.5) -> OsfLayers:
    """A few plain gradient steps."""
    trainable = OsfLayers.attach(model, LoraOptions(), preserved=preserved)
    parameters = [p for p in trainable.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss(trainable.model).backward()
        optimizer.step()
    return trainable


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_reloaded_stage_is_the_trained_model(tiny_model: TinyModel, tmp_path: Path, family: str) -> None:
    trainable = trained(load(tiny_model(family)))
    trainable.commit(tmp_path, base_model="tiny", tokenizer=None)
    trainable.model.eval()
    expected = logits(trainable.model)
    again = load(tiny_model(family))
    OsfLayers.load(again, tmp_path)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(trainable.detach()), logits(again))


def test_the_leading_directions_are_preserved(tiny_model: TinyModel) -> None:
    """Inputs along frozen right directions come out along frozen left directions as before."""
    model = load(tiny_model("llama"))
    name = "model.layers.0.self_attn.q_proj"
    before = model.get_submodule(name).weight.detach().clone()
    U, S, Vt = torch.linalg.svd(before)
    k = before.shape[0] // 2
    after = trained(model).detach().get_submodule(name).weight
    assert isinstance(after, torch.Tensor)
    assert not torch.allclose(before, after, atol=1e-4)
    core = U[:, :k].t() @ after @ Vt[:k].t()
    torch.testing.assert_close(core, torch.diag(S[:k]), rtol=1e-3, atol=1e-4)


def test_only_the_target_layers_move_and_nothing_requires_a_gradient_after(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    before = weights(model)
    after = trained(model).detach()
    moved = {n for n, t in after.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert all("q_proj" in n or "v_proj" in n for n in moved)
    assert not any(p.requires_grad for p in after.parameters())
    assert after.state_dict().keys() == before.keys()


def test_without_is_the_model_before(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    expected = logits(model)
    trainable = trained(model)
    with trainable.without():
        torch.testing.assert_close(logits(trainable.model), expected)


def test_layers_that_are_not_plain_are_named(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match=r"osf trains plain linear layers; .*Conv1D"):
        OsfLayers.attach(load(tiny_model("gpt2")), LoraOptions(), preserved=0.5)


def test_a_missing_or_foreign_file_is_an_error(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = load(tiny_model("llama"))
    with pytest.raises(RunError, match="is missing; restore it, or move"):
        OsfLayers.load(model, tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"is broken .*move"):
        OsfLayers.load(model, tmp_path)


def test_more_is_frozen_with_every_task(tiny_model: TinyModel) -> None:
    method = build("osf", {})
    assert method.check_sequence(3) == []
    counts = []
    for stage in (1, 2, 3):
        trainable = method.attach(load(tiny_model("llama")), LoraOptions(), stage=stage, seed=1)
        counts.append(sum(p.numel() for p in trainable.model.parameters() if p.requires_grad))
    assert counts[0] > counts[1] > counts[2] > 0


def test_a_share_of_less_than_one_direction_is_refused_before_anything_is_trained() -> None:
    shapes = [ModuleShape("wide", 64, 48, 8), ModuleShape("narrow", 16, 64, 8)]
    given = build("osf", {"preserved": 0.05})
    (problem,) = given.check(shapes)
    assert str(problem) == (
        "method.preserved: 0.05 of the 16 directions of narrow is less than one; set 0.0625 or more, or leave the "
        "layer out of lora.targets"
    )
    assert build("osf", {"preserved": 0.0625}).check(shapes) == []
    (problem,) = given.check([ModuleShape("odd", 19, 24, 8)])
    least = float(str(problem).split("set ")[1].split()[0])
    assert build("osf", {"preserved": least}).check([ModuleShape("odd", 19, 24, 8)]) == []
    by_number = build("osf", {})
    assert by_number.check(shapes) == []
    assert by_number.check_sequence(15) == []
    assert "of the 16 directions of narrow" in str(by_number.check_sequence(16)[0])
