"""The preflight check: which fast paths through the model give the numbers of a plain pass, on the run's own texts.

Batches are packed or padded, modules are swapped for faster ones, and keys and values are cached. Each of these is
exact for the models it was written for, but there is always some family of models with a part that nobody anticipated.
So before anything is trained, two real examples of each task run alone, without padding, mask or cache, through
unmodified transformers and PEFT. Every fast path must give the same logits, and the same gradient of every adapted
layer. A path that does not is not used, and the run says so. A model that no path can train or score is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from nlora.data.collate import IGNORED, Collator
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import ModelError, with_class
from nlora.evaluation.greedy import greedy_generation, is_plain
from nlora.evaluation.prefill import Prefiller
from nlora.models.fast_paths import FastPaths, Rows, default_paths
from nlora.models.inspection import MODEL_RAISES, Batch
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.packed_attention import packed_attention
from nlora.models.soft_tokens import remove_soft_tokens
from nlora.runs.reference_passes import ReferencePasses
from nlora.training.fast_modules import fast_modules

if TYPE_CHECKING:
    from nlora.config.schema import LoraOptions
    from nlora.data.task import Task
    from nlora.methods.base import Method
    from nlora.models.backbone import Backbone
    from nlora.models.trainable import Trainable

_LOOKED_AT = 256
"""The two short examples of a task are chosen among this many."""
_TOGETHER = 8
"""Examples per batch: as many as fit on any machine that can train the model."""
_FOLLOWING = 3
"""Answer tokens that run on a prompt's cached keys and values."""
_GENERATED_OFF = 4e-2
"""Tolerance of `logits_off`. State-space models compute a single token in another way than a sequence,
which rounds differently; a wrong cache moves the logits by several tenths."""
_SPREAD = 0.02
"""Standard deviation of the temporary adapter's B. With a fresh adapter's B = 0, A would have no gradient."""
_log = logging.getLogger(__name__)


def probes(task: Task, encoder: ExampleTokenizer) -> list[TokenizedExample]:
    """Two short examples of a task, of different lengths if possible; if the task has only one example, that one."""
    looked_at = sorted((task.train or task.test)[:_LOOKED_AT], key=lambda example: len(example.sentence))
    if not looked_at:  # an adapter from elsewhere, without examples
        return []
    longer = [e for e in looked_at if len(e.sentence) > 1.2 * len(looked_at[0].sentence)]
    return list(encoder.encode(task, [looked_at[0], *(longer or looked_at[1:])[:1]]))


def preflight(
    backbone: Backbone,
    tasks: Sequence[Sequence[TokenizedExample]],
    *,
    lora: LoraOptions | None = None,
    method: Method | None = None,
    needs_gradients: bool = True,
    generates: bool = False,
    longest: int = 0,
) -> FastPaths:
    """The paths that a run may use. The model and the global random state are left unchanged.

    tasks: for each task, its examples from `probes`. lora: what will be trained; None if the model only answers.
    method: if it trains soft prompts, these are tried instead of an adapter.
    needs_gradients: whether a target module that gets no gradient is an error. generates: whether answers
        are generated. longest: as for `default_paths`.

    Raises ModelError if no path can train or score the model, or a target module gets no gradient.
    """
    if not any(
        tasks
    ):  # adapters from elsewhere only, none with test examples: nothing is trained or answered
        return default_paths(backbone.model)
    training, adapter = backbone.model.training, None
    prompts = method if method is not None and method.trains == "prompts" else None
    if prompts is not None and generates:
        _refuse_rules_on_prompts(backbone)
    try:
        if lora is not None:
            adapter = _temporary_adapter(backbone.model, lora, prompts)
            if prompts is not None:
                tasks = [prompts.beginning(0, backbone.model, TokenizedExamples.of(task)) for task in tasks]
        backbone.model.eval()
        reference = ReferencePasses(backbone, _batches(tasks), adapter)
        if adapter is not None and needs_gradients:
            reference.refuse_targets_without_gradient()
        comparison = _Comparison(reference, generates)
        found = comparison.generating_paths(
            comparison.reading_paths(default_paths(backbone.model, untried=True, longest=longest))
        )
        return found if adapter is None else comparison.training_paths(found)
    finally:
        if adapter is not None:
            adapter.detach()
            if prompts is not None:
                remove_soft_tokens(backbone.model)
        backbone.model.train(training)


