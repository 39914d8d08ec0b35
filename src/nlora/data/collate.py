"""Tokenized examples -> a padded batch of tensors.

>>> Collator(pad_id=0, encoder_decoder=False)([TokenizedExample([5, 6], [7, 2]), TokenizedExample([5], [2])])["labels"]
tensor([[-100,    7,    2],
        [-100, -100,    2]])

For causal models, rows are padded on the left, so that all answers end at the right edge, and the model's head only
has to run on the last positions. (Models that allow it get packed batches instead: `nlora.data.packing`.)

    input_ids       (B, T)    each prompt, followed by its answer
    attention_mask  (B, T)    0 on padding
    labels          (B, K+1)  of the last K+1 positions: answer tokens, else -100; column 0 is always -100

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
        answer_tokens = max(len(e.answer_ids) for e in examples)
        labels = [[IGNORED] * (answer_tokens + 1 - len(e.answer_ids)) + list(e.answer_ids) for e in examples]
        return {
            "input_ids": _pad(rows, self.pad_id, left=True),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=True),
            "labels": torch.tensor(labels),
        }


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Tensor:
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*f, *row] if left else [*row, *f] for row, f in zip(rows, fill, strict=True)])
