"""Soft prompts in training, on a frozen backbone: a chain of them before every text, or a pool to choose from.

PEFT's prompt tuning has one prompt of one length for all texts. Neither a chain that grows with the tasks nor a choice
among prompts fits in it, so these are our own (`nlora.models.soft_tokens`). They are saved as safetensors with a small
JSON file beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nlora.data.collate import IGNORED, labels_of
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import Beginnings
from nlora.data.task import TokenizedExample
from nlora.errors import AdapterError, ModelError, RunError
from nlora.models.inspection import Batch, recompute_activations, trained_parameters
from nlora.models.lora_factors import AdapterState
from nlora.models.soft_tokens import (
    SoftTokens,
    input_embedding,
    mean_embeddings,
    put_soft_tokens,
    save_soft_tokens,
    soft_tokens_of,
    vocabulary_vectors,
)

MakeBatch = Callable[[Sequence[TokenizedExample]], Batch]
ANSWER_TOKENS = "answer_tokens"
"""Key of a batch of `PromptPool`: (B,) how many tokens of each example count in the loss."""
_QUERIES = "queries"
"""Key of a batch of `PromptPool`: (B, d) what the keys are compared with."""


class SoftPrompts:
    """A chain of soft prompts before every text, the newest first; only the newest trains. Create one with `attach`.

    model: what the Trainer is given. soft: all prompts that the backbone has now.
    """

    shared: ClassVar[int | None] = None
    """How many beginning tokens a packed batch shares: None, as many as possible; see `nlora.data.packing.pack`."""

    def __init__(self, backbone: nn.Module, soft: SoftTokens) -> None:
        backbone.requires_grad_(False)
        put_soft_tokens(backbone, soft)
        self.model: Any = _Wrapped(backbone)
        self.soft = soft
        self._backbone = backbone
        self._checkpointing = False

    @classmethod
    def attach(cls, model: nn.Module, *, tokens: int, stage: int, seed: int) -> SoftPrompts:
        """Add a prompt to those that the model has. stage: at the first one, it has none, whatever was tried before.

        The prompt starts as the embeddings of random tokens of the vocabulary, which depend only on the seed.
        """
        weight = input_embedding(model).weight
        before = soft_tokens_of(model) if stage > 1 else None
        frozen = weight.new_empty(0, weight.shape[1], dtype=torch.float32)
        lengths: tuple[int, ...] = ()
        if before is not None:
            frozen, lengths = before.vectors().detach(), before.lengths
        trained = vocabulary_vectors(model, tokens, seed)
        return cls(model, SoftTokens(weight.shape[0], (*lengths, tokens), frozen, trained))

    # Batches

    def batches(self, make: MakeBatch) -> MakeBatch:
        """A collator of texts whose batches begin with the prompts. make: a collator of prompts."""
        ids = chain(self.soft, len(self.soft.lengths))
        return lambda examples: make([example.beginning_with(ids) for example in examples])

    def choose(self, batch: Batch) -> Tensor | None:
        """Settle, in place, what is open in a batch of `batches` until just before it is computed.

        Returns what is added to the batch's cross-entropy, summed over its answer tokens; None for nothing.
        """
        return None

    def begun(self, beginnings: Beginnings) -> Beginnings:
        """What texts that begin with these tokens begin with in batches of `batches`."""
        ids = chain(self.soft, len(self.soft.lengths))
        return [[*ids, *beginning] for beginning in beginnings]

    # See `nlora.models.trainable.Trainable`

    def factors(self) -> AdapterState:
        """Empty: there is no low-rank update."""
        return {}

    def state(self) -> AdapterState:
        """Empty: the prompts stay at the backbone."""
        return {}

    def load_state(self, state: AdapterState) -> None:
        """Raises AdapterError: there are no factors."""
        raise AdapterError("soft prompts have no factors to load")

    def live_tensors(self) -> dict[str, Tensor]:
        """The parameters in training, by name."""
        return dict(trained_parameters(self.soft))

    @contextmanager
    def without(self) -> Iterator[None]:
        """Raises RunError: the prompts are tokens of the batch."""
        raise RunError(
            "the method needs the model as it was before the stage, and soft prompts cannot be left out"
        )
        yield

    def commit(self, folder: Path, *, base_model: str, tokenizer: Any) -> None:
        """Write all prompts so far into the stage's folder."""
        save_soft_tokens(self.soft, folder, base_model=base_model)

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; undone by `detach`."""
        recompute_activations(self._backbone, on=True)
        self._checkpointing = True

    def detach(self) -> nn.Module:
        """Return the backbone, with its prompts, all of them frozen."""
        if self._checkpointing:
            recompute_activations(self._backbone, on=False)
            self._checkpointing = False
        self._backbone.requires_grad_(False)
        return self._backbone.eval()


class PromptPool(SoftPrompts):
    """A pool of soft prompts with keys: each text begins with those whose keys are nearest to it. All of them train.

    Nearest is the largest cosine of the key and the mean of the text's embeddings (the model's own, which are frozen).

    top_k: prompts before a text. pull: weight of the cosines of a text with the keys of its prompts, which the loss
    falls with.
    """

    shared: ClassVar[int | None] = 0

    def __init__(self, backbone: nn.Module, soft: SoftTokens, top_k: int, pull: float) -> None:
        super().__init__(backbone, soft)
        self._top_k, self._pull = top_k, pull
        if soft.keys is not None and not pull:  # without a gradient, they do not train
            soft.keys.requires_grad_(False)

    @classmethod
    def attach_pool(
        cls, model: nn.Module, *, pool: int, tokens: int, top_k: int, pull: float, stage: int, seed: int
    ) -> PromptPool:
        """Train the model's pool further, or at the first stage a new one of `pool` prompts with `tokens` tokens each.

        A new prompt starts as embeddings of random tokens of the vocabulary, which depend only on the seed, and its key
        as their mean. Raises ModelError if the model has a pool of another size.
        """
        before = soft_tokens_of(model) if stage > 1 else None
        lengths = (tokens,) * pool
        if before is None:
            vectors = vocabulary_vectors(model, pool * tokens, seed)
            keys = vectors.view(pool, tokens, -1).mean(dim=1)
        elif before.lengths != lengths or before.keys is None:
            raise ModelError(
                "the pool of prompts cannot change its size between tasks; leave pool and length out of stages"
            )
        else:
            vectors, keys = before.vectors().detach().clone(), before.keys.detach().clone()
        first_id = input_embedding(model).weight.shape[0]
        return cls(model, SoftTokens(first_id, lengths, vectors[:0], vectors, keys), top_k, pull)

    def batches(self, make: MakeBatch) -> MakeBatch:
        """A collator of texts whose batches begin with any prompts of the pool, until `choose` takes the right ones.

        A batch is made before the step that precedes its own, so its prompts are chosen later, with the keys as they
        are then.
        """
        any_prompts = self.soft.ids(range(self._top_k))

        def make_batch(examples: Sequence[TokenizedExample]) -> Batch:
            batch = make([example.beginning_with(any_prompts) for example in examples])
            counts = [sum(label != IGNORED for label in labels_of(example)) for example in examples]
            queries = mean_embeddings(self._backbone, examples)
            return {**batch, _QUERIES: queries, ANSWER_TOKENS: torch.tensor(counts)}

        return make_batch

    def begun(self, beginnings: Beginnings) -> Beginnings:
        """None: which prompts a batch's texts begin with is not known when it is packed."""
        return ()

    def choose(self, batch: Batch) -> Tensor | None:
        """Put each text's own prompts into the batch.

        Returns -pull · Σ over the texts of (answer tokens · Σ of the cosines with the keys of its prompts).
        """
        ids, soft = batch["input_ids"], self.soft
        queries, counts = (batch.pop(key).to(soft.trained.device) for key in (_QUERIES, ANSWER_TOKENS))
        cosines, prompts = soft.nearest(queries, self._top_k)
        length = soft.lengths[0]
        own = soft.first_id + prompts[..., None] * length + torch.arange(length, device=prompts.device)
        batch["input_ids"] = ids.masked_scatter(ids >= soft.first_id, own.to(ids.device))
        if not self._pull:
            return None
        pulled: Tensor = -self._pull * (cosines.sum(dim=1) * counts).sum()
        return pulled


def chain(soft: SoftTokens, count: int) -> list[int]:
    """The tokens that a text begins with if it gets the oldest `count` prompts, the newest of them first."""
    return soft.ids(reversed(range(min(count, len(soft.lengths)))))


def beginning_with_nearest(
    model: nn.Module, prompts: TokenizedExamples, soft: SoftTokens, top_k: int
) -> TokenizedExamples:
    """Each prompt with the soft prompts before it whose keys are nearest to it, the nearest first."""

    def begun() -> Iterator[TokenizedExample]:
        for prompt in prompts:
            queries = mean_embeddings(model, [prompt]).to(soft.trained.device)
            nearest = soft.nearest(queries, top_k)[1][0].tolist()
            yield prompt.beginning_with(soft.ids(nearest))

    return TokenizedExamples.of(begun())


class _Wrapped(nn.Module):
    """The backbone, for a Trainer, which takes no quantized model that is not wrapped into anything."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
