"""What is odd about tasks and yet may be meant: said before a run, and no mistake.

    for note in task_notes(tasks):
        print(note)             # tickets: 5 of 100 test texts are training texts too

Real data have some of it, so nothing is refused for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nlora.data.task import Task
from nlora.evaluation.text_metrics import normalize

_SHOWN_LABELS = 5


def task_notes(tasks: Sequence[Task]) -> list[str]:
    """One line for each oddity, with its task's name."""
    return [f"{task.name}: {note}" for task in tasks for note in _notes(task)]


def _notes(task: Task) -> Iterator[str]:
    if alike := _alike(task.labels or ()):
        one, other = alike
        yield f"labels '{one}' and '{other}' are the same without punctuation, so answers are compared as they are"
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
        yield f"{repeated} of {len(task.test)} test texts are training texts too"
    examples = (*task.train, *task.test)
    quoted = sum(_is_quoted(example.sentence) for example in examples)
    if quoted:
        yield (
            f'{quoted} of {len(examples)} texts look like cells of a table in quotes, "...""..."; if a TSV file was '
            "written so, set quoting: true"
        )


def _alike(labels: Sequence[str]) -> tuple[str, str] | None:
    """Two labels that the normalization of exact match would take for one."""
    seen: dict[str, str] = {}
    for label in labels:
        if seen.setdefault(normalize(label), label) != label:
            return seen[normalize(label)], label
    return None


def _is_quoted(text: str) -> bool:
    """Whether a text stands in quotes and doubles each of its own, as CSV does."""
    if not (len(text) > 3 and text[0] == text[-1] == '"'):
        return False
    return '""' in text[1:-1] and '"' not in text[1:-1].replace('""', "")
