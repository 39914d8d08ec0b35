"""InfLoRA: the inputs of a task, the basis of earlier ones, an A off that basis, and a B that trains alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import learn, write_config
from nlora.data.task import TokenizedExample
from nlora.errors import InputErrors, RunError
from nlora.methods._inputs import input_moments, spaced
from nlora.methods._subspace import extended, orthonormal_off
from nlora.methods.inflora import Inflora
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter, load_factors, target_modules
from tiny import LORA, load, loss

TinyModel = Callable[[str], Path]
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
OLD = [TokenizedExample([5, 9, 17, 33], [2, 40]), TokenizedExample([7, 7, 21], [3, 11])]
NEW = [TokenizedExample([30, 31, 44], [8, 50]), TokenizedExample([12, 60, 19, 27], [1])]


def inputs(model: Any, examples: list[TokenizedExample]) -> torch.Tensor:
    """What q_proj and v_proj of the first layer read (tokens, in)."""
    ids = [torch.tensor(e.prompt_ids + e.answer_ids) for e in examples]
    with torch.no_grad():
        return torch.cat([model.model.layers[0].input_layernorm(model.model.embed_tokens(i)) for i in ids])


# What layers read


def test_the_moments_are_those_of_every_token_and_shared_by_layers_with_one_input(
    tiny_model: TinyModel,
) -> None:
    model = load(tiny_model("llama"))
    names = [m.name for m in target_modules(model, LORA.model_copy(update={"targets": ("all-linear",)}))]
    found = input_moments(model, names, OLD, 0)
    assert sorted(name for group in found for name in group) == sorted(names)
    groups = {tuple(name.rpartition(".")[2] for name in group) for group in found}
    assert groups == {("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)}
    X = inputs(model, OLD)
    [first] = [moments for group, moments in found.items() if Q in group]
    torch.testing.assert_close(first, X.mT @ X)
    alone = [input_moments(model, names, [example], 0) for example in OLD]  # each in a pass of its own
    for group, moments in found.items():
        torch.testing.assert_close(moments, sum(of_one[group] for of_one in alone))


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_moments_of_other_families(tiny_model: TinyModel, family: str) -> None:
    model = load(tiny_model(family))
    modules = {m.name: m.in_features for m in target_modules(model, LORA)}
    found = input_moments(model.train(), list(modules), OLD, 0)
    assert model.training
    for names, moments in found.items():
        assert moments.shape == (modules[names[0]], modules[names[0]])
        assert moments.trace() > 0
    if family == "t5":  # every block of the decoder reads what the encoder has written
        assert any(len({name.split(".")[2] for name in names}) > 1 for names in found)


def test_a_sample_is_spread_over_the_examples() -> None:
    examples: Any = list(range(10))
    assert spaced(examples, 4) == [0, 2, 5, 7]
    assert spaced(examples, 10) is examples


# The basis


@pytest.mark.parametrize("energy", [0.0, 0.3, 0.8, 0.999, 1.0])
def test_a_basis_grows_by_the_fewest_directions_that_reach_the_energy(energy: float) -> None:
    draw = torch.Generator().manual_seed(1)
    tasks = [torch.randn(30, 4, generator=draw, dtype=torch.float64) for _ in range(2)]
    mix = torch.randn(4, 12, generator=draw, dtype=torch.float64)
    X = [tasks[0] @ mix, tasks[1] @ torch.randn(4, 12, generator=draw, dtype=torch.float64)]
    G = torch.zeros(0, 12, dtype=torch.float64)
    for x in X:
        before = len(G)
        _, S, directions = torch.linalg.svd(x - (x @ G.mT) @ G, full_matrices=False)
        G = extended(G, S.square(), directions, x.square().sum(), energy)
        torch.testing.assert_close(G @ G.mT, torch.eye(len(G), dtype=torch.float64))

        def share(basis: torch.Tensor, x: torch.Tensor = x) -> float:
            return float((x @ basis.mT).square().sum() / x.square().sum())

        assert share(G) >= energy - 2e-6
        assert len(G) == before or share(G[:-1]) < energy
    assert len(G) <= 8  # two tasks of four dimensions each


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("known", [0, 5])
def test_directions_taken_together_are_those_taken_one_by_one(known: int, share: float) -> None:
    """Among them are one in the span of the basis, and one of which half is."""
    draw = torch.Generator().manual_seed(2)
    rows = torch.linalg.qr(torch.randn(24, 24, generator=draw, dtype=torch.float64))[0].mT
    G, directions = rows[:known], rows[known:20].clone()
    if known:
        directions[2], directions[3] = (rows[0] + directions[2]) / 2**0.5, rows[1]
    values = torch.linspace(2, 1, len(directions), dtype=torch.float64)
    found = extended(G, values, directions, values.sum(), share)
    count = int((values.cumsum(0) < (share - 1e-6) * values.sum()).sum()) + 1
    wanted = torch.cat([G, orthonormal_off(G, list(directions[:count]), count)])
    assert len(found) == known + count - bool(known)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        found @ found.mT, torch.eye(len(found), dtype=torch.float64), rtol=0, atol=1e-9
    )
    both = torch.cat([G, directions[:count]])
    torch.testing.assert_close(both @ found.mT @ found, both, rtol=0, atol=1e-9)


# A stage


def attached(path: Path) -> LoraAdapter:
    return LoraAdapter.attach(load(path), LORA, seed=1)


def second_stage(path: Path, **options: Any) -> tuple[Inflora, LoraAdapter, AdapterState]:
    """The method at its second stage, after the inputs of OLD; the fresh factors."""
    method, plain = build("inflora", options), load(path)
    assert isinstance(method, Inflora)
    method.check_sequence(4)
    names = [m.name for m in target_modules(plain, LORA)]
    memory = method.end_task(plain, names, OLD, 0)
    method.see_examples(plain, names, NEW, 0)
    adapter = attached(path)
    fresh = adapter.state()
    method.restore(memory)
    method.begin_task(adapter, [fresh])
    return method, adapter, fresh


def basis_of(X: torch.Tensor, energy: float, power: int) -> torch.Tensor:
    _, S, Vt = torch.linalg.svd(X.double(), full_matrices=False)
    shares = (S ** (2 * power)).cumsum(0) / (S ** (2 * power)).sum()
    return Vt[: int((shares < energy).sum()) + 1]


@pytest.mark.parametrize(("spectrum", "power"), [("inputs", 1), ("covariance", 2)])
def test_a_is_the_leading_part_of_the_new_inputs_off_the_old_ones(
    tiny_model: TinyModel, spectrum: str, power: int
) -> None:
    path = tiny_model("llama")
    _, adapter, _ = second_stage(path, threshold=0.8, spectrum=spectrum)
    model = load(path)
    old, new = inputs(model, OLD), inputs(model, NEW).double()
    G = basis_of(old, 0.8, power)
    rest = new - (new @ G.mT) @ G if power == 1 else (new.mT @ new) @ (torch.eye(32) - G.mT @ G)
    leading = torch.linalg.svd(rest, full_matrices=False)[2][: LORA.r]
    for name in (Q, V):  # v_proj maps 32 inputs to 16 outputs
        A = adapter.factors()[name].A.detach()
        assert float((A.double() @ G.mT).abs().max()) < 1e-5
        torch.testing.assert_close(3 * A @ A.mT, torch.eye(LORA.r))
        torch.testing.assert_close((3 * A.mT @ A).double(), leading.mT @ leading, rtol=1e-3, atol=1e-4)
        if power == 1:
            assert float((old @ A.mT).square().sum()) <= 0.2 * float(old.square().sum()) / 3


def test_old_inputs_of_which_all_energy_is_kept_pass_unchanged_through_a_trained_update(
    tiny_model: TinyModel,
) -> None:
    path = tiny_model("llama")
    _, adapter, _ = second_stage(path, threshold=1.0, spectrum="inputs")
    _train(adapter)
    X = inputs(load(path), OLD)
    for name in (Q, V):
        f = adapter.state()[name]
        assert f.update().norm() > 0.01
        assert float((X @ f.update().mT).norm()) < 2e-3 * float(X.norm() * f.update().norm())


def _train(adapter: LoraAdapter) -> None:
    optimizer = torch.optim.AdamW([p for p in adapter.model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        loss(adapter.model).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_b_trains_alone(tiny_model: TinyModel) -> None:
    _, adapter, _ = second_stage(tiny_model("llama"), threshold=0.5)
    before = adapter.state()
    _train(adapter)
    for name, f in adapter.factors().items():
        assert f.A.grad is None
        assert torch.equal(f.A, before[name].A)
        assert not torch.equal(f.B, before[name].B)


def test_directions_that_the_new_inputs_lack_come_from_the_fresh_a(tiny_model: TinyModel) -> None:
    """Nothing reaches a layer, as with an expert that no token was sent to."""
    path = tiny_model("llama")
    method, adapter = build("inflora", {}), attached(path)
    fresh = adapter.state()
    method._moments = {(name,): torch.zeros(32, 32) for name in fresh}  # type: ignore[attr-defined]
    method.begin_task(adapter, [])
    for f in adapter.factors().values():
        torch.testing.assert_close(3 * f.A.detach() @ f.A.detach().mT, torch.eye(LORA.r))


def test_a_layer_without_room_is_named_and_a_model_without_room_refused(
    tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_model("llama")
    method, adapter, fresh = second_stage(path)
    names = list(fresh)
    see = lambda: method.see_examples(load(path), names, NEW, 0)  # noqa: E731
    see()
    method.restore({Q: torch.eye(32), " ".join(set(names) - {Q}): torch.zeros(0, 32)})
    with caplog.at_level(logging.WARNING, "nlora"):
        method.begin_task(adapter, [fresh])
    assert f"fill the whole input space of {Q}, which cannot learn this task" in caplog.text
    assert not adapter.factors()[Q].A.any()
    see()
    method.restore({" ".join(names): torch.eye(32)})
    with pytest.raises(
        InputErrors, match=r"method\.threshold: the inputs of earlier tasks fill .* of every layer"
    ):
        method.begin_task(adapter, [fresh])


def test_one_direction_left_is_the_only_row(tiny_model: TinyModel) -> None:
    path = tiny_model("llama")
    method, adapter, fresh = second_stage(path)
    method.see_examples(load(path), list(fresh), NEW, 0)
    method.restore({" ".join(fresh): torch.eye(32)[1:]})
    method.begin_task(adapter, [fresh])
    A = adapter.factors()[Q].A
    torch.testing.assert_close(A[0].abs(), torch.eye(32)[0] / 3**0.5)
    assert not A[1:].any()


def test_what_is_missing_is_said(tiny_model: TinyModel) -> None:
    path = tiny_model("llama")
    method, adapter, fresh = second_stage(path)
    with pytest.raises(RunError, match="inflora has not seen the examples of this task"):
        method.begin_task(adapter, [fresh])
    method.see_examples(load(path), list(fresh), NEW, 0)
    method.restore({})
    with pytest.raises(
        RunError, match=r"has no inputs of earlier tasks for .*; run the earlier stages again"
    ):
        method.begin_task(adapter, [fresh])


def test_a_stage_that_resumes_has_the_a_that_it_was_trained_with(tiny_model: TinyModel) -> None:
    method, adapter, _ = second_stage(tiny_model("llama"), threshold=0.5)
    saved = {name: A.clone() + 0.01 for name, A in method.state_dict().items()}
    method.load_state_dict(saved)
    assert all(torch.equal(f.A, saved[name]) for name, f in adapter.factors().items())


def test_a_run_keeps_one_basis_for_layers_with_one_input_and_the_threshold_grows(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    energies = []

    def seen(*given: Any) -> torch.Tensor:
        energies.append(given[-1])
        return extended(*given)

    monkeypatch.setattr("nlora.methods._subspace.extended", seen)
    method = {"name": "inflora", "threshold": 0.6, "last_threshold": 0.8}
    config = write_config(
        tmp_path, tiny_model("llama"), method=method, train={"epochs": 1, "learning_rate": 2e-2}
    )
    learn(config)
    assert energies == pytest.approx([0.6, 0.6, 0.7, 0.7])  # two inputs, after each of two tasks
    outputs = tmp_path / "run/outputs"
    memory = load_file(outputs / "2-animals/memory.safetensors")
    assert [name.count(" ") for name in memory] == [1, 1]
    first, second = (load_factors(outputs / f"{stage}/adapter") for stage in ("1-colors", "2-animals"))
    for f in (*first.values(), *second.values()):
        torch.testing.assert_close(3 * f.A @ f.A.mT, torch.eye(LORA.r))
        assert f.B.any()
    record = json.loads((outputs / "1-colors/stage.json").read_text())
    assert record["trained_parameters"] == sum(f.B.numel() for f in first.values())
