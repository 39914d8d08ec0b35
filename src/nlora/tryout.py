"""A try-out before training: which ways through this model give what one plain pass gives, on the run's own texts.

    paths = try_out(backbone, [probes(task, encoder) for task in tasks], lora=config.lora)
    train(backbone, learner, examples, options, paths=paths, ...)
    Evaluator(backbone, encoder, config.evaluate, paths)

Batches are packed or padded, modules are exchanged for leaner ones, and what follows a prompt runs on its kept keys and
values. Each of these is right for the models that it was made for, and some family of models always has a part that
nobody thought of. So, before anything is trained, two real examples of each task run alone, without padding, mask or
cache, through transformers and PEFT as they are. Every other way has to give the same logits, and the same gradient of
every adapted layer. One that does not is left out, and said. What cannot be trained or scored at all is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.adapters import Adapter
from nlora.data.collate import IGNORED, Collator
from nlora.data.encode import Encoded, Encoder
from nlora.data.pack import pack
from nlora.errors import ModelError
from nlora.greedy import greedy_generation, is_plain
from nlora.lean import lean
from nlora.logits import answer_logits
from nlora.model_facts import decoder_start, logits_off, logits_tolerance
from nlora.packed import packed_attention
from nlora.paths import Paths, Rows, usual_paths
from nlora.reading import Reader

if TYPE_CHECKING:
    from nlora.backbone import Backbone
    from nlora.config import LoraOptions
    from nlora.data.base import Task

_LOOKED_AT = 256
"""Examples of a task among which the two short ones are chosen."""
_FOLLOWING = 3
"""Answer tokens that are run on a prompt's kept keys and values."""
_GRADIENT_OFF, _SHORT_GRADIENT_OFF = 1e-2, 2e-1
"""Of the norm of a layer's gradient; the second one for models of 16 bits."""
_GENERATED_OFF = 4e-2
"""Of the largest logit: state spaces compute one token in another way than many, which rounds otherwise; a wrong cache
moves the logits by several tenths."""
_SPREAD = 0.02
"""Deviation of the throw-away adapter's B: with the zeros of a fresh one, A would have no gradient."""
MODEL_RAISES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What the code of a model, of whoever's making, raises when it is asked what it cannot do."""
_log = logging.getLogger(__name__)


def probes(task: Task, encoder: Encoder) -> list[Encoded]:
    """Two short examples of a task, of two lengths where there are such; of a task with one example, that one."""
    looked_at = sorted((task.train or task.test)[:_LOOKED_AT], key=lambda example: len(example.sentence))
    longer = [e for e in looked_at if len(e.sentence) > 1.2 * len(looked_at[0].sentence)]
    return list(encoder.encode(task, [looked_at[0], *(longer or looked_at[1:])[:1]]))


def try_out(
    backbone: Backbone,
    tasks: Sequence[Sequence[Encoded]],
    *,
    lora: LoraOptions | None = None,
    needs_gradients: bool = True,
    generates: bool = False,
) -> Paths:
    """The paths of a run. Leaves the model as it was, and draws none of its random numbers.

    tasks: of each task, examples as `probes` gives them. lora: what will be trained; None: the model only answers.
    needs_gradients: whether a target that the texts do not reach is a mistake. generates: whether answers are.

    Raises ModelError where the model cannot be trained or scored in any way, or a target gets no gradient.
    """
    adapter = None if lora is None else _throw_away_adapter(backbone.model, lora)
    training = backbone.model.training
    backbone.model.eval()
    try:
        trial = _Trial(backbone, tasks, adapter)
        if adapter is not None and needs_gradients:
            trial.refuse_targets_without_gradient()
        found = usual_paths(backbone.model)
        if adapter is not None:
            found = trial.training_paths(found)
        found = trial.reading_paths(found)
        return trial.generating_paths(found) if generates else found
    finally:
        if adapter is not None:
            adapter.detach()
        backbone.model.train(training)


def _throw_away_adapter(model: nn.Module, lora: LoraOptions) -> Adapter:
    adapter = Adapter.attach(model, lora, seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=draw) * _SPREAD)
    adapter.model.eval()
    return adapter


