"""Notes on runs in one table: why their averages are not comparable, and what the scores are.

Files of older versions do not record how answers were produced or on which examples; no note mentions them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nlora.evaluation.choices import DECODE_NAMES, by_task, metric_name
from nlora.report.published import order_of
from nlora.runs.summary import Digests, Summary

Labeled = Sequence[tuple[str, Sequence[Summary]]]
"""The rows: each with its label and its runs."""
_DECODES = "These runs' answers were produced in different ways, which are not comparable:"
_METRICS = "These runs have different kinds of scores; averages are not comparable:"
_AVERAGED = "These runs' averages are over different tasks:"
_TEXTS = "These runs measured the perplexity of different texts:"
_SAMPLED = (
    "Each seed is scored on its own sample: the seed draws the test examples (evaluate.max_samples, or "
    "evaluate.split: validation)."
)
_CONDITIONS: Sequence[tuple[str, Callable[[Summary], str]]] = (
    (
        "These runs learned different tasks or orders; averages are not comparable:",
        lambda s: ", ".join(s.tasks) + _order_name(s.tasks),
    ),
    (
        "These runs use different models:",
        lambda s: s.model if s.quantize is None else f"{s.model} in {s.quantize}",
    ),
    (
        "These runs followed different protocols, which score and truncate differently:",
        lambda s: "released" if s.protocol == "released" else "repaired",
    ),
)
"""What must be the same for averages to be comparable."""
_EXAMPLES: Sequence[tuple[str, str, Callable[[Digests], tuple[str, int]]]] = (
    (
        "These runs were scored on different test examples; averages are not comparable:",
        "test examples",
        lambda d: d.test.source,
    ),
    (
        "These runs were scored by different versions of a function; averages are not comparable:",
        "version",
        lambda d: (d.scorer_version or "", 0),
    ),
    ("These runs were trained on different examples:", "train examples", lambda d: d.train.source),
    ("These runs used different prompts:", "prompts", lambda d: (d.prompt_sha256, 0)),
)


Setting = tuple[object, ...]
"""What `same_setting` compares."""


def setting_of(summary: Summary) -> Setting:
    """Runs of the same tasks with equal settings are the same to `same_setting`."""
    return (
        summary.settings_sha256,
        _averaged(summary),
        tuple(summary.metric_of(task) for task in summary.tasks),
        tuple(sorted(summary.decode.items())),
        tuple((task, *(kind(d) for _, _, kind in _EXAMPLES)) for task, d in sorted(summary.digests.items())),
        _general_text(summary),
    )


def same_setting(a: Summary, b: Summary) -> bool:
    """Whether both were prompted, scored and trained alike, as far as is known: then seeds may be averaged."""
    return (
        same_options(a, b)
        and _averaged(a) == _averaged(b)
        and (None in (texts := (_general_text(a), _general_text(b))) or texts[0] == texts[1])
        and all(a.metric_of(task) == b.metric_of(task) for task in a.tasks)
        and all(a.decode[task] == b.decode[task] for task in a.decode.keys() & b.decode.keys())
        and all(
            kind(a.digests[task]) == kind(b.digests[task])
            for task in a.digests.keys() & b.digests.keys()
            for _, _, kind in _EXAMPLES
        )
    )


def same_options(a: Summary, b: Summary) -> bool:
    """Whether both have the same options of method and training, as far as is known."""
    return not (a.settings_sha256 and b.settings_sha256) or a.settings_sha256 == b.settings_sha256


def notes_on(rows: Labeled) -> tuple[list[str], bool]:
    """The notes, and whether averages are comparable."""
    found = [(heading, _unlike(rows, condition)) for heading, condition in _CONDITIONS]
    different = [(heading, lines) for heading, lines in found if lines]
    scoring, alike = scoring_notes(rows)
    notes = [line for heading, lines in (*different, *scoring) for line in (heading, *lines)]
    return [*notes, *_scores(rows)], alike and not different


def scoring_notes(rows: Labeled) -> tuple[list[tuple[str, list[str]]], bool]:
    """What is different about the scores, by heading, and whether averages are comparable despite it."""
    common = _scored_in_all([s.decode for _, summaries in rows for s in summaries if s.decode])
    decodes = _unlike(
        rows, lambda s: by_task({t: DECODE_NAMES[s.decode[t]] for t in common if s.decode}) or None
    )
    common_metrics = _scored_in_all([s.metrics or s.tasks for _, summaries in rows for s in summaries])
    metrics = _unlike(
        rows, lambda s: by_task({task: metric_name(s.metric_of(task)) for task in common_metrics})
    )
    tests, functions, *others = [(heading, _different(rows, what, kind)) for heading, what, kind in _EXAMPLES]
    unlike = [
        (_AVERAGED, _unlike(rows, _averaged)),
        (_DECODES, decodes),
        (_METRICS, metrics),
        tests,
        functions,
    ]
    sampled: list[tuple[str, list[str]]] = [(_SAMPLED, [])] if _is_sampled(rows) else []
    texts = (_TEXTS, _unlike(rows, _general_words))
    found = [(heading, lines) for heading, lines in (*unlike, *others, texts) if lines]
    return [*found, *sampled], not any(lines for _, lines in unlike)


def threshold_note(summaries: Sequence[Summary]) -> list[str]:
    """A note on the threshold of the collision rates."""
    found = {summary.collision.threshold for summary in summaries if summary.collision}
    if not found:
        return []
    if len(found) > 1:
        digits = next((n for n in range(2, 8) if f"{min(found):.{n}g}" != f"{max(found):.{n}g}"), 8)
        ends = f"{min(found):.{digits}g} to {max(found):.{digits}g}"
        return [
            f"The collision rates are at different thresholds, {ends}: by default a "
            "run's threshold follows the size of its updates. To use a common one: nlora analyze RUN --threshold T."
        ]
    return [f"collision: percentage of entries that two tasks' updates both change by more than {found.pop():g}, "
            "mean over pairs of tasks."]  # fmt: skip


def _averaged(summary: Summary) -> str | None:
    """The tasks that the averages of a finished run are over; None of an unfinished one."""
    if summary.status != "complete":
        return None
    unscored = [task for task in summary.tasks if task not in summary.averaged]
    return f"all tasks but {', '.join(unscored)}" if unscored else "all tasks"


def _general_text(summary: Summary) -> str | None:
    """The text whose perplexity was measured; None if none was."""
    return next((scores.text_sha256 for scores in summary.general if scores is not None), None)


def _general_words(summary: Summary) -> str | None:
    """The text, told from another one of the same name."""
    digest = _general_text(summary)
    name = next((scores.text for scores in summary.general if scores is not None), None)
    return digest and f"{name} (SHA-256 {digest[:8]})"


def _scored_in_all(runs: Sequence[Iterable[str]]) -> list[str]:
    """The tasks on which all runs have been scored so far; an unfinished run may lack some."""
    common = set(runs[0]).intersection(*runs) if runs else set()
    return [task for task in (runs[0] if runs else ()) if task in common]


def _unlike(rows: Labeled, condition: Callable[[Summary], str | None]) -> list[str]:
    """A line for every value, if there are several."""
    found: dict[str, list[str]] = {}
    for label, summaries in rows:
        for summary in summaries:
            if (value := condition(summary)) is not None:
                found.setdefault(value, []).append(label)
    return [f"{value}: {_listed(labels)}" for value, labels in found.items()] if len(found) > 1 else []


def _different(rows: Labeled, what: str, kind: Callable[[Digests], tuple[str, int]]) -> list[str]:
    """A line for every set of examples of a task that has several. Tasks with the same difference share a line."""
    alike: dict[tuple[tuple[int, str], ...], list[str]] = {}
    for task in dict.fromkeys(task for _, summaries in rows for s in summaries for task in s.digests):
        found: dict[tuple[str, int], list[str]] = {}
        for label, summaries in rows:
            for summary in summaries:
                if task in summary.digests:
                    found.setdefault(kind(summary.digests[task]), []).append(label)
        if len(found) > 1:
            parts = tuple((count, _listed(labels)) for (_, count), labels in found.items())
            alike.setdefault(parts, []).append(task)
    lines = []
    for parts, tasks in alike.items():
        for number, (count, labels) in enumerate(parts):
            other = "other " if number else ""
            lines.append(f"{', '.join(tasks)}, {f'{count} ' if count else ''}{other}{what}: {labels}")
    return lines


def _is_sampled(rows: Labeled) -> bool:
    """Whether any two runs were scored on different samples of the same examples."""
    samples: dict[tuple[str, str, int], set[str]] = {}
    for _, summaries in rows:
        for summary in summaries:
            for task, digests in summary.digests.items():
                samples.setdefault((task, *digests.test.source), set()).add(digests.test.sha256)
    return any(len(found) > 1 for found in samples.values())


def _scores(rows: Labeled) -> list[str]:
    """What the scores are, if it is the same for all runs."""
    found = {summary.scoring for _, summaries in rows for summary in summaries}
    return [] if len(found) != 1 or found == {""} else [f"Scores in percent: {found.pop()}."]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(labels))


def _order_name(tasks: tuple[str, ...]) -> str:
    order = order_of(tasks)
    return "" if order is None else f" ({order})"
