"""Answers of a model on tasks: the likeliest label, or what it generates.

    evaluator = Evaluator(backbone, encoder, config.evaluate, max_target_tokens=50)
    answers = evaluator.answer(task)            # Answers(texts, decode="labels", seconds=...)

`labels` scores the task's label set on its token tree in one pass over the prompt (`nlora.label_tree`);
`generate` decodes greedily until the end token. A free-text task (no label set) is always generated. Which of
the two it was is part of every result: their numbers are not to be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from nlora.data.collate import Collator
from nlora.data.encode import Encoded
from nlora.label_tree import LabelTree, likeliest_labels
from nlora.logits import Batch, prefix_is_exact

if TYPE_CHECKING:
    from nlora.backbone import Backbone
    from nlora.config import EvaluateOptions
    from nlora.data.base import Task
    from nlora.data.encode import Encoder

Decode = Literal["labels", "generate"]


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers to a task's test examples, in their order.

    answer_tokens: mean length of the generated answers, end token included; None for `labels`.
    """

    texts: tuple[str, ...]
    decode: Decode
    seconds: float
    batches: int
    answer_tokens: float | None = None


class Evaluator:
    """Answers tasks with one backbone; the prompts of a task are tokenised once per run."""

    def __init__(self, backbone: Backbone, encoder: Encoder, options: EvaluateOptions) -> None:
        self._backbone = backbone
        self._encoder = encoder
        self._options = options
        self._share_prefix = prefix_is_exact(backbone.model)
        self._prompts: dict[str, list[Encoded]] = {}

    def decode_of(self, task: Task) -> Decode:
        """How this task is answered."""
        return self._options.decode if task.labels else "generate"

    @torch.inference_mode()
    def answer(self, task: Task, on_answered: Callable[[int], None] = lambda count: None) -> Answers:
        """The model's answers to `task.test`. on_answered: called with the number of new answers per batch."""
        begin = time.perf_counter()
        prompts = self._encoded(task)
        decode = self.decode_of(task)
        respond, tokens = (self._label_batch(task), None) if decode == "labels" else self._generating()
        texts = [""] * len(prompts)
        batches = 0
        model = self._backbone.model
        model.eval()
        for indices, batch in self._batches(prompts, share_prefix=decode == "labels"):
            for index, text in zip(indices, respond(batch), strict=True):
                texts[index] = text
            batches += 1
            on_answered(len(indices))
        mean_tokens = sum(tokens) / len(tokens) if tokens else None
        return Answers(tuple(texts), decode, time.perf_counter() - begin, batches, mean_tokens)

    def _encoded(self, task: Task) -> list[Encoded]:
        if task.name not in self._prompts:
            encoded = self._encoder.encode(task, task.test)
            self._prompts[task.name] = [Encoded(e.prompt_ids, []) for e in encoded]
        return self._prompts[task.name]

    def _batches(
        self, prompts: Sequence[Encoded], *, share_prefix: bool
    ) -> Iterator[tuple[list[int], Batch]]:
        """Batches of similar length: the longest first, so that memory that will not do fails at once."""
        collate = Collator(
            self._backbone.tokenizer.pad_token_id,
            self._backbone.encoder_decoder,
            share_prefix and self._share_prefix,
        )
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prompt_ids))
        device = next(self._backbone.model.parameters()).device
        size = self._options.batch_size
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            batch = collate([prompts[i] for i in indices])
            yield indices, {key: value.to(device) for key, value in batch.items()}

    def _label_batch(self, task: Task) -> Callable[[Batch], list[str]]:
        labels = task.labels or ()
        tree = LabelTree.build(self._encoder.label_ids(labels), self._backbone.tokenizer.eos_token_id)
        model = self._backbone.model
        return lambda batch: [labels[i] for i in likeliest_labels(model, batch, tree).tolist()]

    def _generating(self) -> tuple[Callable[[Batch], list[str]], list[int]]:
        """A function that answers a batch, and the list into which it writes the answers' lengths."""
        from transformers import GenerationConfig

        tokenizer: Any = self._backbone.tokenizer
        model: Any = self._backbone.model
        lengths: list[int] = []
        plan = GenerationConfig(
            max_new_tokens=self._encoder.max_target_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )

        def respond(batch: Batch) -> list[str]:
            prompt_tokens = batch["input_ids"].shape[1]
            output: Tensor = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=plan
            )
            # A causal model repeats the prompt; a decoder begins with its start token.
            answers = output[:, 1 if self._backbone.encoder_decoder else prompt_tokens :]
            lengths.extend(_length(row, tokenizer.eos_token_id) for row in answers.tolist())
            return [
                t.strip()
                for t in tokenizer.batch_decode(
                    answers, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            ]

        return respond, lengths


def _length(ids: Sequence[int], end_id: int) -> int:
    """Tokens up to the end token, which counts."""
    return ids.index(end_id) + 1 if end_id in ids else len(ids)
