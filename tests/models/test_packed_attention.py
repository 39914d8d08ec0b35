"""A packed batch gives each example's own numbers, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nlora.config.schema import LoraOptions
from nlora.data.packing import pack, pack_rests
from nlora.data.task import TokenizedExample
from nlora.models import masked_attention, packed_layout
from nlora.models.backbone import load_backbone
from nlora.models.inspection import logits_off
from nlora.models.lora_factors import LoraFactors
from nlora.models.masked_attention import for_heads, pretending
from nlora.models.packed_attention import packed_attention, packed_logits, packing_is_exact
from nlora.models.packed_layout import BatchLayout, Layout, Memory
from nlora.models.target_modules import target_modules
from nlora.models.unmerged_updates import UnmergedUpdates

CAUSAL = ["llama", "qwen2", "gemma", "gpt2", "opt"]
TinyModel = Callable[[str], Path]
BATCHES = {
    "lengths that differ": [
        TokenizedExample([5, 6, 7, 8, 40, 41, 42], [50, 1]),
        TokenizedExample([5, 6, 7, 8, 43], [51, 52, 53, 1]),
    ],
    "one length": [
        TokenizedExample([5, 6, 7, 40, 41], [50, 1]),
        TokenizedExample([5, 6, 7, 42, 43], [51, 1]),
    ],
    "nothing shared": [
        TokenizedExample([5, 6, 7], [50, 1]),
        TokenizedExample([8, 9, 10, 11], [51, 1]),
        TokenizedExample([12], [1]),
    ],
    "one example": [TokenizedExample([5, 6, 7, 8], [50, 51, 1])],
    "the same prompt": [TokenizedExample([5, 6, 7], [50, 1]), TokenizedExample([5, 6, 7], [51, 1])],
}
FIRST, SECOND, THIRD = [5, 6, 7, 8, 9], [5, 16, 17], [5, 26, 27, 28]
MIXED = {
    "two beginnings": [(FIRST, [30]), (SECOND, [31, 32]), (SECOND, [33]), (FIRST, [34, 35, 36])],
    "three of unequal size": [
        (SECOND, [30]), (FIRST, [31]), (THIRD, [32]), (FIRST, [33, 34]), (THIRD, [35]), (FIRST, [36]), (SECOND, [37]),
    ],
    "one of an example alone": [(FIRST, [30]), (THIRD, [31, 32]), (FIRST, [33]), ([], [34])],
}  # fmt: skip


def load(folder: Path) -> Any:
    return load_backbone(str(folder)).model


def alone(model: Any, examples: list[TokenizedExample]) -> Tensor:
    """Logits (N, V) that predict the answers, one example at a time, without padding or a cache."""
    found = []
    for e in examples:
        logits = model(input_ids=torch.tensor([[*e.prompt_ids, *e.answer_ids]]), use_cache=False).logits[0]
        found.append(logits[-len(e.answer_ids) - 1 : -1])
    return torch.cat(found)


def gradients(model: Any, logits: Tensor, examples: list[TokenizedExample]) -> dict[str, Tensor]:
    model.zero_grad()
    labels = torch.tensor([token for e in examples for token in e.answer_ids])
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To single precision, in which transformers' norms compute regardless of the model's dtype."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max()) + 1e-8, name


def check_packed(model: Any, examples: list[TokenizedExample]) -> None:
    """A packed batch has the logits and gradients of each example alone."""
    expected = alone(model, examples)
    expected_gradients = gradients(model, expected, examples)
    with packed_attention(model):
        found = packed_logits(model, pack(examples))[0]
        found_gradients = gradients(model, found, examples)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    check(found_gradients, expected_gradients)


@pytest.mark.parametrize("examples", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("family", CAUSAL)
def test_logits_and_gradients_are_those_of_each_example_alone(
    tiny_model: TinyModel, family: str, examples: list[TokenizedExample]
) -> None:
    model = load(tiny_model(family)).double()
    assert packing_is_exact(model)
    model.requires_grad_(True)
    check_packed(model, examples)


@pytest.mark.parametrize("way", ["copied", "merged", "one call"])
@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_examples_of_several_beginnings_have_their_own_numbers_too(
    tiny_model: TinyModel, family: str, case: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_layout, "MERGE_FROM", 1 if way == "merged" else 1000)
    if way == "one call":
        attend_in_one_call(monkeypatch)
    examples = [
        TokenizedExample([*beginning, *rest], [50 + i, *range(60, 60 + i % 3), 1])
        for i, (beginning, rest) in enumerate(MIXED[case])
    ]
    model = load(tiny_model(family)).double().requires_grad_(True)
    expected = alone(model, examples)
    expected_gradients = gradients(model, expected, examples)
    batch = pack(examples, beginnings=[FIRST, SECOND, THIRD])
    assert len(batch["groups"]) == (3 if case == "three of unequal size" else 2)
    with packed_attention(model):
        found = packed_logits(model, batch)[0]
        found_gradients = gradients(model, found, examples)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    check(found_gradients, expected_gradients)


def attend_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, and with its layout of masks."""
    monkeypatch.setattr(packed_layout, "ONE_CALL_DEVICES", ("cpu",))
    monkeypatch.setattr(packed_layout, "ONE_CALL_TOKENS", {torch.float64: 100})
    monkeypatch.setattr(Layout, "attend", lambda *args: pytest.fail("a call for each kind of token"))
    monkeypatch.setattr(masked_attention, "kind_of", lambda device: "cuda")


