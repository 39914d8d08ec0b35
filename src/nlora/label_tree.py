"""The likeliest label of a set, found on the tree of the labels' tokens in one pass over the prompt.

    tree = LabelTree.build(encoder.label_ids(labels), end_id=tokenizer.eos_token_id)
    best = likeliest_labels(model, batch, tree)          # (B,) index of the label

A label's score is log P(its tokens | prompt) = Σ_d log p(token_d | prompt, tokens before it). The prompt's
pass gives all first tokens. What is left are the inner nodes of the tree: each longest path of inner nodes is
run once on the prompt's cache, which is then cut back. A path is left out when no row of the batch could
still prefer a label on it, since a score only falls along a path: the answer stays exact.

Where one label's tokens begin another's ("B" and "Bad"), every label is taken with the end token, without
which the shorter one could never lose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlora.logits import (
    Batch,
    causal_forward,
    forward_parameters,
    is_encoder_decoder,
    keep_logits,
    positions,
)

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """The labels as token paths from the root.

    labels: token ids per label, in the order of the label set.
    feeds: the longest paths of inner nodes; running them gives the logits at every inner node.
    """

    labels: tuple[Path, ...]
    feeds: tuple[Path, ...]

    @classmethod
    def build(cls, label_ids: Sequence[Sequence[int]], end_id: int) -> LabelTree:
        """label_ids: at least one token each. Raises ValueError when two labels have the same tokens."""
        labels = [tuple(ids) for ids in label_ids]
        if not all(labels):
            raise ValueError("a label without tokens cannot be scored")
        if len(set(labels)) < len(labels):
            double = next(label for label in labels if labels.count(label) > 1)
            raise ValueError(
                f"labels {labels.index(double) + 1} and another have the same tokens {list(double)}"
            )
        inner = {label[:depth] for label in labels for depth in range(1, len(label))}
        if inner & set(labels):
            labels = [(*label, end_id) for label in labels]
            inner = {label[:depth] for label in labels for depth in range(1, len(label))}
        feeds = [node for node in inner if not any(other[: len(node)] == node for other in inner - {node})]
        return cls(tuple(labels), tuple(sorted(feeds)))


@torch.no_grad()
def label_scores(model: nn.Module, batch: Batch, tree: LabelTree, *, prune: bool = False) -> Tensor:
    """log P(label | prompt), shape (B, number of labels), float32.

    batch: prompts without answers. prune: leave out paths that cannot win in any row; the scores of their
    labels are then upper bounds, and only the largest of a row is exact.
    """
    first, extend = _prompt_pass(model, batch)
    root = first.float().log_softmax(-1)  # (B, V)
    scores = root[:, [label[0] for label in tree.labels]].clone()  # (B, L)
    done = torch.tensor([len(label) == 1 for label in tree.labels], device=scores.device)  # (L,)
    for feed in tree.feeds:
        below = [i for i, label in enumerate(tree.labels) if not done[i] and _inner_on(label, feed)]
        if prune and done.any() and (scores[:, below] < scores[:, done].amax(1, keepdim=True)).all():
            continue
        log_p = extend(feed).float().log_softmax(-1)  # (B, len(feed), V)
        for i in below:
            label = tree.labels[i]
            for depth in range(1, len(label)):
                scores[:, i] += log_p[:, depth - 1, label[depth]]
            done[i] = True
    return scores


def likeliest_labels(model: nn.Module, batch: Batch, tree: LabelTree) -> Tensor:
    """Index of the likeliest label per row, shape (B,)."""
    return label_scores(model, batch, tree, prune=True).argmax(1)


def _inner_on(label: Path, feed: Path) -> bool:
    """Whether all inner nodes of the label lie on the path."""
    inner = label[:-1]
    return feed[: len(inner)] == inner


def _prompt_pass(model: nn.Module, batch: Batch) -> tuple[Tensor, Callable[[Path], Tensor]]:
    """Logits (B, V) of the first answer token, and a function that gives those along a path, (B, n, V)."""
    if is_encoder_decoder(model):
        return _encoder_decoder_pass(model, batch)
    output = causal_forward(model, batch, keep=1, use_cache=True)
    cache = output.past_key_values
    if not _can_cut_back(cache):
        return output.logits[:, -1], lambda path: _whole_pass(model, batch, path)
    mask = batch["attention_mask"]
    prefix_tokens = batch["prefix_ids"].shape[1] if "prefix_ids" in batch else 0
    whole_mask = torch.cat([mask.new_ones(len(mask), prefix_tokens), mask], dim=1)

    def extend(path: Path) -> Tensor:
        tokens = torch.tensor([path], device=mask.device).expand(len(mask), -1)
        inputs: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": torch.cat([whole_mask, torch.ones_like(tokens)], dim=1),
            "past_key_values": cache,
        }
        if "position_ids" in forward_parameters(model):
            after = positions(whole_mask)[:, -1:] + 1
            inputs["position_ids"] = after + torch.arange(len(path), device=mask.device)
        logits = model(**inputs, use_cache=True, **keep_logits(model, tokens, len(path))).logits
        cache.crop(-len(path))
        return logits[:, -len(path) :]  # type: ignore[no-any-return]

    return output.logits[:, -1], extend


def _whole_pass(model: nn.Module, batch: Batch, path: Path) -> Tensor:
    """Prompt and path in one pass: for caches that cannot be cut back (sliding windows, state spaces)."""
    tokens = torch.tensor([path], device=batch["input_ids"].device).expand(len(batch["input_ids"]), -1)
    longer = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], tokens], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(tokens)], dim=1),
    }
    return causal_forward(model, longer, keep=len(path), use_cache=False).logits  # type: ignore[no-any-return]


def _encoder_decoder_pass(model: Any, batch: Batch) -> tuple[Tensor, Callable[[Path], Tensor]]:
    encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    rows = len(batch["input_ids"])
    start = torch.full((rows, 1), model.config.decoder_start_token_id, device=batch["input_ids"].device)
    common = {"encoder_outputs": encoded, "attention_mask": batch["attention_mask"], "use_cache": True}
    output = model(**common, decoder_input_ids=start)
    cache = output.past_key_values

    def extend(path: Path) -> Tensor:
        tokens = torch.tensor([path], device=start.device).expand(rows, -1)
        logits = model(**common, decoder_input_ids=tokens, past_key_values=cache).logits
        cache.crop(-len(path))
        return logits  # type: ignore[no-any-return]

    return output.logits[:, -1], extend


def _can_cut_back(cache: Any) -> bool:
    return bool(getattr(cache, "is_croppable", False)) and not any(cache.is_sliding)
