"""The page: sections laid out by the templates into one self-contained HTML file.

Its content security policy allows no requests, and no scripts except its own two, by their hashes: text from a data set
can never run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from nlora import __version__
from nlora.report.charts import palette
from nlora.report.charts.svg import file_style, to_svg
from nlora.report.estimates import PageAnswers
from nlora.report.page_blocks import NARROW, WIDE, Section, Table
from nlora.report.run_files import RunFiles
from nlora.report.sections.collisions import collisions
from nlora.report.sections.costs import cost
from nlora.report.sections.examples import forgotten, repeat
from nlora.report.sections.files import files
from nlora.report.sections.general import general
from nlora.report.sections.header import facts_and_differences, title_of
from nlora.report.sections.labels import scores_by_label
from nlora.report.sections.results import results
from nlora.report.sections.routing import routing
from nlora.report.sections.scores import matrices
from nlora.report.sections.stages import scores_by_stage
from nlora.report.sections.task_scores import scores_at_the_end
from nlora.report.sections.training import training
from nlora.report.variants import Variant, runs_of, seeds_in_words, variants_of
from nlora.report.wording import joined
from nlora.runs.interference_file import Interference
from nlora.runs.summary import Summary

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = "templates"


def render(runs: Sequence[RunFiles], base: str | None = None) -> str:
    """The page about one run, or several side by side; runs that differ only in their seed are shown as one.

    base: the name of the runs that differences are to; None: inclora, if it is there, else the first.
    """
    variants = variants_of(runs)
    runs = runs_of(variants)
    answers = PageAnswers(runs)
    firsts = [variant.first for variant in variants]
    having = [next((run for run in v.runs if run.summary.general), v.first) for v in variants]
    measured = [replace(run, label=v.label) for run, v in zip(having, variants, strict=True)]
    sections = [
        results(variants, answers, base),
        scores_at_the_end(variants, answers),
        matrices(variants, answers),
        scores_by_stage(variants, answers),
        *scores_by_label(variants, answers),
        *(_of_one_seed(section, firsts, variants) for section in routing(firsts)),
        *(_of_one_seed(section, measured, variants) for section in general(measured)),
        training(variants),
        _of_one_seed(collisions(firsts), firsts, variants),
        forgotten(runs),
        cost(variants),
        files(variants),
        repeat(runs),
    ]
    facts, differences = facts_and_differences(variants)
    unfinished = [run for run in runs if not run.is_complete]
    return _laid_out(title_of(variants), seeds_in_words(variants), facts, differences, sections, unfinished)


def _of_one_seed(section: Section, shown: Sequence[RunFiles], variants: Sequence[Variant]) -> Section:
    """Says whose numbers they are, where not all seeds are shown. shown: a run of each variant."""
    pairs = zip(shown, variants, strict=True)
    seeds = dict.fromkeys(f"seed {run.summary.seed}" for run, variant in pairs if variant.has_seeds)
    note = f" Of several seeds, one is shown ({', '.join(seeds)})." if seeds else ""
    return replace(section, about=f"{section.about}{note}")


def render_interference(found: Interference) -> str:
    """The page about adapters that `nlora analyze` compared, from a run or not."""
    names = tuple(found.adapters)
    nothing = (None,) * len(names)
    summary = Summary(
        schema=1, status="complete", name=f"{len(names)} adapters", method="", model="", seed=0, tasks=names,
        R=(nothing,) * len(names),
    )  # fmt: skip
    run = RunFiles(Path(), summary.name, 0, summary, None, Path(), {}, None, (), found)
    facts = [
        ("Adapters", joined(names)),
        ("Compared over", f"{len(found.modules)} modules"),
        ("Threshold", f"{found.threshold:.3g}, {found.threshold_rule}"),
    ]
    return _laid_out(summary.name, "Interference of adapters", facts, None, [collisions([run])], [])


def _laid_out(
    title: str,
    kicker: str,
    facts: Sequence[tuple[str, str]],
    differences: Table | None,
    sections: Sequence[Section],
    unfinished: Sequence[RunFiles],
) -> str:
    early, late = _read("early.js"), _read("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            kicker=kicker,
            facts=facts,
            differences=differences,
            sections=sections,
            css=Markup(palette.css() + _read("page.css")),
            early=Markup(early),
            late=Markup(late),
            policy=_policy(early, late),
            figure_style=_embedded({"style": file_style()}),
            version=__version__,
            unfinished=unfinished,
        )
    )


def _embedded(values: object) -> Markup:
    """JSON that an HTML parser cannot take for markup: it has no `<`, so neither `</script` nor `<!--`."""
    text = json.dumps(values, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nlora.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        wide=lambda figure: to_svg(figure.draw(WIDE)), narrow=lambda figure: to_svg(figure.draw(NARROW))
    )
    return environment


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(_TEMPLATES, name).read_text(encoding="utf-8")
