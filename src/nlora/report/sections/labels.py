"""The section about single labels at the end: precision, recall and F1, and which labels are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nlora.errors import RunError
from nlora.evaluation.per_label import LabelCounts, Pair
from nlora.evaluation.text_metrics import normalize
from nlora.report.charts.heatmap import scale_position
from nlora.report.charts.palette import heat_role
from nlora.report.estimates import PageAnswers
from nlora.report.page_blocks import Block, Cell, Fold, Section, Table
from nlora.report.run_files import RunFiles
from nlora.report.variants import Variant
from nlora.report.wording import score
from nlora.runs.released_files import label_results

MOST_LABELS = 30
"""Of a confusion matrix; with more, the most frequent confusions are listed instead."""
_OPEN_LABELS = 8
"""Up to this many, the matrix of a single run is shown at once."""
_LISTED = 20
_OUTSIDE = "none of them"
_COLUMNS = ("task", "label", "examples", "answers", "precision", "recall", "F1")


def scores_by_label(variants: Sequence[Variant], answers: PageAnswers) -> list[Section]:
    """A table for each variant with labels, folded, and a confusion matrix per task; no section if there is none."""
    many = len(variants) > 1
    blocks: list[Block] = []
    for variant in variants:
        if not ((last := variant.first.last) and last.by_label):
            continue
        table, matrices = _table(variant, many=many), _matrices(variant, answers)
        if many or variant.has_seeds:
            blocks.append(Fold(variant.label, (replace(table, is_aside=False), *matrices)))
        else:
            blocks += [*matrices, table]
    if not blocks:
        return []
    about = (
        "How each label is answered after the last finished stage. Confusion: each row is a label, each column an "
        "answer, in numbers of test examples; on the diagonal, the answer is right. Precision, in percent: share of "
        "the answers with a label that are right. Recall: share of the label's examples that are answered so. F1: "
        "their harmonic mean."
    )
    if any(variant.has_seeds for variant in variants):
        about += " Of several seeds, the counts are added up."
    return [Section("labels", "Scores by label", about, blocks, "Labels")]


def _table(variant: Variant, *, many: bool) -> Table:
    rows: list[tuple[Cell, ...]] = []
    outside: Counter[str] = Counter()
    for task in variant.tasks:
        counts: dict[str, LabelCounts] = {}
        for run in variant.runs:
            found, others = _counts(run, task)
            outside[task] += others
            for label, each in found.items():
                known = counts.get(label, LabelCounts(0, 0, 0))
                counts[label] = LabelCounts(
                    known.support + each.support, known.answered + each.answered, known.right + each.right
                )
        results: Mapping[str, Any] = label_results(counts, outside=0)["labels"]
        rows += [(Cell(task), Cell(label), *map(Cell, _numbers(values))) for label, values in results.items()]
    note = "–: a share of nothing."
    if any(outside.values()):
        listed = ", ".join(f"{count} in {task}" for task, count in outside.items() if count)
        note += f" Answers that are none of the task's labels are wrong, and not listed: {listed}."
    caption = f"Scores by label of {variant.label}" if many else "Scores by label"
    return Table(caption, _COLUMNS, tuple(rows), note, frozenset({0, 1}), is_aside=True)


def _counts(run: RunFiles, task: str) -> tuple[dict[str, LabelCounts], int]:
    """A run's counts of each label of a task, and of the answers that are no label."""
    if run.last is None:  # someone has deleted it
        return {}, 0
    by_label = run.last.by_label
    try:
        if task not in by_label:
            return {}, 0
        counts = {
            str(label): LabelCounts(
                int(values["support"]),
                int(values["answered"]),
                round((values["recall"] or 0.0) / 100 * values["support"]),
            )
            for label, values in by_label[task]["labels"].items()
        }
        return counts, int(by_label[task]["outside"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = run.last.folder / "all_results.json"
        raise RunError(
            f"{file}: by_label is broken; delete the file to leave it out of the report"
        ) from error


def _numbers(values: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (score(values[key]) for key in ("precision", "recall", "f1"))
    return (str(values["support"]), str(values["answered"]), *shares)


def _matrices(variant: Variant, answers: PageAnswers) -> list[Block]:
    """One for each task with labels whose answers are known."""
    blocks: list[Block] = []
    for task in variant.tasks:
        labels = {label: None for run in variant.runs for label in _counts(run, task)[0]}
        found = [a for run in variant.runs for a in answers.last(run).get(task, {}).values()]
        if labels and found:
            exact = any(answer.exact for answer in found)
            names = {label if exact else normalize(label): label for label in labels}
            blocks.append(_confusion(task, Counter(answer.labels for answer in found), names))
    return blocks


def _confusion(task: str, pairs: Counter[Pair], names: Mapping[str, str]) -> Block:
    """names: the labels as the task writes them, by what answers have."""
    occurs = {label for pair in pairs for label in pair if label is not None}
    if len(occurs) > MOST_LABELS:
        return _most_frequent(task, pairs, names)
    order = [label for label in names if label in occurs]
    order += sorted(occurs.difference(order))
    columns: list[str | None] = [*order, *([None] if any(answer is None for _, answer in pairs) else [])]
    high = float(max(pairs.values()))
    rows = tuple(
        (
            Cell(names.get(label, label)),
            *(_cell(pairs[label, answer], high, label == answer) for answer in columns),
        )
        for label in order
        if any(pairs[label, answer] for answer in columns)
    )
    headings = [_OUTSIDE if label is None else names.get(label, label) for label in columns]
    title = f"Confusion of {task}"
    table = Table(title, ("label", *headings), rows, kind="heat")
    return table if len(order) <= _OPEN_LABELS else Fold(f"{title} ({len(order)} labels)", (table,))


def _cell(count: int, high: float, right: bool) -> Cell:
    return Cell(str(count), heat=heat_role(scale_position(count, 0, high)), strong=right)


def _most_frequent(task: str, pairs: Counter[Pair], names: Mapping[str, str]) -> Table:
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]][:_LISTED]
    rows = tuple(
        (
            Cell(names.get(label, label)),
            Cell(_OUTSIDE if answer is None else names.get(answer, answer)),
            Cell(str(count)),
        )
        for (label, answer), count in wrong
    )
    caption = f"The most frequent confusions of {task}"
    return Table(caption, ("label", "answered", "examples"), rows, words=frozenset({0, 1}), is_aside=True)
