"""SLAO: the start of a task, the merge, and that an export, an analysis and a later task take the merged adapter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nlora
from helpers import learn, write_config
from nlora.analysis.of_run import analyze_run
from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.methods.registry import build
from nlora.methods.slao import merged, orthonormal
from nlora.models.lora_adapter import AdapterState, LoraAdapter
from nlora.models.lora_factors import load_factors
from nlora.runs.export.export import export
from nlora.runs.export.options import ExportOptions
from nlora.runs.plan import make_plan
from states import random_state
from tiny import LORA, load, logits

TinyModel = Callable[[str], Path]


@pytest.fixture
def adapter(tiny_model: TinyModel) -> LoraAdapter:
    return LoraAdapter.attach(load(tiny_model("llama")), LORA, seed=1)


def states_like(adapter: LoraAdapter, count: int) -> list[AdapterState]:
    shapes = {name: f.shape for name, f in adapter.factors().items()}
    return [random_state(shapes, LORA.r, seed) for seed in range(1, count + 1)]


def gram_schmidt(A: torch.Tensor) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    for row in A.double():
        for earlier in rows:
            row = row - (row @ earlier) * earlier
        rows.append(row / row.norm())
    return torch.stack(rows).float()


def test_a_task_starts_from_an_orthonormal_a_and_the_last_b(adapter: LoraAdapter) -> None:
    earlier = states_like(adapter, 2)
    build("slao", {}).begin_task(adapter, earlier)
    for name, f in adapter.state().items():
        last = earlier[-1][name]
        torch.testing.assert_close(f.A, gram_schmidt(last.A), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(f.A @ f.A.mT, torch.eye(LORA.r))
        assert torch.equal(f.B, last.B)


def test_a_rank_deficient_a_still_gives_an_orthonormal_one() -> None:
    rows = orthonormal(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(2))


def test_the_merge_moves_each_b_by_one_over_the_root_of_the_number_of_the_task() -> None:
    updates = [random_state({"q": (5, 7)}, 2, seed) for seed in range(4)]
    B = updates[0]["q"].B
    for t in (2, 3, 4):
        share = 1 / math.sqrt(t)
        B = (1 - share) * B + share * updates[t - 1]["q"].B
    found = merged(updates)["q"]
    torch.testing.assert_close(found.B, B)
    assert torch.equal(found.A, updates[-1]["q"].A)
    assert found.scaling == updates[-1]["q"].scaling
    assert torch.equal(merged(updates[:1])["q"].B, updates[0]["q"].B)


def test_skipped_stages_and_no_stage_at_all_have_no_part(adapter: LoraAdapter) -> None:
    method, (one, two) = build("slao", {}), states_like(adapter, 2)
    assert method.active_for([], 0) == []
    [active] = method.active_for([one, {}, two], 0)
    for name, f in merged([one, two]).items():
        assert torch.equal(active[name].B, f.B)
    assert method.active_in_training([one, two]) == []


def test_a_rank_above_a_layers_inputs_is_refused_before_anything_is_trained(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), method="slao", lora={"r": 33})
    with pytest.raises(InputErrors, match=r"lora\.r: slao needs a rank of at most 32, .*q_proj, not 33"):
        make_plan(load_config(config))
    make_plan(load_config(config, ["lora.r=32"]))


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    folder = tmp_path_factory.mktemp("slao")
    learn(
        write_config(folder, tiny_model("llama"), method="slao", train={"epochs": 1, "learning_rate": 2e-2})
    )
    return folder / "run"


def adapters(run: Path) -> list[AdapterState]:
    return [load_factors(run / f"outputs/{stage}/adapter") for stage in ("1-colors", "2-animals")]


def by_hand(run: Path) -> dict[str, torch.Tensor]:
    """The update of the model after the second stage, (out, in) by module."""
    one, two = adapters(run)
    share = 1 / math.sqrt(2)
    return {n: f.scaling * (one[n].B + share * (f.B - one[n].B)) @ f.A for n, f in two.items()}


def merged_logits(model: Any, updates: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        for name, update in updates.items():
            model.get_submodule(name).weight += update
    return logits(model)


def test_the_model_of_a_run_is_the_merged_one(run: Path, tiny_model: TinyModel) -> None:
    model, _ = nlora.open_run(run).model()
    wanted = merged_logits(load(tiny_model("llama")), by_hand(run))
    torch.testing.assert_close(logits(model.eval()), wanted, rtol=1e-4, atol=1e-5)
    last_adapter = {n: f.update() for n, f in adapters(run)[1].items()}
    assert not torch.allclose(wanted, merged_logits(load(tiny_model("llama")), last_adapter), atol=1e-3)


def test_an_exported_adapter_holds_the_merge_in_the_rank_of_one_task(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", ExportOptions("adapter"))
    exported, wanted = load_factors(tmp_path / "out"), by_hand(run)
    for name, f in exported.items():
        assert f.A.shape[0] == LORA.r
        torch.testing.assert_close(f.update(), wanted[name])
    with pytest.raises(InputErrors, match="--merge: slao merges the updates itself; leave it out"):
        export(run, tmp_path / "other", ExportOptions("merged", merge="ties"))


def test_an_analysis_compares_what_each_stage_changed_in_the_merge(run: Path) -> None:
    values = analyze_run(run, threshold=1e-6).to_json()
    first = {n: f.update() for n, f in adapters(run)[0].items()}
    change = torch.cat([(update - first[n]).flatten() for n, update in by_hand(run).items()])
    assert values["adapters"]["animals"]["frobenius"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert values["pairs"]["colors|animals"]["orthogonality"] is None
    assert "slao answers with a merge of all stages" in values["notes"][0]


def test_a_next_task_elsewhere_starts_after_the_merge_and_cannot_be_slao(
    run: Path, tiny_model: TinyModel
) -> None:
    model = load(tiny_model("llama"))
    with nlora.next_task(model, after=run, method="inclora") as task:
        wanted = merged_logits(load(tiny_model("llama")), by_hand(run))
        torch.testing.assert_close(logits(task.model.eval()), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputErrors, match="slao answers with a merge of all tasks' updates"):
        nlora.next_task(model, method="slao")