class _Trial:
    """What plain passes give, and how far other ways are off."""

    def __init__(
        self, backbone: Backbone, tasks: Sequence[Sequence[Encoded]], adapter: Adapter | None
    ) -> None:
        self._backbone, self._tasks = backbone, [list(task) for task in tasks if task]
        self._model: Any = backbone.model if adapter is None else adapter.model
        self._device = next(backbone.model.parameters()).device
        self._collate = Collator(backbone.tokenizer.pad_token_id, backbone.encoder_decoder)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        if adapter is not None:
            self._factors = {name: (f.A, f.B) for name, f in adapter.factors().items()}
        try:
            with self._gradients(0):
                self._plain = [self._plain_logits(self._tasks[0])]
                self._plain_gradients = self._gradients_of(self._plain[0]) if self._factors else {}
            with torch.no_grad():
                self._plain = [self._plain[0].detach(), *map(self._plain_logits, self._tasks[1:])]
        except MODEL_RAISES as error:
            raise self._cannot(error) from error
        if not all(torch.isfinite(logits).all() for logits in self._plain):
            raise ModelError(f"model {backbone.name}: its logits are no finite numbers; try dtype: float32")
        self._refuse_what_sees_ahead()

    # Plain passes

    def _plain_logits(self, examples: Sequence[Encoded]) -> Tensor:
        """(N, V) logits that predict the answers' tokens, each example alone and without padding."""
        logits = []
        for e in examples:
            if self._backbone.encoder_decoder:
                ids = torch.tensor([e.prompt_ids], device=self._device)
                answer = [decoder_start(self._backbone.model), *e.answer_ids[:-1]]
                decoder = torch.tensor([answer], device=self._device)
                output = self._model(input_ids=ids, decoder_input_ids=decoder, use_cache=False)
                logits.append(output.logits[0])
            else:
                ids = torch.tensor([[*e.prompt_ids, *e.answer_ids[:-1]]], device=self._device)
                logits.append(self._model(input_ids=ids, use_cache=False).logits[0, -len(e.answer_ids) :])
        return torch.cat(logits)

    @torch.no_grad()
    def _refuse_what_sees_ahead(self) -> None:
        """Raises ModelError for a model that looks at the answer before it gives it: BERT as an encoder, for one."""
        for e, logits in zip(self._tasks[0], _by_example(self._plain[0], self._tasks[0]), strict=True):
            if len(e.answer_ids) < 2:
                continue
            # Of the same length, so that rounding is the same for all tokens before the one that is exchanged.
            *same, old, end = e.answer_ids
            new = next((token for token in e.prompt_ids if token != old), end)
            changed = self._plain_logits([Encoded(e.prompt_ids, [*same, new, end])])
            if self._differs(changed[:-1], logits[:-1]):
                raise ModelError(
                    f"model {self._backbone.name}: what {type(self._backbone.model).__name__} predicts changes with "
                    "the tokens that follow, the answer itself among them; take a causal language model (a BERT's "
                    "config.json must say is_decoder: true)"
                )

    def _gradients(self, task: int) -> Any:
        """Gradients are compared on the first task only: they cost twice a pass, and the layers are the same."""
        return torch.enable_grad() if task == 0 and self._factors else torch.no_grad()

    def _gradients_of(self, logits: Tensor) -> dict[str, Tensor]:
        """Of the summed cross-entropy of the first task's answers, one vector for each adapted layer."""
        targets = [token for e in self._tasks[0] for token in e.answer_ids]
        loss = F.cross_entropy(logits.float(), torch.tensor(targets, device=self._device), reduction="sum")
        flat = [factor for pair in self._factors.values() for factor in pair]
        found = torch.autograd.grad(loss, flat, allow_unused=True)
        return {
            name: torch.cat(
                [_or_zeros(g, f).flatten() for g, f in zip(found[2 * i :][:2], pair, strict=True)]
            )
            for i, (name, pair) in enumerate(self._factors.items())
        }

    def refuse_targets_without_gradient(self) -> None:
        """Raises ModelError for layers that no text reaches; not for one of many experts, if others are reached."""
        reached = {_kind(name) for name, gradient in self._plain_gradients.items() if gradient.any()}
        lost = [name for name in self._plain_gradients if _kind(name) not in reached]
        if lost:
            more = f" and {len(lost) - 1} more layers" if len(lost) > 1 else ""
            rest = "; name the other layers" if len(lost) < len(self._plain_gradients) else "; name others"
            raise ModelError(
                f"lora.targets: {lost[0]}{more} get no gradient from the tasks' texts, so their updates would stay 0"
                f"{rest} in lora.targets"
            )

    # Training

    def training_paths(self, usual: Paths) -> Paths:
        """The first way of training that gives the plain logits and gradients; notes on those before it."""
        rows: list[Rows] = ["packed", "padded", "single"]
        ways = [(way, leans) for way in rows[rows.index(usual.train) :] for leans in (True, False)]
        notes: list[str] = []
        for way, leans in ways:
            wrong = self._wrong(lambda way=way, leans=leans: self._training_off(way, leans))  # type: ignore[misc]
            if wrong is None:
                return replace(usual, train=way, leans=leans, notes=(*usual.notes, *notes))
            notes.append(
                f"training in {way} rows{' with leaner modules' if leans else ''} {wrong}: not taken"
            )
            _log.warning("%s", notes[-1])
        raise ModelError(f"model {self._backbone.name}: cannot be trained: {notes[-1]}")

    def _training_off(self, way: Rows, leans: bool) -> str | None:
        packed = packed_attention(self._backbone.model) if way == "packed" else nullcontext()
        with _leaner(self._model if leans else None), packed:
            for i, examples in enumerate(self._tasks):
                with self._gradients(i):
                    logits = self._batched_logits(examples, way)
                    if wrong := self._differs(logits.detach(), self._plain[i]):
                        return wrong
                    if i == 0 and (wrong := self._gradients_differ(self._gradients_of(logits))):
                        return wrong
        return None

    def _batched_logits(self, examples: Sequence[Encoded], way: Rows) -> Tensor:
        groups = [[e] for e in examples] if way == "single" else [examples]
        make: Callable[[Sequence[Encoded]], dict[str, Tensor]] = pack if way == "packed" else self._collate
        found = []
        for group in groups:
            batch = {key: value.to(self._device) for key, value in make(group).items()}
            logits, targets = answer_logits(self._model, batch)
            found.append(logits[targets != IGNORED])
        return torch.cat(found)

    def _gradients_differ(self, found: dict[str, Tensor]) -> str | None:
        short = logits_tolerance(self._backbone.model) > 1e-2
        limit = _SHORT_GRADIENT_OFF if short else _GRADIENT_OFF
        norms = {name: float(gradient.norm()) for name, gradient in self._plain_gradients.items()}
        least = 1e-3 * max(norms.values())  # rounding is all there is of smaller ones
        off = {
            n: float((g - self._plain_gradients[n]).norm()) / max(norms[n], least) for n, g in found.items()
        }
        worst = max(off, key=off.__getitem__)
        return f"moves the gradient of {worst} by {off[worst]:.2g} of it" if not off[worst] <= limit else None

    # Scoring

    def reading_paths(self, paths: Paths) -> Paths:
        """The first way of scoring that gives the plain logits; notes on those before it."""
        rows: list[Rows] = ["packed", "padded", "single"]
        ways = [(way, True) for way in rows[rows.index(paths.read) :] if paths.continues]
        ways += [("padded", False), ("single", False)]
        notes: list[str] = []
        for way, continues in ways:
            wrong = self._wrong(lambda w=way, c=continues: self._reading_off(w, c))  # type: ignore[misc]
            if wrong is None:
                return replace(paths, read=way, continues=continues, notes=(*paths.notes, *notes))
            again = "" if continues else ", whole prompts again,"
            notes.append(f"scoring in {way} rows{again} {wrong}: not taken")
            _log.warning("%s", notes[-1])
        raise ModelError(f"model {self._backbone.name}: its answers cannot be scored: {notes[-1]}")

    @torch.no_grad()
    def _reading_off(self, way: Rows, continues: bool) -> str | None:
        for examples, plain in zip(self._tasks, self._plain, strict=True):
            expected = _by_example(plain, examples)
            prompts = [Encoded(e.prompt_ids, []) for e in examples]
            reader = Reader(
                self._backbone.model,
                prompts,
                pad_id=self._collate.pad_id,
                packs=way == "packed",
                continues=continues,
            )
            order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prompt_ids))
            for some in [[i] for i in order] if way == "single" else [order]:
                count = min(_FOLLOWING, *(len(examples[i].answer_ids) for i in some)) - 1
                reading = reader.read([prompts[i] for i in some])
                logits = [reading.first[:, None]]
                tokens = torch.tensor([examples[i].answer_ids[:count] for i in some], device=self._device)
                if (
                    count and examples is self._tasks[0]
                ):  # as labels are scored: several at once, and taken back
                    reading.run(tokens)
                    reading.forget(count)
                logits += [
                    reading.run(tokens[:, d : d + 1]) for d in range(count)
                ]  # as answers are generated
                wanted = torch.stack([expected[i][: count + 1] for i in some])
                if wrong := self._differs(torch.cat(logits, dim=1), wanted):
                    return wrong
        return None

    def generating_paths(self, paths: Paths) -> Paths:
        """How prompts share a batch of `generate`, where answers are not decoded here (`nlora.greedy`)."""
        if paths.continues and is_plain(self._backbone.model):
            return paths
        ways: tuple[Rows, Rows] = ("padded", "single")
        for way in ways:
            wrong = self._wrong(lambda way=way: self._generating_off(way))  # type: ignore[misc]
            if wrong is None:
                return replace(paths, generate=way)
            _log.warning("generating in %s rows %s: not taken", way, wrong)
        raise ModelError(f"model {self._backbone.name}: its answers cannot be generated: {wrong}")

    @torch.no_grad()
    def _generating_off(self, way: Rows) -> str | None:
        """`generate` has the logits of plain passes over what it answers; its rules beyond that are the model's."""
        model: Any = self._backbone.model
        end = self._backbone.tokenizer.eos_token_id
        examples = self._tasks[0]
        for some in [[e] for e in examples] if way == "single" else [examples]:
            batch = self._collate([Encoded(e.prompt_ids, []) for e in some])
            output = model.generate(
                **{key: batch[key].to(self._device) for key in ("input_ids", "attention_mask")},
                generation_config=greedy_generation(self._backbone, most_tokens=_FOLLOWING),
                output_logits=True,
                return_dict_in_generate=True,
            )
            begin = 1 if self._backbone.encoder_decoder else batch["input_ids"].shape[1]
            found = torch.stack(output.logits, dim=1)  # (B, tokens, V)
            for e, answer, logits in zip(some, output.sequences[:, begin:].tolist(), found, strict=True):
                count = answer.index(end) + 1 if end in answer else len(answer)
                plain = self._plain_logits([Encoded(e.prompt_ids, answer[:count])])
                if wrong := self._differs(logits[:count], plain, _GENERATED_OFF):
                    return wrong
        return None

    # What is said

    def _wrong(self, attempt: Callable[[], str | None]) -> str | None:
        """What is wrong with a way; None: nothing."""
        try:
            return attempt()
        except MODEL_RAISES as error:
            return f"fails ({_first_line(error)})"

    def _differs(self, found: Tensor, expected: Tensor, at_most: float = 0.0) -> str | None:
        off = logits_off(found, expected)
        if off <= max(logits_tolerance(self._backbone.model), at_most):
            return None
        return f"moves the logits by {off:.2g} of the largest"

    def _cannot(self, error: Exception) -> ModelError:
        return ModelError(
            f"model {self._backbone.name}: transformers' {type(self._backbone.model).__name__} cannot answer a prompt "
            f"of these tasks: {_first_line(error)}"
        )


@contextmanager
def _leaner(model: nn.Module | None) -> Iterator[None]:
    undo = lean(model) if model is not None else lambda: None
    try:
        yield
    finally:
        undo()


def _by_example(logits: Tensor, examples: Sequence[Encoded]) -> tuple[Tensor, ...]:
    """The logits (N, V) of each example's own answer."""
    return torch.split(logits, [len(e.answer_ids) for e in examples])


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _kind(name: str) -> str:
    """A layer's name without its numbers: those of a block, and of an expert in it."""
    return re.sub(r"\d+", "*", name)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