def _batches(tasks: Sequence[Sequence[TokenizedExample]]) -> list[list[TokenizedExample]]:
    """The first task's examples, then those of all others together: a slightly larger batch costs little more."""
    first, *others = [list(task) for task in tasks if task]
    rest = [example for task in others for example in task]
    return [first, *(rest[i : i + _TOGETHER] for i in range(0, len(rest), _TOGETHER))]


def _temporary_adapter(model: nn.Module, lora: LoraOptions, prompts: Method | None) -> Trainable:
    """An adapter, or the prompts of a method's first stage."""
    if prompts is not None:
        trainable = prompts.attach(model, lora, stage=1, seed=0)
        trainable.model.eval()
        return trainable
    adapter = LoraAdapter.attach(model, lora, seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=draw) * _SPREAD)
    adapter.model.eval()
    return adapter


def _refuse_rules_on_prompts(backbone: Backbone) -> None:
    """Raise ModelError for a causal model whose rules of generation look at a prompt's tokens."""
    if not backbone.encoder_decoder and not is_plain(backbone.model):
        raise ModelError(
            f"model {backbone.name}: its generation_config.json has rules for the tokens of a text, such as a "
            "repetition_penalty, and soft prompts are no such tokens; remove them there, or set evaluate.decode=labels"
        )


