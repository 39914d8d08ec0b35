"""CLoRA's penalty compared with its formula, and the directions that it draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.methods.clora import Clora
from nlora.methods.registry import build
from nlora.models.lora_adapter import LoraAdapter
from tiny import LORA, load, spread


@pytest.fixture
def adapter(tiny_model: Callable[[str], Path]) -> LoraAdapter:
    attached = LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)
    spread(attached)
    return attached


def begun(adapter: LoraAdapter, **options: Any) -> Clora:
    method = build("clora", options)
    assert isinstance(method, Clora)
    method.begin_task(adapter, [])
    return method


def gradients(value: Any, adapter: LoraAdapter) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(adapter.live_tensors().values())))


def test_it_is_half_the_squared_norm_of_what_lies_along_the_directions(adapter: LoraAdapter) -> None:
    """The gradient, of square and other modules, is weight·A·P·Pᵀ and weight·P·Pᵀ·B."""
    method = begun(adapter, weight=0.7, columns=5)
    wanted = torch.zeros(())
    for name, f in adapter.factors().items():
        P_in, P_out = (method._directions[f"{side}/{name}"].mT for side in ("in", "out"))
        assert (P_in.shape, P_out.shape) == ((f.A.shape[1], 5), (f.B.shape[0], 5))
        wanted = wanted + 0.7 / 2 * ((f.A @ P_in).norm() ** 2 + (f.B.mT @ P_out).norm() ** 2)
    got = method.penalty(adapter)
    torch.testing.assert_close(got, wanted)
    for ours, plain in zip(gradients(got, adapter), gradients(wanted, adapter), strict=True):
        torch.testing.assert_close(ours, plain)
    name, f = next(iter(adapter.factors().items()))
    P_in, P_out = (method._directions[f"{side}/{name}"].mT for side in ("in", "out"))
    of_A, of_B = torch.autograd.grad(method.penalty(adapter), (f.A, f.B))  # type: ignore[arg-type]
    torch.testing.assert_close(of_A, 0.7 * f.A.detach() @ P_in @ P_in.mT)
    torch.testing.assert_close(of_B, 0.7 * P_out @ P_out.mT @ f.B.detach())


def test_directions_are_orthonormal_and_as_many_as_the_layer_has_room_for(adapter: LoraAdapter) -> None:
    """With all of a layer's directions, it is weight decay."""
    method = begun(adapter, weight=1)
    for name, f in adapter.factors().items():
        for P, width in zip(
            (method._directions[f"{s}/{name}"] for s in ("in", "out")),
            (f.A.shape[1], f.B.shape[0]),
            strict=True,
        ):
            assert P.shape == (width, width)
            torch.testing.assert_close(P @ P.mT, torch.eye(width), rtol=0, atol=1e-5)
    decay = sum(p.square().sum() for p in adapter.live_tensors().values()) / 2
    torch.testing.assert_close(method.penalty(adapter), decay)


def test_directions_depend_on_seed_module_and_side_alone(adapter: LoraAdapter) -> None:
    one, other = (begun(adapter, columns=3, seed=seed) for seed in (0, 1))
    again = begun(adapter, columns=3)
    torch.manual_seed(11)
    again.begin_task(adapter, [adapter.state()])  # a second task
    assert one._directions.keys() == again._directions.keys()
    assert all(torch.equal(P, again._directions[key]) for key, P in one._directions.items())
    every = [*one._directions.values(), *other._directions.values()]
    assert not any(torch.equal(P, Q) for i, P in enumerate(every) for Q in every[:i])


def test_an_update_off_the_directions_costs_nothing(adapter: LoraAdapter) -> None:
    method = begun(adapter, columns=5)
    with torch.no_grad():
        for name, f in adapter.factors().items():
            P_in, P_out = (method._directions[f"{side}/{name}"].mT for side in ("in", "out"))
            f.A.sub_(f.A @ P_in @ P_in.mT)
            f.B.sub_(P_out @ P_out.mT @ f.B)
            assert f.update().abs().max() > 1e-3
    penalty = method.penalty(adapter)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0, abs=1e-9)
