"""The model's logits at the answer tokens only.

A plain forward pass computes the head for every prompt token, and the instruction that all prompts of a task begin with
once per row. Here the head runs at the answer positions only, and a batch is packed (`nlora.models.packed_attention`)
if the model's attention allows it: the shared prefix is computed once, and there is no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nlora.data.collate import IGNORED
from nlora.models.inspection import (
    Batch,
    cache_argument,
    decoder_start,
    first_position,
    forward_parameters,
    is_encoder_decoder,
)
from nlora.models.packed_attention import packed_logits


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits that predict the answer tokens, and these tokens.

    batch: from `nlora.data.collate.Collator`, or, within `packed_attention`, from `nlora.data.packing.pack`.
    Returns logits (B, K, V) and targets (B, K), -100 where there is nothing to predict; for a packed batch, (1, N, V)
    and (1, N).
    """
    labels = batch["labels"]
    if "groups" in batch:
        return packed_logits(model, batch), labels[:, 1:]
    if is_encoder_decoder(model):
        # Not `labels`: the model would also compute its own loss, and some models then start with another token.
        begin = torch.full_like(labels[:, :1], decoder_start(model))
        answers = torch.where(labels == IGNORED, begin, labels)
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=torch.cat([begin, answers[:, :-1]], dim=1),
            use_cache=False,
        )
        return output.logits, labels
    output = causal_forward(model, batch, keep=labels.shape[1], use_cache=False)
    # The logits of a position predict the token after it.
    return output.logits[:, :-1], labels[:, 1:]


def causal_forward(
    model: nn.Module,
    batch: Batch,
    *,
    keep: int,
    use_cache: bool,
    cache: Any = None,
    before: Tensor | None = None,
) -> Any:
    """One forward pass of a causal model, with logits (B, keep, V) at the last `keep` positions only.

    cache, before: the cache of the tokens that precede the rows, and their mask, (B, P).
    """
    mask = batch["attention_mask"]
    rows = {"input_ids": batch["input_ids"], "attention_mask": mask}
    if before is not None:
        rows[cache_argument(model)] = cache
        rows["attention_mask"] = torch.cat([before, mask], dim=1)
    if "position_ids" in forward_parameters(model):
        rows["position_ids"] = positions(mask) + first_position(model)
        if before is not None:
            rows["position_ids"] = rows["position_ids"] + before.sum(dim=1, keepdim=True)
    output = model(
        **rows, use_cache=use_cache or before is not None, **keep_logits(model, batch["input_ids"], keep)
    )
    if output.logits.shape[1] > keep:
        output.logits = output.logits[:, -keep:]
    return output


def positions(attention_mask: Tensor) -> Tensor:
    """The position of each token in its own row, 0 for padding on the left. attention_mask: (B, T).

    >>> positions(torch.tensor([[0, 0, 1, 1, 1]]))
    tensor([[0, 0, 0, 1, 2]])
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def keep_logits(model: nn.Module, input_ids: Tensor, keep: int) -> dict[str, Tensor]:
    """`logits_to_keep` for the last positions; empty if the model does not support it and the caller must slice.

    Given as indices: with a number, the model would slice its hidden states, and the head's product on a slice that is
    not contiguous runs row by row, many times slower.
    """
    if "logits_to_keep" not in forward_parameters(model):
        return {}
    length = input_ids.shape[1]
    return {"logits_to_keep": torch.arange(length - keep, length, device=input_ids.device)}
