"""MagMax: the merge entry by entry, training that is incremental LoRA's, and models that hold the merged update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nlora
from helpers import learn, write_config
from nlora.analysis.of_run import analyze_run
from nlora.errors import InputErrors
from nlora.methods.magmax import merged
from nlora.methods.registry import build
from nlora.models.lora_factors import AdapterState, load_factors
from nlora.models.unmerged_updates import UnmergedUpdates
from nlora.runs.export.export import export
from nlora.runs.export.options import ExportOptions
from states import random_state
from tiny import load, logits

TinyModel = Callable[[str], Path]
TRAIN = {"epochs": 1, "learning_rate": 2e-2}


def by_loops(updates: list[AdapterState], module: str, scale: float = 1.0) -> torch.Tensor:
    """Of every entry of the sums so far, the largest in magnitude."""
    sums = [
        sum((u[module].update() for u in updates[:t]), start=torch.zeros(()))
        for t in range(1, len(updates) + 1)
    ]
    largest = sums[0].clone()
    for i in range(largest.shape[0]):
        for j in range(largest.shape[1]):
            largest[i, j] = max((s[i, j] for s in sums), key=lambda value: abs(float(value)))
    return scale * largest


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_every_entry_is_the_largest_of_the_sums_so_far(shape: tuple[int, int]) -> None:
    updates = [random_state({"q": shape}, 2, seed) for seed in range(4)]
    found = merged(updates, scale=0.5)["q"]
    torch.testing.assert_close(found.update(), by_loops(updates, "q", 0.5))
    assert found.A.shape[0] == min(shape)


def test_an_update_that_lacks_a_layer_leaves_it_alone() -> None:
    one, two = random_state({"q": (4, 4)}, 2, 1), random_state({"q": (4, 4), "v": (4, 4)}, 2, 2)
    found = merged([one, two])
    torch.testing.assert_close(found["q"].update(), by_loops([one, two], "q"))
    torch.testing.assert_close(found["v"].update(), two["v"].update())


def test_layers_of_one_size_share_the_identity() -> None:
    found = merged([random_state({"q": (4, 4), "v": (4, 4)}, 2, 1)])
    assert found["q"].A is found["v"].A


def test_the_merge_is_kept_for_all_tasks_and_freed_before_the_next_one_trains() -> None:
    method = build("magmax", {})
    updates = [random_state({"q": (4, 4)}, 2, seed) for seed in range(2)]
    [first] = method.active_for(updates, 0)
    assert method.active_for(updates, 1)[0] is first
    assert method.active_for(updates[:1], 0)[0] is not first
    [again] = method.active_for(updates, 0)
    method.release()
    assert method.active_for(updates, 0)[0] is not again


def test_unmerged_updates_compute_with_it_as_with_one_matrix(tiny_model: TinyModel) -> None:
    """As on a quantized backbone, whose weights cannot hold it."""
    model, plain = load(tiny_model("llama")), load(tiny_model("llama"))
    names = {
        n: (m.out_features, m.in_features)
        for n, m in model.named_modules()
        if n.endswith(("q_proj", "v_proj"))
    }
    updates = [random_state(names, 2, seed) for seed in range(2)]
    for state in updates:
        for f in state.values():
            f.B.mul_(0.05)
    UnmergedUpdates(model, list(names)).activate(build("magmax", {}).active_for(updates, 0))
    with torch.no_grad():
        for name in names:
            plain.get_submodule(name).weight += by_loops(updates, name)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    folder = tmp_path_factory.mktemp("magmax")
    learn(write_config(folder, tiny_model("llama"), method={"name": "magmax", "scale": 0.8}, train=TRAIN))
    return folder / "run"


def adapters(run: Path) -> list[AdapterState]:
    return [load_factors(run / f"outputs/{stage}/adapter") for stage in ("1-colors", "2-animals")]


def test_its_adapters_are_those_of_incremental_lora(run: Path, tmp_path: Path, tiny_model: TinyModel) -> None:
    learn(write_config(tmp_path, tiny_model("llama"), method="inclora", train=TRAIN))
    for mine, plain in zip(adapters(run), adapters(tmp_path / "run"), strict=True):
        assert all(torch.equal(f.A, mine[n].A) and torch.equal(f.B, mine[n].B) for n, f in plain.items())


def test_the_model_of_a_run_has_the_merged_update(run: Path, tiny_model: TinyModel) -> None:
    model, _ = nlora.open_run(run).model()
    plain: Any = load(tiny_model("llama"))
    for name in adapters(run)[0]:
        wanted = plain.get_submodule(name).weight + by_loops(adapters(run), name, 0.8)
        torch.testing.assert_close(model.get_submodule(name).weight, wanted)


def test_an_exported_adapter_has_full_rank_or_the_one_asked_for(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "full", ExportOptions("adapter"))
    for name, f in load_factors(tmp_path / "full").items():
        assert f.A.shape[0] == 32  # the largest of all layers, with zeros where a layer has less
        assert not f.A[min(f.shape) :].any()
        torch.testing.assert_close(f.update(), by_loops(adapters(run), name, 0.8))
    found = export(run, tmp_path / "small", ExportOptions("adapter", rank=4))
    assert found.rank_loss is not None
    assert 0 < found.rank_loss.overall < 1


def test_an_analysis_says_that_it_compares_what_was_trained(run: Path) -> None:
    values = analyze_run(run).to_json()
    first = torch.cat([f.update().flatten() for f in adapters(run)[0].values()])
    assert values["adapters"]["colors"]["frobenius"] == pytest.approx(float(first.norm()), rel=1e-4)
    assert values["notes"][0] == (
        "magmax answers with a merge of the stages' updates; they are compared as they were trained."
    )


def test_a_scale_that_is_no_number_above_zero_is_named() -> None:
    with pytest.raises(InputErrors, match=r"method\.scale: must be a number > 0, not 0"):
        build("magmax", {"scale": 0})
