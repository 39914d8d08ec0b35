"""The section about the averages: of one run as large numbers, of several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.comparison_notes import scoring_notes
from nlora.report.comparison_table import seeds_in_short
from nlora.report.estimates import PageAnswers, average_estimate, ends
from nlora.report.page_blocks import Block, Facts, Fold, Section, Table, Text, words
from nlora.report.run_files import RunFiles
from nlora.report.sections.compared import compared
from nlora.report.sections.side_by_side import side_by_side
from nlora.report.variants import Variant, labeled, runs_of
from nlora.report.wording import change, score, share

_MOST_NOTES = 3
"""Beyond it, the notes on the outcome of stages are folded."""


def results(variants: Sequence[Variant], answers: PageAnswers, base: str | None = None) -> Section:
    """The averages with their definitions and intervals. base: the label that differences are to, as in `compared`."""
    runs = runs_of(variants)
    found = compared(variants, answers, base)  # of one run too: it may not have the base's name
    if len(runs) > 1:
        blocks = [*_unlike(variants), *side_by_side(found)]
    elif runs[0].is_complete:
        blocks = [Facts(tuple(_facts(variants[0], answers)))]
    else:
        done = len(runs[0].stages)
        text = f"{done} of {len(runs[0].tasks)} tasks learned. The averages follow when all are."
        blocks = [Text(text, tone="note")]
    return Section("results", "Results", _about(runs), [*blocks, *_odd(variants)])


def _odd(variants: Sequence[Variant]) -> list[Block]:
    """What is odd about the outcome of stages; many notes as a folded table."""
    found: dict[tuple[str, str], list[int]] = {}
    for variant in variants:
        for summary in variant.summaries:
            for note in summary.notes:
                found.setdefault((variant.label, note), []).append(summary.seed)
    if len(found) > _MOST_NOTES:
        rows = tuple(words(label, seeds_in_short(seeds), note) for (label, note), seeds in found.items())
        columns = ("run", "seeds", "what is odd")
        table = Table("Odd outcomes of stages", columns, rows, words=frozenset({0, 1, 2}))
        return [Fold(f"{len(found)} odd outcomes of stages", (table,))]
    many = len(variants) > 1
    return [Text(f"{f'{label}: ' if many else ''}{note}.", tone="note") for label, note in found]


def _about(runs: Sequence[RunFiles]) -> str:
    """What a score is. ROUGE-L is not a share of the examples."""
    if all(metric == "exact_match" for run in runs for metric in run.summary.metrics.values()):
        return "Scores are the percentage of a task's test examples answered correctly."
    kinds = list(dict.fromkeys(run.summary.scoring for run in runs if run.summary.scoring))
    return f"Scores are in percent: {' | '.join(kinds)}."


def _facts(variant: Variant, answers: PageAnswers) -> list[tuple[str, str, str]]:
    run = variant.first
    summary, tasks = run.summary, len(run.summary.scored)
    before = sum(i < len(run.tasks) - 1 for i in summary.scored)
    found = average_estimate(variant, answers)
    interval = ""
    if found is not None and found.interval is not None:
        how = f", by a bootstrap of the {found.count}" if tasks > 1 else ""
        interval = f"; 95 % interval {ends(found.interval)}{how}"
    earlier = f"the {before} earlier tasks" if before > 1 else "the earlier task"
    after = sum(i > 0 for i in summary.scored)
    later = f"the {after} later tasks" if after > 1 else "the later task"
    facts = [
        (
            score(summary.average_accuracy),
            "average accuracy",
            f"{f'mean over all {tasks} tasks' if tasks > 1 else 'of the only task'} after the last stage{interval}",
        ),
        (
            change(summary.backward_transfer),
            "backward transfer",
            f"mean over {earlier}: score at the end − score when just learned",
        ),
        (
            score(summary.forgetting),
            "forgetting",
            f"mean over {earlier}: best score before the end − score at the end",
        ),
        (
            change(summary.forward_transfer),
            "forward transfer",
            f"mean over {later}: score just before learning − score before any training",
        ),
    ]
    if run.interference is not None and run.interference.average_collision_rate is not None:
        rate = share(run.interference.average_collision_rate)
        facts.append(
            (
                rate,
                "average collision rate",
                "mean over pairs of tasks: share of weights that both updates change by more than the threshold",
            )
        )
    if summary.perplexity_change is not None:
        meaning = "of plain text, from before the first to after the last task; higher is worse"
        facts.append((f"{change(summary.perplexity_change)}\u00a0%", "perplexity", meaning))
    return [fact for fact in facts if fact[0] != "–"]


def _unlike(variants: Sequence[Variant]) -> list[Block]:
    """Differences between the runs that make a comparison misleading."""
    runs = runs_of(variants)
    texts = []
    if len({frozenset(run.tasks) for run in runs}) > 1:
        texts.append("These runs learned different tasks; averages are not comparable.")
    elif len({run.tasks for run in runs}) > 1:
        texts.append("These runs learned the same tasks in different orders.")
    if len({run.summary.model for run in runs}) > 1:
        texts.append("They use different models.")
    if len({run.summary.quantize for run in runs}) > 1:
        texts.append("They use models that are quantized differently.")
    if len({run.summary.protocol == "released" for run in runs}) > 1:
        texts.append("They followed different protocols, which score and truncate differently.")
    notes, _ = scoring_notes(labeled(variants))
    texts += [f"{heading} {'; '.join(lines)}{'.' if lines else ''}".rstrip() for heading, lines in notes]
    return [Text(" ".join(texts), tone="note")] if texts else []
