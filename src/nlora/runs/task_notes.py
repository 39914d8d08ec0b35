"""Warnings about odd data, printed before a run. Real data has some of it, so none of it is an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nlora.data.task import Task
from nlora.evaluation.text_metrics import normalize

_SHOWN_LABELS = 5


def task_notes(tasks: Sequence[Task]) -> list[str]:
    """One line for each warning, beginning with the task's name."""
    return [f"{task.name}: {note}" for task in tasks for note in _notes(task)]


def _notes(task: Task) -> Iterator[str]:
    if alike := _alike(task.labels or ()):
        one, other = alike
        yield f"labels '{one}' and '{other}' differ only in punctuation, so answers are compared unnormalized"
    trained = {example.label for example in task.train}
    if task.labels is not None and len(trained) == 1:
        yield f"all {len(task.train)} training examples have the label '{next(iter(trained))}'"
    if task.labels is not None and trained:
        untrained = set(task.labels) - trained
        unseen = [example.label for example in task.test if example.label in untrained]
        if unseen:
            words = list(dict.fromkeys(unseen))
            shown = ", ".join(f"'{word}'" for word in words[:_SHOWN_LABELS])
            more = ", ..." if len(words) > _SHOWN_LABELS else ""
            yield (
                f"{len(unseen)} of {len(task.test)} test examples have a label that no training example has: "
                f"{shown}{more}"
            )
    texts = {example.sentence for example in task.train}
    repeated = sum(example.sentence in texts for example in task.test)
    if repeated:
        yield f"{repeated} of {len(task.test)} test texts also occur in the training data"
    examples = (*task.train, *task.test)
    quoted = sum(_is_quoted(example.sentence) for example in examples)
    if quoted:
        yield (
            f'{quoted} of {len(examples)} texts look like quoted table cells, "...""..."; if that is how a TSV file '
            "was written, set quoting: true"
        )


def _alike(labels: Sequence[str]) -> tuple[str, str] | None:
    """Two labels that the normalization of exact match would make equal."""
    seen: dict[str, str] = {}
    for label in labels:
        if seen.setdefault(normalize(label), label) != label:
            return seen[normalize(label)], label
    return None


def _is_quoted(text: str) -> bool:
    """Whether a text is in quotes with every inner quote doubled, as in CSV."""
    if not (len(text) > 3 and text[0] == text[-1] == '"'):
        return False
    return '""' in text[1:-1] and '"' not in text[1:-1].replace('""', "")