@pytest.mark.parametrize("examples", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("family", CAUSAL)
def test_one_call_of_attention_gives_the_same(
    tiny_model: TinyModel, family: str, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend_in_one_call(monkeypatch)
    model = load(tiny_model(family)).double().requires_grad_(True)
    check_packed(model, examples)


def test_longer_batches_and_passes_after_others_are_attended_to_by_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One call computes the square of all tokens, and knows of no tokens but the batch's."""
    calls = []
    real = Layout.attend
    monkeypatch.setattr(Layout, "attend", lambda *args: calls.append(1) or real(*args))
    monkeypatch.setattr(packed_layout, "ONE_CALL_DEVICES", ("cpu",))
    examples = BATCHES["lengths that differ"]
    for most, memory, expected in ((12, None, 0), (11, None, 1), (12, Memory(), 1)):
        calls.clear()
        monkeypatch.setattr(packed_layout, "ONE_CALL_TOKENS", {torch.float32: most})
        layout = BatchLayout.of(pack(examples), memory)
        assert layout.tokens == 12
        q, k, v = (torch.randn(layout.tokens, heads, 4) for heads in (2, 1, 1))
        layout.attend(q, k, v, 0.0, None)
        assert len(calls) == expected


def test_a_mask_for_a_gpu_begins_its_rows_where_the_kernels_read_them() -> None:
    mask = torch.randn(3, 21)
    with pretending("cuda"):
        made = for_heads(mask, 2)
    assert torch.equal(made, torch.cat([mask, mask]))
    assert made.stride() == (32, 1)


@pytest.mark.parametrize("examples", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_long_prefix_that_is_not_copied_gives_the_same(
    tiny_model: TinyModel, family: str, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prefix counts as a long one here."""
    calls = []
    merged = packed_layout.merged_attention
    monkeypatch.setattr(packed_layout, "merged_attention", lambda *args: calls.append(1) or merged(*args))
    monkeypatch.setattr(packed_layout, "MERGE_FROM", 1)
    model = load(tiny_model(family)).double()
    model.requires_grad_(True)
    expected = alone(model, examples)
    expected_gradients = gradients(model, expected, examples)
    with packed_attention(model):
        found = packed_logits(model, pack(examples))[0]
        found_gradients = gradients(model, found, examples)
    assert bool(calls) == (BatchLayout.of(pack(examples)).groups[0].prefix > 0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    check(found_gradients, expected_gradients)


def test_a_long_prefix_is_kept_once_for_the_backward_pass() -> None:
    """What is kept grows with the tokens, not with rows times prefix; dropout of the scores needs copies."""
    prefix, rows, rest = 1000, 16, 3
    examples = [TokenizedExample([*range(prefix), 8 + i, 7], [5, 1]) for i in range(rows)]
    (layout,) = BatchLayout.of(pack(examples)).groups
    assert (layout.prefix, layout.tokens) == (prefix, prefix + rows * rest)
    q, k, v = (torch.randn(layout.tokens, heads, 4, requires_grad=True) for heads in (2, 1, 1))

    def kept(dropout: float) -> int:
        largest: dict[int, int] = {}  # of each storage, since several saved tensors may share one

        def pack_hook(tensor: Tensor) -> Tensor:
            largest[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            layout.attend(q, k, v, dropout, None)
        return sum(largest.values())

    tokens_bytes = layout.tokens * 4 * 4
    assert kept(dropout=0.0) < 20 * tokens_bytes
    assert kept(dropout=0.1) > 2 * rows * tokens_bytes


def test_a_long_prefix_of_an_earlier_pass_is_not_copied_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in scoring, where the prefix runs in the first pass only."""
    batch = pack_rests(BATCHES["lengths that differ"], 4, with_beginning=False)
    tokens = batch["input_ids"].shape[1]
    q, k, v, *before = (
        torch.randn(n, heads, 4) for n, heads in [(tokens, 4), *[(tokens, 2)] * 2, *[(4, 2)] * 2]
    )
    found = []
    for merge_from in (1000, 1):
        monkeypatch.setattr(packed_layout, "MERGE_FROM", merge_from)
        memory = Memory([(before[0], before[1])])
        found.append(BatchLayout.of(batch, memory).attend(q, k, v, 0.0, 0.7))
        assert torch.equal(memory.kept[0][0], k)
    assert not torch.equal(*found)
    torch.testing.assert_close(*found)


def test_expanded_keys_are_the_gathered_ones() -> None:
    (layout,) = BatchLayout.of(pack(BATCHES["lengths that differ"])).groups
    states = torch.randn(layout.tokens, 2, 3, dtype=torch.float64, requires_grad=True)
    ways = [
        packed_layout._taken(states, layout.keys_at),
        packed_layout._expanded(states, layout.keys_at, layout.prefix),
    ]
    assert torch.equal(*ways)
    g = torch.randn_like(ways[0])
    torch.testing.assert_close(*(torch.autograd.grad(way, states, g)[0] for way in ways))


def test_gradient_checkpointing_changes_nothing(tiny_model: TinyModel) -> None:
    examples = BATCHES["lengths that differ"]
    model = load(tiny_model("llama")).double().requires_grad_(True).train()
    expected = gradients(model, alone(model, examples), examples)
    model.activation_checkpointing_enable({"use_reentrant": False})
    with packed_attention(model):
        found = gradients(model, packed_logits(model, pack(examples))[0], examples)
    check(found, expected)


def test_16_bit_models_pack(tiny_model: TinyModel) -> None:
    assert packing_is_exact(load_backbone(str(tiny_model("llama")), dtype="bfloat16").model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_failed_trial_is_logged_and_rules_out_packing(
    tiny_model: TinyModel, dtype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = load_backbone(str(tiny_model("llama")), dtype=dtype).model
    masks = Layout._masks_for

    def blind(self: Layout, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        before, row = masks(self, heads, like)
        return before, row.index_fill(1, torch.tensor([0, 1, 2]), float("-inf"))  # of the prefix

    monkeypatch.setattr(Layout, "_masks_for", blind)
    assert not packing_is_exact(model)
    assert "it is not used" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_as_far_off_as_their_differences_say(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    model: Any = load_backbone(str(tiny_model("llama")), dtype=str(dtype).removeprefix("torch.")).model
    expected = np.array([[3.0, -5.0, 2.0], [1.0, 1.0, 4.0]])
    found = expected + np.array([[0.0, 0.5, 0.0], [2.0, 2.0, 2.0]])  # the second row has the same softmax
    off = logits_off(model, torch.tensor(found), torch.tensor(expected))
    if dtype == torch.float32:
        assert off == pytest.approx(2.0 / 5.0)
    else:
        change = np.array([-1, 2, -1]) / 6
        assert off == pytest.approx(np.sqrt((change**2).sum() / (9 + 25 + 4 + 2 * 1 + 4)))
    assert logits_off(model, torch.tensor(expected), torch.tensor(expected)) == 0


@pytest.mark.slow
def test_unmerged_updates_of_a_real_16_bit_model_allow_packing() -> None:
    """With them, products round differently in a long row than in short ones."""
    model: Any = load_backbone("smollm2", dtype="bfloat16").model
    names = [m.name for m in target_modules(model, LoraOptions())]
    draw = torch.Generator().manual_seed(1)
    for rank in (16, 80):
        unmerged = UnmergedUpdates(model, names)
        state = {}
        for name in names:
            out_features, in_features = model.get_submodule(name).weight.shape
            a, b = (
                torch.randn(rank, in_features, generator=draw),
                torch.randn(out_features, rank, generator=draw),
            )
            state[name] = LoraFactors(a * 1e-3, b * 1e-3, 4.0)
        unmerged.activate([state])
        assert packing_is_exact(model)
        unmerged.deactivate()


def test_16_bit_gradients_are_as_accurate_as_without_packing(tiny_model: TinyModel) -> None:
    examples = BATCHES["lengths that differ"]
    short: Any = load_backbone(str(tiny_model("llama")), dtype="bfloat16").model
    exact: Any = load(tiny_model("llama")).double()
    exact.load_state_dict(short.state_dict())
    truth = gradients(exact.requires_grad_(True), alone(exact, examples), examples)
    plain = gradients(short.requires_grad_(True), alone(short, examples), examples)
    with packed_attention(short):
        found = gradients(short, packed_logits(short, pack(examples))[0], examples)

    def error(gradients: dict[str, Tensor]) -> float:
        return sum(float((g.double() - truth[name]).square().sum()) for name, g in gradients.items()) ** 0.5

    assert 0 < error(found) < 1.2 * error(plain)


def test_windows_encoders_and_unknown_kernels_are_not_packed(tiny_model: TinyModel) -> None:
    assert not packing_is_exact(load(tiny_model("t5")))
    model = load(tiny_model("mistral"))
    assert model.config.sliding_window
    assert not packing_is_exact(model)
    model = load(tiny_model("llama"))
    model.config._attn_implementation_internal = "flash_attention_2"
    assert not packing_is_exact(model)


def test_the_last_feed_forward_layer_runs_on_predicted_tokens_only(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    seen = []
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    batch = pack(BATCHES["lengths that differ"])
    with packed_attention(model):
        packed_logits(model, batch)
    assert seen[-1] == len(batch["predict_at"]) == 6
    assert set(seen[:-1]) == {batch["input_ids"].shape[1]}


def test_the_model_is_as_it_was_afterwards(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    examples = BATCHES["one length"]
    expected, before = alone(model, examples), model.config._attn_implementation
    with pytest.raises(KeyError, match="on purpose"), packed_attention(model):
        raise KeyError("on purpose")
    assert model.config._attn_implementation == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(alone(model, examples), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_within_it_a_batch_that_is_not_packed_is_refused(tiny_model: TinyModel, family: str) -> None:
    """It must not silently get some other attention."""
    model = load(tiny_model(family))
    with packed_attention(model), pytest.raises(ValueError, match="packed batches only"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_attention_with_unsupported_arguments_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap on the scores would silently be ignored."""
    model = load(tiny_model("opt"))
    attention = model.model.decoder.layers[0].self_attn
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, **kwargs: forward(*args, **kwargs, softcap=50.0))
    with packed_attention(model), pytest.raises(NotImplementedError, match="softcap"):
        packed_logits(model, pack(BATCHES["one example"]))
    assert not packing_is_exact(model)
