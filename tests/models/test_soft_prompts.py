"""Soft prompts: what the model computes with them, what trains, which ones a text chooses, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.config.train_options import TrainOptions
from nlora.data.collate import Collator
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.errors import AdapterError, ModelError, RunError
from nlora.methods.registry import build
from nlora.models.backbone import load_backbone
from nlora.models.logits import answer_logits
from nlora.models.packed_attention import packed_attention
from nlora.models.soft_prompts import PromptPool, SoftPrompts, beginning_with_nearest
from nlora.models.soft_tokens import (
    SoftTokens,
    input_embedding,
    load_soft_tokens,
    put_soft_tokens,
    remove_soft_tokens,
    save_soft_tokens,
    soft_tokens_of,
)
from nlora.training.trainer import train
from tiny import SAME_SUMS, load

TinyModel = Callable[[str], Path]
V, D = 400, 32  # of the tiny models
TEXTS = [
    TokenizedExample([20, 21, 22, 40, 41], [50, 1]),
    TokenizedExample([20, 21, 22, 140], [51, 60, 61, 1]),
    TokenizedExample([300, 21, 200, 310, 5, 6, 7], [52, 1]),
    TokenizedExample([20, 21, 22, 40, 41, 330], [50, 70, 1]),
]
POOL: dict[str, Any] = {"pool": 5, "tokens": 2, "top_k": 2, "pull": 0.5, "stage": 1, "seed": 1}


def pool_of(model: nn.Module, **changes: Any) -> PromptPool:
    """A pool whose keys differ enough for texts to choose differently."""
    made = PromptPool.attach_pool(model, **POOL | changes)
    with torch.no_grad():
        assert made.soft.keys is not None
        made.soft.keys.copy_(torch.randn(5, D, generator=torch.Generator().manual_seed(3)))
    return made


def embedding_weight(model: Any) -> Tensor:
    weight: Tensor = input_embedding(model).weight
    return weight


@pytest.mark.parametrize("family", ["llama", "gemma", "opt", "t5"])
def test_a_pass_with_soft_tokens_is_one_with_their_vectors_among_the_embeddings(
    tiny_model: TinyModel, family: str
) -> None:
    model = load(tiny_model(family))
    vectors = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    soft = SoftTokens(V, [3, 1], vectors[:3], vectors[3:])
    put_soft_tokens(model, soft)
    ids = [*soft.ids([1, 0]), 5, 9, 17]
    assert ids == [V + 3, V, V + 1, V + 2, 5, 9, 17]
    own = input_embedding(model)(torch.tensor([5, 9, 17]))  # some models scale them
    by_hand = torch.cat([vectors[3:], vectors[:3], own])[None]
    more = {"decoder_input_ids": torch.tensor([[0, 7]])} if family == "t5" else {}
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), **more).logits
        expected = model(inputs_embeds=by_hand, **more).logits
        assert torch.allclose(found, expected, atol=1e-5)
        remove_soft_tokens(model)
        assert soft_tokens_of(model) is None
        assert not any("soft" in name for name in model.state_dict())
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([ids]), **more)


def test_a_stage_changes_its_own_prompt_and_nothing_else(tiny_model: TinyModel, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_model("llama")))
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    options = TrainOptions(batch_size=2, epochs=1, learning_rate=0.3)
    tables = []
    for stage in (1, 2):
        prompts = SoftPrompts.attach(backbone.model, tokens=3, stage=stage, seed=stage)
        start = prompts.soft.trained.detach().clone()
        rows = [int((embedding_weight(backbone.model) == row).all(dim=1).any()) for row in start]
        assert rows == [1, 1, 1]  # it starts as embeddings of the vocabulary
        result = train(backbone, prompts, TEXTS, options, penalty=lambda: None, seed=1, folder=tmp_path)
        assert result.trained_parameters == 3 * D
        assert result.loss_before is not None
        assert result.loss_after is not None
        assert result.loss_after != result.loss_before
        prompts.detach()
        tables.append(prompts.soft.vectors())
        assert (tables[-1][-3:] != start).any(dim=1).all()
        assert not any(p.requires_grad for p in backbone.model.parameters())
    assert torch.equal(tables[1][:3], tables[0])
    remove_soft_tokens(backbone.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


def test_a_first_stage_forgets_what_was_tried_before(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    tried = SoftPrompts.attach(model, tokens=3, stage=1, seed=1)
    again = SoftPrompts.attach(model, tokens=2, stage=1, seed=1)
    assert again.soft.lengths == (2,)
    assert torch.equal(again.soft.trained, tried.soft.trained[:2])  # they depend on the seed only
    assert SoftPrompts.attach(model, tokens=4, stage=2, seed=2).soft.lengths == (2, 4)


@pytest.mark.parametrize(
    ("index", "task_id", "expected"),
    [(0, True, [0]), (1, True, [1, 0]), (3, True, [2, 1, 0]), (0, False, [2, 1, 0])],
)
def test_which_prompts_of_progprompt_answer_a_task(
    tiny_model: TinyModel, index: int, task_id: bool, expected: list[int]
) -> None:
    """The newest first; a task that is not learned yet gets all of them."""
    model = load(tiny_model("llama"))
    method = build("progprompt", {"task_id": task_id, "tokens": 2})
    prompts = TokenizedExamples.of(TEXTS)
    assert method.beginning(index, model, prompts) is prompts  # nothing is learned
    put_soft_tokens(model, SoftTokens(V, [2, 2, 2], torch.zeros(6, D), torch.zeros(0, D)))
    begun = method.beginning(index, model, prompts)
    first = [V + 2 * i + place for i in expected for place in (0, 1)]
    assert [e.prompt_ids for e in begun] == [[*first, *e.prompt_ids] for e in TEXTS]


def nearest_by_hand(model: Any, keys: Tensor, prompt: TokenizedExample, count: int) -> list[int]:
    mean = sum(embedding_weight(model)[token] for token in prompt.prompt_ids) / len(prompt.prompt_ids)
    cosines = [float(mean @ key / mean.norm() / key.norm()) for key in keys]
    return sorted(range(len(keys)), key=lambda i: -cosines[i])[:count]


@pytest.mark.parametrize(("family", "packs"), [("llama", True), ("llama", False), ("t5", False)])
def test_texts_of_a_batch_begin_with_the_prompts_that_they_choose(
    tiny_model: TinyModel, family: str, packs: bool
) -> None:
    """Chosen by hand, each text alone; the batch is made before the keys have their last values."""
    model = load(tiny_model(family))
    prompts = pool_of(model)
    collate = Collator(0, family == "t5")
    make = prompts.batches((lambda examples: pack(examples, shared=prompts.shared)) if packs else collate)
    batch = make(TEXTS)
    with torch.no_grad():
        assert prompts.soft.keys is not None
        prompts.soft.keys.mul_(-1)
    keys = prompts.soft.keys.detach()
    chosen = [nearest_by_hand(model, keys, e, 2) for e in TEXTS]
    assert len(set(map(tuple, chosen))) > 1
    begun = [
        e.beginning_with([V + 2 * i + j for i in own for j in (0, 1)])
        for e, own in zip(TEXTS, chosen, strict=True)
    ]
    assert beginning_with_nearest(model, TokenizedExamples.of(TEXTS), prompts.soft, 2) == begun
    prompts.choose(batch)
    with torch.no_grad():
        alone = [answer_logits(model, collate([e])) for e in begun]
        wanted = torch.cat([logits[targets != -100] for logits, targets in alone])
        if packs:
            with packed_attention(model):
                logits, targets = answer_logits(prompts.model, batch)
        else:
            logits, targets = answer_logits(prompts.model, batch)
    assert torch.allclose(logits[targets != -100], wanted, atol=1e-4 if SAME_SUMS or family != "t5" else 5e-4)


def test_texts_of_several_tasks_share_their_beginnings_after_the_prompts(tiny_model: TinyModel) -> None:
    """And a pool's texts, which begin with prompts of their own, share nothing."""
    model = load(tiny_model("llama"))
    tasks = [[5, 6, 7, 8], [4, 9, 9, 9]]
    texts = [TokenizedExample([*tasks[i % 2], 20 + i], [30 + i, 1]) for i in range(5)]
    pool = pool_of(model)
    assert len(pack(texts, pool.shared, pool.begun(tasks))["groups"]) == 1
    remove_soft_tokens(model)
    prompts = SoftPrompts.attach(model, tokens=3, stage=1, seed=1)
    batch = prompts.batches(partial(pack, shared=prompts.shared, beginnings=prompts.begun(tasks)))(texts)
    assert batch["input_ids"].shape[1] == 2 * (3 + 4) + 5 * 2
    padded = prompts.batches(Collator(0, encoder_decoder=False))(texts)
    with torch.no_grad():
        logits, targets = answer_logits(prompts.model, padded)
        with packed_attention(model):
            found, _ = answer_logits(prompts.model, batch)
    assert torch.allclose(found[0], logits[targets != -100], atol=1e-4)


