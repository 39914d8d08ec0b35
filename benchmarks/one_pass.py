"""What transformers alone makes of each example: one plain pass, no padding, no packing, no cache.

loss = plain_loss(model, examples)
scores = plain_scores(model, prompts, tree, end=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from nlora.data.task import TokenizedExample
from nlora.evaluation.label_scoring import LabelTree


def plain_logits(model: Any, e: TokenizedExample) -> Tensor:
    """(answer tokens, V): what predicts each token of an answer, in one pass over this example alone."""
    if model.config.is_encoder_decoder:
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None:  # the model knows
            answer = {"labels": torch.tensor([e.answer_ids])}
        else:
            answer = {"decoder_input_ids": torch.tensor([[start, *e.answer_ids[:-1]]])}
        output = model(input_ids=torch.tensor([e.prompt_ids]), **answer, use_cache=False)
        return output.logits[0]  # type: ignore[no-any-return]
    ids = torch.tensor([[*e.prompt_ids, *e.answer_ids]])
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[0, len(e.prompt_ids) - 1 : -1]  # type: ignore[no-any-return]


def plain_loss(model: Any, examples: Sequence[TokenizedExample]) -> Tensor:
    """Σ of the answer tokens' cross-entropy."""
    losses = [
        F.cross_entropy(plain_logits(model, e).float(), torch.tensor(e.answer_ids), reduction="sum")
        for e in examples
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def plain_scores(model: Any, prompts: Sequence[TokenizedExample], tree: LabelTree, end: int) -> Tensor:
    """(B, labels): log P of each label, a pass for each."""

    def score(prompt: TokenizedExample, label: Sequence[int]) -> Tensor:
        logits = plain_logits(model, TokenizedExample(prompt.prompt_ids, [*label, end]))[: len(label)]
        return logits.float().log_softmax(-1)[range(len(label)), list(label)].sum()

    return torch.stack([torch.stack([score(p, label) for label in tree.labels]) for p in prompts])


@torch.no_grad()
def plain_answer(model: Any, prompt: TokenizedExample, end: int, most_tokens: int) -> tuple[list[int], float]:
    """The likeliest token after the likeliest token; and the smallest lead of one, of the largest logit."""
    answer: list[int] = []
    lead = float("inf")
    while len(answer) < most_tokens and end not in answer:
        logits = plain_logits(model, TokenizedExample(prompt.prompt_ids, [*answer, end]))[-1].float()
        top = logits.topk(2)
        lead = min(lead, float(top.values[0] - top.values[1]) / float(logits.abs().max()))
        answer.append(int(top.indices[0]))
    return answer, lead


@torch.no_grad()
def generated(model: Any, prompt: TokenizedExample, end: int, most_tokens: int) -> list[int]:
    """What `generate` answers to this prompt alone, by whatever rules the model has."""
    plan = GenerationConfig(
        max_new_tokens=most_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=0,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    begin = 1 if model.config.is_encoder_decoder else len(prompt.prompt_ids)
    ids = model.generate(input_ids=torch.tensor([prompt.prompt_ids]), generation_config=plan)
    return ids[0, begin:].tolist()  # type: ignore[no-any-return]
