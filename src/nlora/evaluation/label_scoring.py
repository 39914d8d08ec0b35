"""The likeliest label of a set, found on the tree of the labels' tokens in one pass over the prompt.

    tree = LabelTree.build(encoder.label_ids(labels), end_id=tokenizer.eos_token_id)
    best = likeliest_labels(prefiller.run(prompts), tree)          # (B,) index of the label

A label's score is log P(its tokens | prompt) = Σ_d log p(token_d | prompt, tokens before it). The prompt's
pass gives all first tokens, and with them a bound of every score, since a score only falls along a path. Each row
then runs, on its prompt's cache, the rest of the label that leads. That lowers the bounds of all labels that begin
like it, too. When the leading label's score is complete, the answer is exact; most rows run one short path or none.

Where one label's tokens begin another's ("B" and "Bad"), every label is taken with the end token, without
which the shorter one could never lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlora.evaluation.prefill import Prefill, prefill_batch
from nlora.models.inspection import Batch

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """The labels as token paths from the root.

    labels: token ids per label, in the order of the label set.
    """

    labels: tuple[Path, ...]

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
        if inner & set(labels):  # a label ends at an inner node
            labels = [(*label, end_id) for label in labels]
        return cls(tuple(labels))

    def padded(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The labels' tokens, filled up with zeros, (L, D), and how many each has, (L,)."""
        longest = max(map(len, self.labels))
        words = [[*label, *[0] * (longest - len(label))] for label in self.labels]
        return torch.tensor(words, device=device), torch.tensor([*map(len, self.labels)], device=device)


@torch.no_grad()
def label_scores(model: nn.Module, batch: Batch, tree: LabelTree) -> Tensor:
    """log P(label | prompt), shape (B, number of labels), float32. batch: prompts without answers."""
    return _scores(prefill_batch(model, batch), tree, all_labels=True)


@torch.no_grad()
def likeliest_labels(prefill: Prefill, tree: LabelTree) -> Tensor:
    """Index of the likeliest label per row, shape (B,). Afterwards the reading has lost rows."""
    return _scores(prefill, tree, all_labels=False).argmax(1)


def _scores(prefill: Prefill, tree: LabelTree, *, all_labels: bool) -> Tensor:
    """The labels' scores (B, L); unless all_labels, only the largest of a row is exact, the others are bounds.

    A label's score begins as its first token's, which it can only fall below. In turns, each row runs the path to
    the label that leads and is not exact yet, until an exact one leads.
    """
    root = prefill.next_logits.float().log_softmax(-1)  # (B, V)
    words, lengths = tree.padded(root.device)  # (L, D), (L,)
    scores = root[:, words[:, 0]]  # (B, L)
    known = torch.ones_like(scores, dtype=torch.long)  # how many of a label's tokens are in its score
    while True:
        open_ = known < lengths  # (B, L)
        chosen = open_.int().argmax(1) if all_labels else scores.argmax(1)
        asks = open_.gather(1, chosen[:, None])[:, 0].tolist()
        paths = {row: tree.labels[label][:-1] for row, label in enumerate(chosen.tolist()) if asks[row]}
        if not paths:
            return scores
        if len(paths) < len(prefill.rows):
            prefill.select_rows([place for place, row in enumerate(prefill.rows) if row in paths])
        longest = max(map(len, paths.values()))
        # What fills a shorter path up comes after it, so nothing on it depends on that.
        filled = [[*paths[row], *[0] * (longest - len(paths[row]))] for row in prefill.rows]
        log_p = prefill.extend(torch.tensor(filled, device=root.device)).float().log_softmax(-1)
        prefill.rollback(longest)  # log_p: (B', longest, V)
        rows = torch.tensor(prefill.rows, device=root.device)
        of_path = {path: _told(words, lengths, path) for path in set(paths.values())}
        told = torch.stack([of_path[paths[row]] for row in prefill.rows])  # (B', L)
        before = known[rows]
        for depth in range(1, longest + 1):
            new = (before <= depth) & (depth < told)
            scores[rows] += torch.where(new, log_p[:, depth - 1][:, words[:, depth]], 0.0)
        known[rows] = torch.maximum(before, told)


def _told(words: Tensor, lengths: Tensor, path: Path) -> Tensor:
    """How many tokens of each label a path tells, (L,): those that both begin with, and one more."""
    same = words[:, : len(path)] == torch.tensor(path, device=words.device)  # (L, len(path))
    return (same.int().cumprod(1).sum(1) + 1).minimum(lengths)