def test_the_pull_is_the_papers_formula_and_so_is_its_gradient(tiny_model: TinyModel) -> None:
    """-pull · Σ cos(query, key), for each of an example's answer tokens once."""
    model = load(tiny_model("llama"))
    prompts = pool_of(model, pull=0.7)
    loss = prompts.choose(prompts.batches(Collator(0, encoder_decoder=False))(TEXTS))
    assert loss is not None
    assert prompts.soft.keys is not None
    (gradient,) = torch.autograd.grad(loss, prompts.soft.keys)
    keys = prompts.soft.keys.detach().clone().requires_grad_()
    by_hand = torch.zeros(())
    for e in TEXTS:
        query = embedding_weight(model)[e.prompt_ids].mean(dim=0)
        for i in nearest_by_hand(model, keys.detach(), e, 2):
            by_hand = by_hand - 0.7 * len(e.answer_ids) * F.cosine_similarity(query, keys[i], dim=0)
    by_hand.backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(loss, by_hand)
    assert torch.allclose(gradient, keys.grad, atol=1e-6)  # type: ignore[arg-type]
    assert pool_of(model, pull=0.0).choose(prompts.batches(Collator(0, encoder_decoder=False))(TEXTS)) is None


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_a_step_of_the_pool_does_not_depend_on_its_micro_batches(
    tiny_model: TinyModel, tmp_path: Path, micro: int
) -> None:
    """Plain gradient descent by hand: the mean over answer tokens of cross-entropy and pull."""
    backbone = load_backbone(str(tiny_model("llama")))
    prompts = pool_of(backbone.model)
    begun = beginning_with_nearest(backbone.model, TokenizedExamples.of(TEXTS), prompts.soft, 2)
    logits, targets = answer_logits(prompts.model, Collator(0, encoder_decoder=False)(begun))
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    pull = prompts.choose(prompts.batches(Collator(0, encoder_decoder=False))(TEXTS))
    loss = (total + pull).item() / sum(len(e.answer_ids) for e in TEXTS)
    options = TrainOptions(
        batch_size=4, micro_batch_size=micro, epochs=1, learning_rate=1e-9, logging_steps=1
    )
    train(backbone, prompts, TEXTS, options, penalty=lambda: None, seed=1, folder=tmp_path)
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"][0]["loss"]
    assert logged == pytest.approx(loss, rel=1e-4)


