"""The figures of the paper for any runs, as SVG and PDF files for a publication.

Collision rate and orthogonality as bars, nuclear norm by layer, accuracy by stage, and each run's accuracy matrix
(figures 1 to 3 of arXiv 2410.10179, and the matrix that they are based on).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nlora.errors import MissingExtraError
from nlora.report.charts.axes import linear_axis
from nlora.report.charts.bars import Bar, bar_chart
from nlora.report.charts.palette import series_role
from nlora.report.charts.pdf import check_pdf, write_pdf
from nlora.report.charts.scene import Scene
from nlora.report.charts.svg import to_svg_file
from nlora.report.estimates import PageAnswers
from nlora.report.page_blocks import Figure
from nlora.report.run_files import Analyzed, RunFiles, analyzed
from nlora.report.sections.compared import compared as compared_variants
from nlora.report.sections.compared import comparison_figures
from nlora.report.sections.modules import nuclear_norms
from nlora.report.sections.scores import matrices_figures
from nlora.report.sections.stages import seen_average, task_scores
from nlora.report.variants import Variant, variants_of
from nlora.report.wording import measured, share
from nlora.runs.atomic import disk_errors, write_text

_log = logging.getLogger("nlora")
_WIDTH = 560.0


def write_figures(runs: Sequence[RunFiles], folder: Path, base: str | None = None) -> list[Path]:
    """Writes each figure as SVG and PDF, and returns the files.

    Raises MissingExtraError, after writing the SVG files, without matplotlib; RunError if the folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    figures = list(_figures(runs, base))
    written = []
    for name, scene in figures:
        written.append(folder / f"{name}.svg")
        write_text(written[-1], to_svg_file(scene))
    try:
        check_pdf()
    except MissingExtraError as error:
        raise MissingExtraError(f"{folder}: {len(written)} SVG files are written; {error}") from error
    whole = True
    for name, scene in figures:
        written.append(folder / f"{name}.pdf")
        whole &= write_pdf(scene, written[-1])
    if not whole:
        _log.warning(
            "%s: the PDF files lack some characters, for which there is no font; the SVG files have them",
            folder,
        )
    return written


def averages_figure(runs: Analyzed) -> list[Figure]:
    """Collision rate and orthogonality of each run as bars, as in the paper's figure 1."""
    rates = [
        (
            run.label,
            run.order,
            None if found.average_collision_rate is None else 100 * found.average_collision_rate,
        )
        for run, found in runs
    ]
    products = [
        (run.label, run.order, _mean([pair.orthogonality for pair in found.pairs.values()]))
        for run, found in runs
    ]
    figures = [
        _bars(
            "collision",
            "Average collision rate",
            "%, mean over pairs of tasks",
            rates,
            lambda value: share(value / 100),
        ),
        _bars(
            "orthogonality",
            "Orthogonality of the factors A",
            "Σ‖A·Aᵀ‖², mean over pairs; 0 is orthogonal",
            products,
            measured,
        ),
    ]
    return [figure for figure in figures if figure is not None]


def _figures(runs: Sequence[RunFiles], base: str | None) -> list[tuple[str, Scene]]:
    variants = variants_of(runs)
    answers = PageAnswers(runs)
    compared = analyzed([_first(variant) for variant in variants])
    figures: list[tuple[str, Scene]] = []
    if compared:
        figures += [(figure.key, figure.draw(_WIDTH)) for figure in averages_figure(compared)]
        norms = nuclear_norms(compared)
        if norms is not None:
            figures.append(("nuclear_norm", norms.draw(_WIDTH)))
    if any(run.learned for run in runs):
        figures.append(("accuracy", task_scores(variants, answers).draw(_WIDTH)))
        figures.append(("average_accuracy", seen_average(variants).draw(_WIDTH)))
    figures += [
        (figure.key.replace("-", "_"), figure.draw(_WIDTH))
        for figure in (
            comparison_figures(compared_variants(variants, answers, base)) if len(runs) > 1 else ()
        )
    ]
    for index, figure in enumerate(matrices_figures(variants, answers), start=1):
        figures.append((f"matrix_{index}" if len(variants) > 1 else "matrix", figure.draw(_WIDTH)))
    return figures


def _first(variant: Variant) -> RunFiles:
    """Of several seeds the first, whose label says so."""
    run = variant.first
    return replace(run, label=f"{variant.label}, seed {run.summary.seed}") if variant.has_seeds else run


def _bars(
    key: str,
    title: str,
    unit: str,
    values: Sequence[tuple[str, int, float | None]],
    text: Callable[[float], str],
) -> Figure | None:
    known = [(label, value, series_role(i)) for label, i, value in values if value is not None]
    if not known:
        return None
    bars = [Bar(label, ((label, value, role),), text(value)) for label, value, role in known]
    axis = linear_axis(unit, [bar.total for bar in bars], zero=True)

    def draw(width: float) -> Scene:
        description = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
        return bar_chart(title, description, bars, axis=axis, width=min(width, 420.0), keys=False)

    return Figure(key, title, "", draw)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
