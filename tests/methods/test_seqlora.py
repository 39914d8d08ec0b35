"""Sequential LoRA continues one adapter; incremental LoRA starts a fresh one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nlora.config.schema import LoraOptions
from nlora.methods.registry import build
from nlora.models.lora_adapter import AdapterState, LoraAdapter


def test_a_stage_begins_where_the_last_one_ended(tiny_model: Callable[[str], Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    states = []
    for seed in (1, 2):
        adapter = LoraAdapter.attach(model, LoraOptions(r=4), seed=seed)
        for f in adapter.factors().values():
            torch.nn.init.normal_(f.B)
        states.append(adapter.state())
        adapter.detach()
    fresh = LoraAdapter.attach(model, LoraOptions(r=4), seed=3)
    untouched = fresh.state()
    build("inclora", {}).begin_task(fresh, states)
    assert all(torch.equal(f.A, untouched[n].A) and not f.B.any() for n, f in fresh.state().items())
    build("seqlora", {}).begin_task(fresh, states)
    for name, f in fresh.state().items():
        assert torch.equal(f.A, states[-1][name].A)
        assert torch.equal(f.B, states[-1][name].B)


def test_only_one_of_the_two_adds_updates_up() -> None:
    updates: list[AdapterState] = [{}, {}]
    for name in ("inclora", "nlora"):
        assert build(name, {}).active_in_training(updates) == updates
        assert build(name, {}).active_for(updates, 0) == updates
    assert build("seqlora", {}).active_in_training(updates) == []
    assert build("seqlora", {}).active_for(updates, 0) == updates[-1:]
