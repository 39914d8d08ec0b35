"""The estimate of a run's memory against exact counts, and against what a real step keeps and needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_memory_of_methods import tensors_in
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from helpers import COLORS, write_config, write_task
from nlora.config.load import load_config
from nlora.config.schema import Config
from nlora.config.train_options import TrainOptions
from nlora.data.collate import IGNORED, Collator
from nlora.data.packing import pack
from nlora.methods.registry import builtin_names
from nlora.models import packed_layout
from nlora.models.backbone import load_backbone
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.packed_attention import packed_attention
from nlora.models.traced_memory import LiveBytes, held_tensors
from nlora.runs import memory_trace
from nlora.runs.memory_advice import changed, memory_lines
from nlora.runs.memory_estimate import MemoryEstimate, estimate_memory
from nlora.runs.plan import Plan, make_plan
from nlora.runs.stage_training import attached
from nlora.runs.update_history import UpdateHistory
from nlora.training.fast_modules import fast_modules

LORA = {"r": 4, "alpha": 8, "dropout": 0.1}


def plan_of(folder: Path, model: Path, *overrides: str, **changes: Any) -> Plan:
    return make_plan(load_config(write_config(folder, model, **({"lora": LORA} | changes)), list(overrides)))


def quantized_files(folder: Path, plan: Plan, **format_: bool) -> Path:
    """The plan's model as one whose configuration says that bitsandbytes quantized it."""
    shutil.copytree(plan.config.model, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"quantization_config": format_}), encoding="utf-8")
    return folder


def real_step(plan: Plan, family: str) -> tuple[int, int]:
    """Of a real step on the longest batch: bytes that autograd keeps, and the most that are alive at once."""
    backbone: Any = load_backbone(plan.config.model)
    adapter = LoraAdapter.attach(backbone.model, plan.config.lora, seed=0)
    examples = sorted(
        (e for part in plan.encoded for e in part), key=lambda e: len(e.prompt_ids) + len(e.answer_ids)
    )
    batch = examples[-plan.config.train.batch_size :]
    inputs = Collator(0, True)(batch) if family == "t5" else pack(batch)
    adapter.model.train()
    saved: dict[int, int] = {}
    held = {
        tensor.untyped_storage().data_ptr() for tensor in [*held_tensors(adapter.model), *tree_leaves(inputs)]
    }

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    packed = nullcontext() if family == "t5" else packed_attention(backbone.model)
    with (
        fast_modules(adapter.model),
        packed,
        LiveBytes([*held_tensors(adapter.model), *tree_leaves(inputs)]) as live,
    ):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits, targets = answer_logits(adapter.model, inputs)
            loss = F.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        loss.backward()  # type: ignore[no-untyped-call]
    return sum(saved.values()), live.peak


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_activations_are_those_of_a_real_step(
    tmp_path: Path, tiny_model: Callable[[str], Path], family: str
) -> None:
    """The same code on real tensors has the same peak, which is what autograd keeps and little more."""
    plan = plan_of(tmp_path, tiny_model(family))
    kept, peak = real_step(plan, family)
    estimated = estimate_memory(plan, device="cpu").training
    assert estimated == pytest.approx(peak, rel=0.02)
    assert kept < estimated < 1.4 * kept


