"""A model's answers to a task: the likeliest label of each prompt, or the text that the model generates.

`labels` scores the task's label set (`nlora.evaluation.label_scoring`); `generate` decodes greedily until the end
token (`nlora.evaluation.greedy`). Free-text tasks (no label set) are always generated. Every result says which of the
two it is, because their scores are not comparable.

Prompts are answered in batches of similar length, and each distinct prompt only once.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nlora.data.columns import TokenizedExamples
from nlora.data.task import TokenizedExample
from nlora.evaluation.choices import Decode, decode_of
from nlora.evaluation.greedy import greedy, greedy_generation, is_plain
from nlora.evaluation.label_scoring import LabelTree, label_probabilities, likeliest_labels
from nlora.evaluation.prefill import Prefiller
from nlora.models.fast_paths import FastPaths, default_paths
from nlora.models.shares import share_of

if TYPE_CHECKING:
    from torch import nn

    from nlora.config.schema import EvaluateOptions
    from nlora.data.task import Example, Task
    from nlora.data.tokenize import ExampleTokenizer
    from nlora.models.backbone import Backbone
    from nlora.models.inspection import Batch


Beginning = Callable[["nn.Module", TokenizedExamples], TokenizedExamples]
"""What a model that has soft prompts gets for given prompts (`Method.beginning`)."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers to a task's test examples, in the order of the examples.

    answer_tokens: mean length of the generated answers, end token included; None for `labels`.
    probabilities: of each of the task's labels, in their order, for each example; None unless asked for.
    guesses: the task whose model gave each answer, by name; None if no router guessed.
    """

    texts: tuple[str, ...]
    decode: Decode
    seconds: float
    batches: int
    answer_tokens: float | None = None
    probabilities: tuple[tuple[float, ...], ...] | None = None
    guesses: tuple[str, ...] | None = None


def mean_answer_tokens(parts: Iterable[Answers]) -> float | None:
    """Mean length of the generated answers of all parts; None if none was generated."""
    lengths = [(a.answer_tokens, len(a.texts)) for a in parts if a.answer_tokens is not None]
    generated = sum(number for _, number in lengths)
    return sum(mean * number for mean, number in lengths) / generated if generated else None


class _Found(NamedTuple):
    """The answer to one prompt. tokens: how many were generated, end token included."""

    text: str
    tokens: int = 0
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prompts:
    """A task's test prompts as tokens.

    groups: indices of the examples, those with the same prompt together.
    """

    rows: TokenizedExamples
    groups: list[list[int]]

    @classmethod
    def of(cls, rows: TokenizedExamples) -> _Prompts:
        groups: dict[bytes, list[int]] = {}
        for i, example in enumerate(rows):
            # Digests, because the prompts themselves may be thousands of tokens each.
            key = blake2b(array("i", example.prompt_ids), digest_size=16).digest()
            groups.setdefault(key, []).append(i)
        # Longest first, so that an out-of-memory error comes immediately.
        lengths = rows.prompt_lengths
        return cls(rows, sorted(groups.values(), key=lambda group: -lengths[group[0]]))


class Evaluator:
    """Answers tasks with one backbone; the prompts of a task are tokenized once per run.

    paths: how batches go through the model, as found by `nlora.runs.preflight.preflight`; None: `default_paths`.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: ExampleTokenizer,
        options: EvaluateOptions,
        paths: FastPaths | None = None,
    ) -> None:
        self._backbone = backbone
        self._encoder = encoder
        self._options = options
        self._paths = paths or default_paths(backbone.model)
        self._plain = is_plain(backbone.model)
        # By task; the examples tell whether another call is about the same ones.
        self._prompts: dict[str, tuple[Sequence[Example], _Prompts]] = {}

    def decode_of(self, task: Task) -> Decode:
        """How this task is answered."""
        return decode_of(task, self._options)

    @torch.inference_mode()
    def answer(
        self,
        task: Task,
        on_answered: Callable[[int], None] = lambda count: None,
        *,
        probabilities: bool = False,
        beginning: Beginning = lambda model, prompts: prompts,
    ) -> Answers:
        """The model's answers to `task.test`. Several processes share the work, and each gets all answers.

        If they share the model's weights instead (`is_sharded`), each answers everything.

        on_answered: called after each batch with its number of examples.
        probabilities: compute those of the labels too; the task must be answered by `labels`.
        beginning: gives each prompt the soft tokens before it.
        """
        begin = time.perf_counter()
        given, known = self._prompts.get(task.name, (None, None))
        if known is None or given is not task.test:
            known = _Prompts.of(self._encoder.encode(task, task.test))
            self._prompts[task.name] = task.test, known
        prompts, groups = beginning(self._backbone.model, known.rows), known.groups
        decode = self.decode_of(task)
        self._backbone.model.eval()
        respond = self._label_words(task, probabilities) if decode == "labels" else self._words(task)
        prefiller = Prefiller(
            self._backbone.model,
            prompts,
            pad_id=self._backbone.tokenizer.pad_token_id,
            packs=self._paths.prefill == "packed",
            kv_cache=self._paths.kv_cache,
        )
        size = self._options.batch_size if self._paths.prefill != "single" else 1
        share = share_of(self._backbone.model)
        mine = share.of(groups)
        found: list[_Found] = []
        for start in range(0, len(mine), size):
            some = mine[start : start + size]
            found += respond(
                prefiller, [TokenizedExample(prompts[group[0]].prompt_ids, []) for group in some]
            )
            on_answered(sum(map(len, groups[start * share.number : (start + size) * share.number])))
        answers = [_Found("")] * len(prompts)
        for group, answer in zip(groups, share.together(found), strict=True):
            for index in group:
                answers[index] = answer
        tokens = [answer.tokens for answer in answers]
        return Answers(
            tuple(answer.text for answer in answers),
            decode,
            time.perf_counter() - begin,
            batches=sum(-(-len(groups[first :: share.number]) // size) for first in range(share.number)),
            answer_tokens=sum(tokens) / len(tokens) if tokens and decode == "generate" else None,
            probabilities=tuple(answer.probabilities for answer in answers) if probabilities else None,
        )

    def _label_words(
        self, task: Task, probabilities: bool
    ) -> Callable[[Prefiller, Sequence[TokenizedExample]], list[_Found]]:
        """A function that returns each prompt's likeliest label."""
        labels = task.labels or ()
        label_ids = self._encoder.label_ids(labels, chat=task.chat)
        tree = LabelTree.build(label_ids, self._encoder.end_ids(task)[0])

        def respond(prefiller: Prefiller, prompts: Sequence[TokenizedExample]) -> list[_Found]:
            prefill = prefiller.run(prompts)
            if not probabilities:
                return [_Found(labels[i]) for i in likeliest_labels(prefill, tree).tolist()]
            rows = label_probabilities(prefill, tree).tolist()
            return [_Found(labels[row.index(max(row))], 0, tuple(row)) for row in rows]

        return respond

    def _words(self, task: Task) -> Callable[[Prefiller, Sequence[TokenizedExample]], list[_Found]]:
        """A function that returns each prompt's greedy answer."""
        end_ids = self._encoder.end_ids(task)

        def respond(prefiller: Prefiller, prompts: Sequence[TokenizedExample]) -> list[_Found]:
            answers = self._generated(prefiller, prompts, end_ids)
            lengths = [_length(ids, end_ids) for ids in answers]
            if task.chat:
                texts = [
                    self._encoder.chat.text_of(ids[:n] if ids[n - 1] not in end_ids else ids[: n - 1])
                    for ids, n in zip(answers, lengths, strict=True)
                ]
            else:
                texts = self._decoded(answers)
            return [_Found(text, n) for text, n in zip(texts, lengths, strict=True)]

        return respond

    def _decoded(self, answers: list[list[int]]) -> list[str]:
        tokenizer: Any = self._backbone.tokenizer
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _generated(
        self, prefiller: Prefiller, prompts: Sequence[TokenizedExample], end_ids: Sequence[int]
    ) -> list[list[int]]:
        """The tokens of each prompt's greedy answer, with an end token if it was reached; padding may follow."""
        if prefiller.can_continue and self._plain:
            most = self._encoder.max_target_tokens
            return greedy(prefiller.run(prompts), end_ids=end_ids, most_tokens=most)
        together = len(prompts) if self._paths.generation == "padded" else 1
        parts = [prompts[start : start + together] for start in range(0, len(prompts), together)]
        return [ids for part in parts for ids in self._generate(prefiller.batch(part), end_ids)]

    def _generate(self, batch: Batch, end_ids: Sequence[int]) -> list[list[int]]:
        """transformers' own greedy answers: they follow the model's rules, and need no cache that can continue."""
        model: Any = self._backbone.model
        output: Tensor = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=greedy_generation(
                self._backbone, most_tokens=self._encoder.max_target_tokens, end_ids=end_ids
            ),
        )
        # A causal model's output repeats the prompt; a decoder's begins with its start token.
        begin = 1 if self._backbone.encoder_decoder else batch["input_ids"].shape[1]
        return output[:, begin:].tolist()


def _length(ids: Sequence[int], end_ids: Sequence[int]) -> int:
    """Number of tokens up to and including the first end token."""
    return next((n for n, token in enumerate(ids, start=1) if token in end_ids), len(ids))