def test_a_pool_trains_on_and_keeps_its_size(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    first = pool_of(model)
    second = PromptPool.attach_pool(model, **POOL | {"stage": 2, "seed": 9})
    assert torch.equal(second.soft.trained, first.soft.trained)
    assert torch.equal(second.soft.keys, first.soft.keys)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="the pool of prompts cannot change its size"):
        PromptPool.attach_pool(model, **POOL | {"stage": 2, "pool": 6})


def test_files_give_the_same_prompts_back(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, other = load(tiny_model("llama")), load(tiny_model("llama"))
    for made in (pool_of(model), SoftPrompts.attach(model, tokens=3, stage=1, seed=1)):
        made.commit(tmp_path, base_model="tiny", tokenizer=None)
        load_soft_tokens(other, tmp_path)
        found = soft_tokens_of(other)
        assert found is not None
        assert found.lengths == made.soft.lengths
        assert torch.equal(found.vectors(), made.soft.vectors())
        assert (found.keys is None) == (made.soft.keys is None)
        assert found.keys is None or torch.equal(found.keys, made.soft.keys)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "soft_prompts.json").read_text()) == {
        "base_model": "tiny",
        "first_id": V,
        "lengths": [3],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("soft_prompts.safetensors", b"cut", "is broken"),
        ("soft_prompts.safetensors", None, "is missing"),
        ("soft_prompts.json", b"{}", "is broken"),
        ("soft_prompts.json", b'{"first_id": 400, "lengths": [4]}', "do not fit this model"),
        ("soft_prompts.json", b'{"first_id": 500, "lengths": [3]}', "do not fit this model"),
    ],
)
def test_files_that_are_not_as_they_were_are_one_line(
    tiny_model: TinyModel, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    model = load(tiny_model("llama"))
    SoftPrompts.attach(model, tokens=3, stage=1, seed=1).commit(tmp_path, base_model="tiny", tokenizer=None)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message) as told:
        load_soft_tokens(model, tmp_path)
    assert "\n" not in str(told.value)


def test_prompts_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    soft = SoftTokens(V, [1], torch.zeros(0, D), torch.full((1, D), torch.nan))
    with pytest.raises(AdapterError, match="not finite"):
        save_soft_tokens(soft, tmp_path, base_model="tiny")
    assert not list(tmp_path.iterdir())


def test_columns_begin_with_further_tokens_as_their_rows_do() -> None:
    conversation = TokenizedExample([20, 21, 9, 8], [50, 1], earlier=((2, 4),))
    rows = TokenizedExamples.of([*TEXTS[:2], conversation])
    begun = rows.beginning_with([7, 8])
    assert begun == [e.beginning_with([7, 8]) for e in rows]
    assert begun[2] == TokenizedExample([7, 8, 20, 21, 9, 8], [50, 1], earlier=((4, 6),))
    assert begun.shared_tokens == rows.shared_tokens + 2
