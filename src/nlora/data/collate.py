"""Encoded examples -> one batch of tensors, laid out so that only what is needed is computed.

    batch = Collator(pad_id=0, encoder_decoder=False)([TokenizedExample(prompt_ids, answer_ids), ...])

Causal models: rows are padded on the left, so that all answers end at the right edge and the model's head
needs to run on the last few positions only. (Where the model allows it, batches for training are packed instead:
`nlora.data.packing`.)

    input_ids       (B, T)    each prompt, then its answer
    attention_mask  (B, T)    0 on padding
    labels          (B, K+1)  the last K+1 positions: -100 but on answer tokens; column 0 is always -100

Encoder-decoder models: input_ids (B, T) and labels (B, K), padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlora.data.task import TokenizedExample

IGNORED = -100
"""Label of a position that takes no part in the loss (the number that transformers uses)."""


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches for one model.

    pad_id: the token that fills rows up; the mask hides it.
    """

    pad_id: int
    encoder_decoder: bool

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """Batch of B examples; an example without answer tokens is a prompt to be answered."""
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
