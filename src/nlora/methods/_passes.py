"""Passes of whole examples through a model, several together where their tokens can stay apart.

Their common beginning is not shared, because what is measured of it belongs to each example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate.utils import send_to_device
from torch import Tensor, nn

from nlora.data.collate import Collator
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.models.inspection import is_encoder_decoder
from nlora.models.logits import answer_logits
from nlora.models.packed_attention import packed_attention, packing_is_exact

TOKENS = 512
"""The most tokens of examples that share a pass. Twice as many were not faster, and take more memory."""


def passes(model: Any, examples: Sequence[TokenizedExample]) -> list[list[TokenizedExample]]:
    """Which examples share a pass, each in one of them, by length; one each if packing is not exact for this model."""
    left = sorted(examples, key=tokens)
    ends = [TokenizedExample(e.prompt_ids, e.answer_ids) for e in (*left[:1], *left[-1:])]
    if len(left) < 2 or not packing_is_exact(model, ends):
        return [[example] for example in left]
    found: list[list[TokenizedExample]] = [[]]
    room = TOKENS
    for example in left:
        if found[-1] and tokens(example) > room:
            found.append([])
            room = TOKENS
        found[-1].append(example)
        room -= tokens(example)
    return found


def tokens(example: TokenizedExample) -> int:
    """How many tokens of it are computed: all but the last one, from which nothing is predicted."""
    return len(example.prompt_ids) + len(example.answer_ids) - 1


def answers_of(
    model: nn.Module, examples: Sequence[TokenizedExample], pad_id: int, *, every_token: bool
) -> tuple[Tensor, Tensor]:
    """`answer_logits` of examples that share a pass.

    every_token: False leaves out what no prediction needs, if there are several: an answer's last token, and in the
        last layer's feed-forward part all tokens that predict nothing.
    """
    device = next(model.parameters()).device
    if len(examples) == 1:
        batch = Collator(pad_id, is_encoder_decoder(model))(examples)
        return answer_logits(model, send_to_device(batch, device))
    if every_token:
        examples = [TokenizedExample(e.prompt_ids, [*e.answer_ids, e.answer_ids[-1]]) for e in examples]
    with packed_attention(model, skips=not every_token):
        return answer_logits(model, send_to_device(pack(examples, shared=0), device))