class _Comparison:
    """How far fast paths are off the reference passes."""

    def __init__(self, reference: ReferencePasses, generates: bool) -> None:
        self._reference, self._backbone, self._batches = reference, reference.backbone, reference.batches
        self._device, self._generates = reference.device, generates
        self._collate = Collator(
            reference.backbone.tokenizer.pad_token_id, reference.backbone.encoder_decoder
        )

    # Scoring

    def reading_paths(self, paths: FastPaths) -> FastPaths:
        """The first way of scoring with the reference logits, and notes on the ways before it."""
        rows: list[Rows] = ["packed", "padded", "single"]
        ways = [(way, True) for way in rows[rows.index(paths.prefill) :] if paths.kv_cache]
        ways += [("padded", False), ("single", False)]
        notes: list[str] = []
        for way, kv_cache in ways:
            wrong = self._wrong(lambda w=way, c=kv_cache: self._reading_off(w, c))  # type: ignore[misc]
            if wrong is None:
                return replace(paths, prefill=way, kv_cache=kv_cache, notes=(*paths.notes, *notes))
            again = "" if kv_cache else " without a cache"
            notes.append(f"scoring in {way} rows{again} {wrong}; not used")
            _log.warning("%s", notes[-1])
        self._reference.refuse_what_sees_ahead()  # the most common reason
        raise ModelError(f"model {self._backbone.name}: its answers cannot be scored: {notes[-1]}")

    @torch.no_grad()
    def _reading_off(self, way: Rows, kv_cache: bool) -> str | None:
        for number, examples in enumerate(self._batches):
            # The end token does not count in a label's score, but the first batch includes it.
            unscored = int(number > 0 and not self._generates)
            expected = self._reference.by_example(number)
            prompts = [TokenizedExample(e.prompt_ids, []) for e in examples]
            prefiller = Prefiller(
                self._backbone.model,
                prompts,
                pad_id=self._collate.pad_id,
                packs=way == "packed",
                kv_cache=kv_cache,
            )
            order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prompt_ids))
            found: list[Tensor] = []
            wanted: list[Tensor] = []
            for some in [[i] for i in order] if way == "single" else [order]:
                count = max(min(_FOLLOWING, *(len(examples[i].answer_ids) - unscored for i in some)) - 1, 0)
                prefill = prefiller.run([prompts[i] for i in some])
                tokens = torch.tensor([examples[i].answer_ids[:count] for i in some], device=self._device)
                logits = [prefill.next_logits[:, None]]
                if count:  # as labels are scored
                    logits.append(prefill.extend(tokens))
                ways = [torch.cat(logits, dim=1)]
                if count and number == 0 and self._generates:
                    # Rolled back, then token by token, as answers are generated.
                    prefill.rollback(count)
                    logits[1:] = [prefill.extend(tokens[:, d : d + 1]) for d in range(count)]
                    ways.append(torch.cat(logits, dim=1))
                found += [logits.flatten(0, 1) for logits in ways]
                wanted += [expected[i][: count + 1] for _ in ways for i in some]
            if wrong := self._reference.differs(torch.cat(found), torch.cat(wanted)):
                return wrong
        return None

    def generating_paths(self, paths: FastPaths) -> FastPaths:
        """How prompts share a batch of `generate`, if answers are not decoded by `nlora.evaluation.greedy`."""
        if not self._generates or (paths.kv_cache and is_plain(self._backbone.model)):
            return paths
        ways: list[Rows] = ["padded", "single"]
        for way in ways[ways.index(paths.generation) :]:
            wrong = self._wrong(lambda way=way: self._generating_off(way))  # type: ignore[misc]
            if wrong is None:
                return replace(paths, generation=way)
            _log.warning("generating in %s rows %s; not used", way, wrong)
        raise ModelError(f"model {self._backbone.name}: its answers cannot be generated: {wrong}")

    @torch.no_grad()
    def _generating_off(self, way: Rows) -> str | None:
        """Whether `generate` has the reference logits along its own answer. Its further rules are the model's."""
        model: Any = self._backbone.model
        end = self._backbone.tokenizer.eos_token_id
        examples = self._batches[0]
        found: list[Tensor] = []
        wanted: list[Tensor] = []
        for some in [[e] for e in examples] if way == "single" else [examples]:
            batch = self._collate([TokenizedExample(e.prompt_ids, []) for e in some])
            options = greedy_generation(self._backbone, most_tokens=_FOLLOWING)
            options.output_logits = options.return_dict_in_generate = True
            output = model.generate(
                **{key: batch[key].to(self._device) for key in ("input_ids", "attention_mask")},
                generation_config=options,
            )
            begin = 1 if self._backbone.encoder_decoder else batch["input_ids"].shape[1]
            rows = torch.stack(output.logits, dim=1)  # (B, tokens, V)
            for e, answer, logits in zip(some, output.sequences[:, begin:].tolist(), rows, strict=True):
                count = answer.index(end) + 1 if end in answer else len(answer)
                found.append(logits[:count])
                wanted.append(self._reference.logits_of([TokenizedExample(e.prompt_ids, answer[:count])]))
        return self._reference.differs(torch.cat(found), torch.cat(wanted), _GENERATED_OFF)

    # Training

    def training_paths(self, default: FastPaths) -> FastPaths:
        """The first way of training with the reference logits and gradients, and notes on the ways before it."""
        rows: list[Rows] = ["packed", "padded", "single"]
        ways = [(way, faster) for way in rows[rows.index(default.training) :] for faster in (True, False)]
        notes: list[str] = []
        for way, faster in ways:
            # If scoring has checked all batches packed, the first is enough to check layers and swapped modules.
            batches = self._batches[:1] if way == default.prefill == "packed" else self._batches
            wrong = self._wrong(lambda w=way, m=faster, b=batches: self._training_off(w, m, b))  # type: ignore[misc]
            if wrong is None:
                return replace(default, training=way, fast_modules=faster, notes=(*default.notes, *notes))
            notes.append(
                f"training in {way} rows{' with faster modules' if faster else ''} {wrong}; not used"
            )
            _log.warning("%s", notes[-1])
        self._reference.refuse_what_sees_ahead()  # the most common reason
        raise ModelError(f"model {self._backbone.name}: cannot be trained: {notes[-1]}")

    def _training_off(
        self, way: Rows, faster: bool, batches: Sequence[Sequence[TokenizedExample]]
    ) -> str | None:
        packed = packed_attention(self._backbone.model) if way == "packed" else nullcontext()
        reference = self._reference
        with fast_modules(reference.model) if faster else nullcontext(), packed:
            for i, examples in enumerate(batches):
                with reference.gradients_of_batch(i):
                    logits = self._batched_logits(examples, way)
                    wrong = reference.differs(logits.detach(), reference.logits[i])
                    if wrong is None and i == 0:
                        wrong = reference.gradients_differ(reference.gradients_at(logits))
                    if wrong is not None:
                        return wrong
        return None

    def _batched_logits(self, examples: Sequence[TokenizedExample], way: Rows) -> Tensor:
        groups = [[e] for e in examples] if way == "single" else [examples]
        make: Callable[[Sequence[TokenizedExample]], Batch] = pack if way == "packed" else self._collate
        found = []
        for group in groups:
            batch = send_to_device(make(group), self._device)
            logits, targets = answer_logits(self._reference.model, batch)
            found.append(logits[targets != IGNORED])
        return torch.cat(found)

    def _wrong(self, attempt: Callable[[], str | None]) -> str | None:
        """What is wrong with a path; None if nothing."""
        try:
            return attempt()
        except MODEL_RAISES as error:
            return f"fails ({with_class(error)})"