def test_weights_adapter_and_optimizer_are_counted_exactly(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"))
    found = estimate_memory(plan, device="cpu")
    model: Any = load_backbone(plan.config.model).model
    assert found.weights == sum(t.nbytes for t in held_tensors(model))
    assert found.adapter == 4 * plan.trained_parameters
    assert found.optimizer == 2 * found.adapter
    # The second stage keeps the first one's update, and the original weights of the layers that it is merged into.
    assert found.earlier == found.adapter
    assert found.originals == 4 * sum(m.in_features * m.out_features for m in plan.modules)
    narrow = estimate_memory(plan, changed(plan.config, {"dtype": "bfloat16"}), device="cpu")
    assert narrow.weights == pytest.approx(found.weights / 2, rel=0.01)
    assert narrow.adapter == found.adapter
    # The files are in float32, so the weights have to be converted.
    assert (found.loading, narrow.loading) == (0, sum(p.nbytes for p in model.parameters()))
    assert (found.mapped, narrow.mapped) == (found.weights - found.originals, 0)


@pytest.mark.parametrize(
    ("method", "changes", "share"),
    [("l2p", {}, 1), ("seqft", {}, 0), ("nlora", {"fsdp": True}, 0), ("nlora", {"quantize": "8bit"}, 0)],
)
def test_weights_that_no_process_changes_or_converts_are_counted_once(
    tmp_path: Path, tiny_model: Callable[[str], Path], method: str, changes: dict[str, Any], share: int
) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"), f"method={method}")
    found = estimate_memory(plan, changed(plan.config, changes), device="cpu", processes=2)
    assert found.mapped == share * found.weights


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_model_that_is_quantized_already_is_estimated_as_one_that_the_run_quantizes(
    tmp_path: Path, tiny_model: Callable[[str], Path], quantize: str
) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"))
    stored = quantized_files(tmp_path / "stored", plan, **{f"load_in_{quantize}": True})
    plain, by_run, by_files = (
        estimate_memory(plan, changed(plan.config, change), device="cpu")
        for change in ({}, {"quantize": quantize}, {"model": str(stored)})
    )
    assert by_files.weights == by_run.weights < plain.weights
    assert (by_files.originals, by_files.mapped, by_files.loading) == (0, 0, 0)
    assert by_files.earlier == by_run.earlier > plain.earlier  # updates that stay unmerged


def test_attention_on_a_gpu_is_estimated_as_it_is_there(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"))
    gpu, cpu = (estimate_memory(plan, device=device) for device in ("cuda", "cpu"))
    monkeypatch.setattr(packed_layout, "ONE_CALL_TOKENS", {})  # then keys are copied, as on a CPU
    by_kind, same = (estimate_memory(plan, device=device) for device in ("cuda", "cpu"))
    assert gpu.training != by_kind.training
    assert same.training == cpu.training
    assert gpu.peak == gpu.weights + max(gpu.adapter + gpu.optimizer + gpu.training, gpu.scoring)


def test_full_fine_tuning_trains_every_weight(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"), "method=seqft")
    found = estimate_memory(plan, device="cpu")
    parameters = sum(p.nbytes for p in load_backbone(plan.config.model).model.parameters())
    assert (found.adapter, found.optimizer) == (parameters, 2 * parameters)
    assert found.training > parameters  # its gradient


def test_methods_that_prepare_the_factors_are_estimated_without_a_model(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """oplora decomposes weights that have no values here, and lori trains B alone."""
    plain, oplora, lori = (
        estimate_memory(plan_of(tmp_path / name, tiny_model("llama"), f"method={name}"), device="cpu")
        for name in ("inclora", "oplora", "lori")
    )
    assert (oplora.adapter, oplora.optimizer) == (plain.adapter, plain.optimizer)
    Bs = 4 * 4 * 2 * (32 + 16)  # bytes, rank, layers, and the outputs of q and v
    assert (lori.adapter, lori.optimizer) == (Bs, 2 * Bs)


def test_few_layers_foretell_many(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three and four layers give, for seven, what all seven give."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(tiny_model("llama"))
    config.num_hidden_layers, config.layer_types = 7, None
    folder = tmp_path / "deep"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tiny_model("llama").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    plan = plan_of(tmp_path, folder)
    few = estimate_memory(plan, device="cpu")
    monkeypatch.setattr(memory_trace, "layer_lists", lambda model: [])
    every = estimate_memory(plan, device="cpu")
    assert (few.training, few.scoring) == (every.training, every.scoring)


def test_smaller_batches_and_checkpointing_need_less(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"))
    whole = estimate_memory(plan, device="cpu")
    for change in ({"train.micro_batch_size": 2}, {"train.gradient_checkpointing": True}):
        less = estimate_memory(plan, changed(plan.config, change), device="cpu")
        assert less.training < 0.8 * whole.training, change
        assert less.scoring == whole.scoring
    lwf = plan_of(tmp_path / "lwf", tiny_model("llama"), "method=lwf")
    assert estimate_memory(lwf, device="cpu").training > whole.training


@pytest.mark.parametrize(
    ("method", "tasks"),
    [(name, 2) for name in builtin_names() if name not in ("l2p", "progprompt", "seqft", "osf", "mtl")]
    + [("clora", 1), ("oplora", 1), ("ella", 1)],
)
def test_what_a_method_holds_while_a_stage_trains_is_estimated(
    method: str,
    tasks: int,
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many bytes as the tensors that it has once the last stage has begun; of a few, at most as many."""
    nothing = dict.fromkeys(("adapter", "optimizer", "training", "scoring"), 0)
    monkeypatch.setattr(memory_trace.TracedRun, "parts", lambda self: nothing)  # they do not depend on it
    given = [write_task(tmp_path, name, COLORS) for name in ("one", "two")[:tasks]]
    plans = {
        name: plan_of(tmp_path, tiny_model("llama"), method=name, tasks=given) for name in {method, "inclora"}
    }
    found, plain = (estimate_memory(plans[name], device="cpu") for name in (method, "inclora"))
    gpu = estimate_memory(plans[method], device="cuda")
    plan = plans[method]
    backbone = load_backbone(plan.config.model)
    history = UpdateHistory(backbone.model, [module.name for module in plan.modules])
    begun = plan.methods[-1]
    for stage in range(1, tasks + 1):
        with attached(plan, backbone, history, stage) as adapter:
            if stage == tasks:
                held = sum({id(t): t.nbytes for t in tensors_in(begun)}.values())
            history.add(adapter.state())
        names, pad = [module.name for module in plan.modules], 0
        history.memory = begun.end_task(backbone.model, names, plan.encoded[stage - 1], pad)
    counted = found.method + found.earlier - plain.earlier
    if method in ("inflora", "gorp", "magmax", "slao"):
        assert found.method == 0
        return
    assert counted == held
    assert found.peak - found.process - (plain.peak - plain.process) == counted
    if method == "ewc":  # a copy of the Fisher information, which stays on the machine
        assert (gpu.method, gpu.earlier - plain.earlier) == (held, held)
    else:
        assert gpu.method == held


ESTIMATE = MemoryEstimate(
    device="cpu", processes=1, process=10, weights=20, mapped=0, loading=0, adapter=1, optimizer=2, method=0, earlier=3,
    originals=0, training=64, scoring=16, free=100,
)  # fmt: skip


def test_a_peak_is_that_of_training_or_of_scoring() -> None:
    assert ESTIMATE.peak == 10 + 20 + 3 + 1 + 2 + 64
    assert replace(ESTIMATE, scoring=70).peak == 10 + 20 + 3 + 70
    assert replace(ESTIMATE, method=5).peak == ESTIMATE.peak + 5
    assert replace(ESTIMATE, processes=2).peak == 2 * ESTIMATE.peak
    assert replace(ESTIMATE, loading=60).peak == ESTIMATE.peak
    assert replace(ESTIMATE, processes=2, loading=200).peak == 2 * (10 + 20) + 200  # all map the same files
    assert replace(ESTIMATE, processes=3, mapped=15).peak == 3 * ESTIMATE.peak - 2 * 15
    gpu = replace(ESTIMATE, device="cuda", processes=2)
    assert (gpu.peak, gpu.host) == (20 + 1 + 2 + 64, 2 * (10 + 20))
    # All processes of a machine share the original weights, which are in its own memory.
    assert replace(ESTIMATE, processes=2, originals=50).peak == 2 * ESTIMATE.peak + 50
    assert replace(gpu, originals=50).peak == gpu.peak
    assert replace(gpu, originals=50).host == 2 * (10 + 3) + 50


def advice(plan: Plan, needs: Callable[[Any], dict[str, int]], free: int) -> str:
    """The last line, with an estimate whose parts depend on the configuration."""

    def estimate(plan: Plan, config: Any = None, **how: Any) -> MemoryEstimate:
        return replace(ESTIMATE, free=free, **needs(config or plan.config))

    return memory_lines(plan, lambda size: f"{size:.0f} B", estimate=estimate)[-1]


def test_the_first_change_that_suffices_is_advised(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"))

    def training(config: Any) -> dict[str, int]:
        share = (config.train.micro_batch_size or 8) / 8 / (4 if config.train.gradient_checkpointing else 1)
        width = 0.25 if config.quantize else 0.5 if config.dtype == "bfloat16" else 1
        return {"training": int(64 * share), "weights": int(20 * width), "scoring": 0}

    assert advice(plan, training, 100).startswith("- Python and data 10 B")  # it fits
    assert (
        advice(plan, training, 70) == "it will not fit; try train.micro_batch_size=4, which needs about 68 B"
    )
    assert "micro_batch_size=1, which" in advice(plan, training, 44)
    assert "micro_batch_size=1 train.gradient_checkpointing=true, " in advice(plan, training, 38)
    assert "checkpointing=true dtype=bfloat16, " in advice(plan, training, 30)
    assert "dtype=bfloat16 quantize=4bit, which" in advice(plan, training, 23)
    assert "whatever the options" in advice(plan, training, 20)

    stored = quantized_files(tmp_path / "stored", plan, load_in_4bit=True)
    for model in (stored, tmp_path / "model.gguf"):  # neither can be quantized
        other = replace(plan, config=changed(plan.config, {"model": str(model)}))
        assert "whatever the options" in advice(other, training, 23)

    def scoring(config: Any) -> dict[str, int]:
        return {"training": 4, "scoring": 20 * config.evaluate.batch_size}

    assert "try evaluate.batch_size=2, which" in advice(plan, scoring, 80)


def test_a_model_that_cannot_be_traced_is_said_in_one_line(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> MemoryEstimate:
        raise NotImplementedError("no fake kernel\nfor this")

    (line,) = memory_lines(plan_of(tmp_path, tiny_model("llama")), str, estimate=broken)
    assert line == "memory: cannot be estimated for this model (NotImplementedError: no fake kernel)"


@pytest.mark.parametrize(("batch", "processes"), [(18, 1), (50, 1), (100, 1), (32, 3)])
def test_only_batches_that_a_configuration_may_have_are_advised(
    tmp_path: Path, tiny_model: Callable[[str], Path], batch: int, processes: int
) -> None:
    plan = plan_of(tmp_path, tiny_model("llama"), f"train.batch_size={batch}")
    tried: list[int | None] = []

    def never_enough(plan: Plan, config: Config = plan.config, **_: Any) -> MemoryEstimate:
        train = config.train
        assert TrainOptions.model_validate(train.model_dump()) == train
        tried.append(train.micro_batch_size)
        return replace(estimate, free=0)

    estimate = estimate_memory(plan, processes=processes)
    assert (
        "will not fit, whatever the options"
        in memory_lines(plan, str, processes=processes, estimate=never_enough)[-1]
    )
    assert 1 in tried
