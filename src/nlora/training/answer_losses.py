"""The loss of each example alone, without dropout and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.data.collate import IGNORED, Collator, labels_of
from nlora.data.packing import pack
from nlora.models.fast_paths import default_paths
from nlora.models.inspection import Batch
from nlora.models.logits import answer_logits
from nlora.models.packed_attention import packed_attention
from nlora.models.shares import share_of

if TYPE_CHECKING:
    from nlora.data.task import TokenizedExample
    from nlora.models.backbone import Backbone
    from nlora.models.fast_paths import FastPaths

MakeBatch = Callable[[Sequence["TokenizedExample"]], Batch]
Choose = Callable[[Batch], Tensor | None]
"""What `PenalizedTrainer` calls before a micro-batch is computed."""
Loss = tuple[float, int]
"""The cross-entropy of an example, summed over its answer tokens, and the number of these."""


@torch.no_grad()
def answer_losses(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    make_batch: MakeBatch,
    choose: Choose | None = None,
) -> list[Loss]:
    """The losses of examples that share one batch. Draws no random numbers, and restores the model's mode."""
    device = next(model.parameters()).device
    batch = send_to_device(make_batch(examples), device)
    if choose is not None:
        choose(batch)
    training = model.training
    model.eval()
    try:
        logits, targets = answer_logits(model, batch)
    finally:
        model.train(training)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    tokens = [sum(label != IGNORED for label in labels_of(example)) for example in examples]
    # A packed batch has the answers of all examples in one row; a padded one, a row for each.
    rows = torch.split(losses, tokens) if "groups" in batch else losses.view(targets.shape)
    return list(zip(torch.stack([row.sum() for row in rows]).tolist(), tokens, strict=True))


def all_answer_losses(
    backbone: Backbone,
    examples: Sequence[TokenizedExample],
    lengths: Sequence[int],
    *,
    paths: FastPaths | None,
    batch_size: int,
) -> list[Loss]:
    """The losses of any number of examples, shared by the processes; each of them gets all.

    lengths: of the examples, by which they are sorted into batches. paths: as for `train`.
    """
    model = backbone.model
    paths = paths or default_paths(model)
    packs, together = paths.training == "packed", batch_size if paths.training != "single" else 1
    make_batch: MakeBatch = (
        pack if packs else Collator(backbone.tokenizer.pad_token_id, backbone.encoder_decoder)
    )
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    batches = [order[start : start + together] for start in range(0, len(order), together)]
    share = share_of(model)
    with packed_attention(model) if packs else nullcontext():
        mine = [answer_losses(model, [examples[i] for i in some], make_batch) for some in share.of(batches)]
    found: dict[int, Loss] = {}
    for some, losses in zip(batches, share.together(mine), strict=True):
        found.update(zip(some, losses, strict=True))
    return [found[i] for i in range(len(examples))]
