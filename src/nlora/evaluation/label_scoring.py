"""The likeliest label of a set, found in one pass over the prompt and, for most prompts, at most one short pass more.

A label's score is log P(its tokens | prompt) = Σ_d log p(token_d | prompt, tokens before it). The pass over the
prompt gives the probabilities of all first tokens. They are upper bounds of the scores, since each further token can
only lower a score. Each row then runs, on its prompt's cache, the remaining tokens of the label with the largest
bound, which also lowers the bounds of all labels that share a prefix with it. As soon as the label with the largest
bound is scored completely, it is the likeliest.

If one label's tokens begin another's ("B" and "Bad"), all labels are scored with the end token; otherwise the
shorter one would always win.

>>> LabelTree.build([[5], [5, 7]], end_id=1).labels
((5, 1), (5, 7, 1))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlora.evaluation.prefill import Prefill, prefill_batch
from nlora.models.inspection import Batch

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """The labels as sequences of tokens, of which none begins another.

    labels: token ids per label, in the order of the label set.
    """

    labels: tuple[Tokens, ...]

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
        prefixes = {label[:depth] for label in labels for depth in range(1, len(label))}
        if prefixes & set(labels):
            labels = [(*label, end_id) for label in labels]
        return cls(tuple(labels))

    def padded(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The labels' tokens, padded with zeros, (L, D), and the number of each label's tokens, (L,)."""
        longest = max(map(len, self.labels))
        tokens = [[*label, *[0] * (longest - len(label))] for label in self.labels]
        return torch.tensor(tokens, device=device), torch.tensor([*map(len, self.labels)], device=device)


@torch.no_grad()
def label_scores(model: nn.Module, batch: Batch, tree: LabelTree) -> Tensor:
    """log P(label | prompt), shape (B, number of labels), float32. batch: prompts without answers."""
    return _scores(prefill_batch(model, batch), tree, all_labels=True)


@torch.no_grad()
def label_probabilities(prefill: Prefill, tree: LabelTree) -> Tensor:
    """Probability of each label among the labels, shape (B, number of labels): the softmax of their scores.

    Removes rows from the prefill.
    """
    return _scores(prefill, tree, all_labels=True).double().softmax(1)


@torch.no_grad()
def likeliest_labels(prefill: Prefill, tree: LabelTree) -> Tensor:
    """Index of the likeliest label per row, shape (B,). Removes rows from the prefill."""
    return _scores(prefill, tree, all_labels=False).argmax(1)


def _scores(prefill: Prefill, tree: LabelTree, *, all_labels: bool) -> Tensor:
    """The labels' scores, (B, L); without all_labels, only each row's largest is exact, and the others are bounds."""
    tokens, lengths = tree.padded(prefill.next_logits.device)  # (L, D), (L,)
    scores = prefill.next_logits.float().log_softmax(-1)[:, tokens[:, 0]]  # (B, L)
    scored = torch.ones_like(scores, dtype=torch.long)  # (B, L), number of tokens in each score
    while True:
        is_partial = scored < lengths  # (B, L)
        chosen = is_partial.int().argmax(1) if all_labels else scores.argmax(1)  # (B,)
        continues = is_partial.gather(1, chosen[:, None])[:, 0].tolist()
        # The last token of a label is predicted, but never run.
        paths = {row: tree.labels[label][:-1] for row, label in enumerate(chosen.tolist()) if continues[row]}
        if not paths:
            return scores
        log_p = _run(prefill, paths)  # (B', longest path, V)
        rows = torch.tensor(prefill.rows, device=scores.device)
        predicted_by = {path: _predicted(tokens, lengths, path) for path in set(paths.values())}
        predicted = torch.stack([predicted_by[paths[row]] for row in prefill.rows])  # (B', L)
        for depth in range(1, log_p.shape[1] + 1):
            is_new = (scored[rows] <= depth) & (depth < predicted)
            scores[rows] += torch.where(is_new, log_p[:, depth - 1][:, tokens[:, depth]], 0.0)
        scored[rows] = scored[rows].maximum(predicted)


def _run(prefill: Prefill, paths: Mapping[int, Tokens]) -> Tensor:
    """Log-probabilities after each token of the rows' paths, (B', longest path, V); rows without a path leave."""
    if len(paths) < len(prefill.rows):
        prefill.select_rows([place for place, row in enumerate(prefill.rows) if row in paths])
    longest = max(map(len, paths.values()))
    # Padding follows a shorter path, so nothing on the path depends on it.
    padded = [[*paths[row], *[0] * (longest - len(paths[row]))] for row in prefill.rows]
    log_p = prefill.extend(torch.tensor(padded, device=prefill.next_logits.device)).float().log_softmax(-1)
    prefill.rollback(longest)
    return log_p


def _predicted(tokens: Tensor, lengths: Tensor, path: Tokens) -> Tensor:
    """How many tokens of each label are predicted along a path, (L,): the common prefix and one more."""
    same = tokens[:, : len(path)] == torch.tensor(path, device=tokens.device)  # (L, len(path))
    return (same.int().cumprod(1).sum(1) + 1).minimum(lengths)
