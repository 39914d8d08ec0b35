"""The likeliest label of a set, found on the tree of the labels' tokens in one pass over the prompt.

    tree = LabelTree.build(encoder.label_ids(labels), end_id=tokenizer.eos_token_id)
    best = likeliest_labels(reader.read(prompts), tree)          # (B,) index of the label

A label's score is log P(its tokens | prompt) = Σ_d log p(token_d | prompt, tokens before it). The prompt's
pass gives all first tokens, and with them a bound of every score, since a score only falls along a path. Each row
then runs, on its prompt's cache, the rest of the label that leads, until the leading label's score is
complete: the answer is exact, and most rows run one short path or none.

Where one label's tokens begin another's ("B" and "Bad"), every label is taken with the end token, without
which the shorter one could never lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlora.model_facts import Batch
from nlora.reading import Reading, read_batch

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


@torch.no_grad()
def label_scores(model: nn.Module, batch: Batch, tree: LabelTree) -> Tensor:
    """log P(label | prompt), shape (B, number of labels), float32. batch: prompts without answers."""
    return _scores(read_batch(model, batch), tree, all_labels=True)


@torch.no_grad()
def likeliest_labels(reading: Reading, tree: LabelTree) -> Tensor:
    """Index of the likeliest label per row, shape (B,). Afterwards the reading has lost rows."""
    return _scores(reading, tree, all_labels=False).argmax(1)


def _scores(reading: Reading, tree: LabelTree, *, all_labels: bool) -> Tensor:
    """The labels' scores (B, L); unless all_labels, only the largest of a row is exact, the others are bounds.

    A label's score begins as its first token's, which it can only fall below. In turns, each row runs the path to
    the label that leads and is not exact yet, until an exact one leads.
    """
    root = reading.first.float().log_softmax(-1)  # (B, V)
    scores = root[:, [label[0] for label in tree.labels]].clone()  # (B, L)
    exact = [[len(label) == 1 for label in tree.labels] for _ in reading.rows]
    while True:
        paths = {}
        leading = scores.argmax(1).tolist()
        for row in reading.rows:
            label = exact[row].index(False) if all_labels and False in exact[row] else leading[row]
            if not exact[row][label]:
                paths[row] = tree.labels[label][:-1]
        if not paths:
            return scores
        if len(paths) < len(reading.rows):
            reading.keep([place for place, row in enumerate(reading.rows) if row in paths])
        longest = max(map(len, paths.values()))
        # What fills a shorter path up comes after it, so nothing on it depends on that.
        filled = [[*paths[row], *[0] * (longest - len(paths[row]))] for row in reading.rows]
        log_p = reading.run(torch.tensor(filled, device=root.device)).float().log_softmax(-1)
        reading.forget(longest)  # log_p: (B', longest, V)
        cells = []
        for place, row in enumerate(reading.rows):
            for i, label in enumerate(tree.labels):
                if not exact[row][i] and _inner_on(label, paths[row]):
                    cells += [(place, depth, token, row, i) for depth, token in enumerate(label[1:])]
                    exact[row][i] = True
        places, depths, tokens, rows, columns = torch.tensor(cells, device=root.device).T
        scores.index_put_((rows, columns), log_p[places, depths, tokens], accumulate=True)


def _inner_on(label: Path, path: Path) -> bool:
    """Whether all inner nodes of the label lie on the path."""
    inner = label[:-1]
    return path[: len(inner)] == inner
