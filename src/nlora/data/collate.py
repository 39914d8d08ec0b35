"""Tokenized examples -> a padded batch of tensors.

>>> Collator(pad_id=0, encoder_decoder=False)([TokenizedExample([5, 6], [7, 2]), TokenizedExample([5], [2])])["labels"]
tensor([[-100,    7,    2],
        [-100, -100,    2]])

For causal models, rows are padded on the left, so that all answers end at the right edge, and the model's head only
has to run on the last positions. (Models that allow it get packed batches instead: `nlora.data.packing`.)

    input_ids       (B, T)    each prompt, followed by its answer
    attention_mask  (B, T)    0 on padding
    labels          (B, K+1)  of the last K+1 positions: answer tokens, else -100; column 0 is always -100. Earlier
                              answers of a conversation are answer tokens, too

For encoder-decoder models, input_ids (B, T) and labels (B, K) are padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlora.data.task import TokenizedExample

IGNORED = -100
"""Label of a position that does not count in the loss, as in transformers."""


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes padded batches for one model.

    pad_id: the padding token, which the attention mask hides.
    """

    pad_id: int
    encoder_decoder: bool

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """A batch of B examples; one without answer tokens is a prompt to be answered."""
        return self._encoder_decoder(examples) if self.encoder_decoder else self._causal(examples)

    def _encoder_decoder(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        inputs = [list(e.prompt_ids) for e in examples]
        batch = {
            "input_ids": _pad(inputs, self.pad_id, left=False),
            "attention_mask": _pad([[1] * len(ids) for ids in inputs], 0, left=False),
        }
        if any(e.answer_ids for e in examples):
            batch["labels"] = _pad([list(e.answer_ids) for e in examples], IGNORED, left=False)
        return batch

    def _causal(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        rows = [[*e.prompt_ids, *e.answer_ids] for e in examples]
        return {
            "input_ids": _pad(rows, self.pad_id, left=True),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=True),
            "labels": _pad([[IGNORED, *labels_of(e)] for e in examples], IGNORED, left=True),
        }


def labels_of(example: TokenizedExample) -> list[int]:
    """The tokens from the first that counts in the loss to the end, -100 for those that do not count.

    >>> labels_of(TokenizedExample([5, 6, 7, 8], [9, 2], earlier=((1, 2),)))
    [6, -100, -100, 9, 2]
    """
    found = list(example.answer_ids)
    begin_after = len(example.prompt_ids)
    for begin, end in reversed(example.earlier):
        found = [*example.prompt_ids[begin:end], *[IGNORED] * (begin_after - end), *found]
        begin_after = begin
    return found


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Tensor:
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*f, *row] if left else [*row, *f] for row, f in zip(rows, fill, strict=True)])
