"""What a text looks like to a model: the mean over its tokens of the last layer's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlora.data.collate import Collator
from nlora.data.task import TokenizedExample
from nlora.models.inspection import (
    MODEL_RAISES,
    first_position,
    forward_parameters,
    logits_off,
    logits_tolerance,
)
from nlora.models.logits import positions
from nlora.models.shares import share_of

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone

Features = NDArray[np.float32]
"""(N, d): a row for each text."""


@torch.inference_mode()
def mean_hidden_states(backbone: Backbone, texts: Sequence[Sequence[int]], batch_size: int) -> Features:
    """The mean hidden state of each text, (N, d). Several processes share the work, and each gets all rows.

    texts: the ids of each, one at least. An encoder-decoder model reads them with its encoder. batch_size: texts per
    forward pass; where padding would change the result, each text has a pass of its own.
    """
    backbone.model.eval()
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # batches of similar lengths
    share = share_of(backbone.model)
    mine = [texts[i] for i in share.of(order)]
    size = batch_size if batch_size == 1 or _padding_is_exact(backbone, mine) else 1
    found: list[Features] = []
    for start in range(0, len(mine), size):
        found += list(_means(backbone, mine[start : start + size]).cpu().numpy())
    rows = dict(zip(order, share.together(found), strict=True))
    return np.stack([rows[i] for i in range(len(texts))])


def _padding_is_exact(backbone: Backbone, texts: Sequence[Sequence[int]]) -> bool:
    """Whether the shortest text, beside the longest, gets what it gets alone. texts: the longest first."""
    if not texts or len(texts[0]) == len(texts[-1]):
        return True
    try:
        padded, alone = _means(backbone, [texts[0], texts[-1]])[1], _means(backbone, texts[-1:])[0]
        off = logits_off(backbone.model, padded, alone)
    except MODEL_RAISES:
        return False
    return off <= logits_tolerance(backbone.model)


def _means(backbone: Backbone, texts: Sequence[Sequence[int]]) -> Tensor:
    """(B, d) in float32: the mean over the tokens of each text, without padding."""
    model: Any = backbone.model
    collate = Collator(backbone.tokenizer.pad_token_id, backbone.encoder_decoder)
    batch = collate([TokenizedExample(list(ids), []) for ids in texts])
    device = next(model.parameters()).device
    given = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    mask = given["attention_mask"]
    if backbone.encoder_decoder:
        states = model.get_encoder()(**given)[0]
    else:
        if "position_ids" in forward_parameters(model):
            given["position_ids"] = positions(mask) + first_position(model)
        states = model.base_model(**given, use_cache=False)[0]  # without the head
    kept = mask[..., None]
    return states.float().mul(kept).sum(dim=1) / kept.sum(dim=1)  # type: ignore[no-any-return]
