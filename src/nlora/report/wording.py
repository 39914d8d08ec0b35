"""A run in words, and numbers as the page shows them: a dash for an unknown value, and a real minus sign."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import bidirectional

from nlora.config.outside_code import is_python_file
from nlora.config.overrides import Override
from nlora.config.places import Place
from nlora.errors import InputErrors
from nlora.report import formatting
from nlora.report.charts.axes import number
from nlora.report.run_files import RunFiles
from nlora.runs.layout import RUN_FILE

if TYPE_CHECKING:
    from nlora.methods.base import Method

_DECODE = {
    "labels": "the most likely of the task's labels",
    "generate": "greedy decoding and exact match after the released normalization",
}


def score(value: float | None) -> str:
    """A percentage with one decimal, or a dash. Forgetting may be negative."""
    return formatting.score(value).replace("-", "−") or "–"


def change(value: float | None) -> str:
    """A difference of percentages with its sign, or a dash."""
    return formatting.change(value).replace("-", "−") or "–"


def share(value: float | None) -> str:
    """A share as a percentage. One that is not zero never reads as zero."""
    if value is None:
        return "–"
    percent = 100 * value
    if percent and abs(percent) < 0.05:
        return f"{number(percent)}\u00a0%"
    return f"{percent:.1f}\u00a0%".replace("-", "−")


def measured(value: float | None) -> str:
    """A measure with three digits."""
    return "–" if value is None else number(float(f"{value:.3g}"))


def memory(size_bytes: int | None) -> str:
    """In GiB or MiB, or a dash."""
    return formatting.memory(size_bytes) or "–"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{joined(names[:-1])} and {joined(names[-1:])}"


def joined(names: Iterable[str]) -> str:
    """`a, b, c`, in this order also on the page: names written from right to left are isolated from one another."""
    return ", ".join(
        f"\u2068{name}\u2069" if any(bidirectional(c) in {"R", "AL"} for c in name) else name
        for name in names
    )


def shown_folder(run: RunFiles) -> str:
    """The run's folder, relative to the current one if it lies inside."""
    return _shown(run.folder.absolute(), run.folder)


def _shown(folder: Path, otherwise: Path | None = None) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(otherwise or folder)


def repeat_command(run: RunFiles) -> str:
    """The shell command that repeats a run in another folder."""
    again = run.folder.resolve()
    again = again.with_name(f"{again.name}-again")
    file = shlex.quote(str(Path(shown_folder(run)) / RUN_FILE))
    return f"nlora run {file} {into(_shown(again))}"


def into(folder: str) -> str:
    """The shell's override of `output_dir`; in the quotes that YAML needs, too."""
    return shlex.quote(Override(("output_dir",), folder, Place("")).text)


def analyze_command(run: RunFiles) -> str:
    return f"nlora analyze {shlex.quote(shown_folder(run))}"


def method_options(run: RunFiles) -> dict[str, str]:
    """The method's options, with defaults if this version has the method."""
    if run.config is None:
        return {}
    given = run.config.method.options
    if (method := method_of(run)) is not None:
        given = {**method.options.model_dump(), **given}
        if given.get("weight", 0) is None:  # null means the method's own default
            given["weight"] = getattr(method, "weight", None)
    return {name: setting(value) for name, value in given.items()}


def method_of(run: RunFiles) -> Method | None:
    """The run's method with its options; None if they are from another version.

    None also for a method in a file of Python: a run of someone else can be reported without running its code.
    """
    from nlora.methods.registry import build

    if run.config is None or is_python_file(run.config.method.name):
        return None
    try:
        return build(run.config.method.name, run.config.method.options, base_folder=run.base_folder)
    except InputErrors:
        return None


def trains(run: RunFiles) -> str:
    """What the run's method trains: adapter, weights or prompts; adapter if the method is not known."""
    method = method_of(run)
    return "adapter" if method is None else method.trains


def method_words(run: RunFiles) -> str:
    options = method_options(run)
    return ", ".join([run.summary.method, *(f"{name} {value}" for name, value in options.items())])


def run_facts(run: RunFiles) -> list[tuple[str, str]]:
    """The run as named facts."""
    summary, config = run.summary, run.config
    facts = [
        ("Model", summary.model),
        ("Method", method_words(run)),
        *([("Replay", summary.replay)] if summary.replay else []),
        ("Tasks, in order", joined(summary.tasks)),
    ]
    if config is not None:
        lora, train = config.lora, config.train
        where = ", ".join(lora.targets) if lora.targets else "the query and value projections"
        epochs = f"{train.epochs:g} epoch{'' if train.epochs == 1 else 's'}"
        facts += [
            (
                "Update",
                {"weights": "the model's own weights", "prompts": "soft prompts"}.get(
                    trains(run),
                    f"LoRA of rank {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {where}",
                ),
            ),
            *([("Examples", examples)] if (examples := _examples(run)) else []),
            (
                "Training",
                f"{epochs} in batches of {train.batch_size}, learning rate "
                f"{train.learning_rate:g}, "
                + (f"{config.quantize} backbone, computing in " if config.quantize else "")
                + (config.dtype if config.quantize else f"{config.dtype} backbone"),
            ),
        ]
        if config.stages:
            facts.append(("Tasks with their own settings", listed(list(config.stages))))
    elif (run.folder / RUN_FILE).is_file():
        facts.append(("Configuration", f"from another version of nlora; see {RUN_FILE}"))
    if summary.serve is not None:
        facts.append(("Answered by", _served(run)))
    facts.append(("Scored by", _scored(run)))
    if summary.protocol is not None:
        notes = [note.rstrip(".") for note in summary.protocol_notes]
        facts.append(("Protocol", "; ".join([summary.protocol, *notes])))
    facts.append(("Seed", str(summary.seed)))
    done, tasks = len(run.stages), len(run.tasks)
    facts.append(
        ("Status", "complete" if run.is_complete else f"unfinished: {done} of {tasks} tasks learned")
    )
    return facts


def _served(run: RunFiles) -> str:
    own = "the model as it was after each task"
    if run.summary.serve == "pertask":
        return f"{own}; the task of each text is known"
    reads = "" if run.config is None else f", which reads the {run.config.router.reads}"
    return f"{own}; a router guesses the task of each text{reads}"


def _examples(run: RunFiles) -> str:
    """Without those that are replayed. Runs of older versions know what a stage trained on, replayed or not."""
    counts = [own.train.count for own in run.summary.digests.values()]
    counts = counts or [stage.train_examples for stage in run.stages if stage.train_examples is not None]
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f"{low:,} per task" if low == high else f"{low:,} to {high:,} per task"


def _scored(run: RunFiles) -> str:
    split = "" if run.config is None else f", on the {run.config.evaluate.split} examples"
    if run.summary.scoring:
        return f"{split.removeprefix(', ')}: {run.summary.scoring}".removeprefix(": ")
    decodes = dict.fromkeys(stage.decode for stage in run.stages if stage.decode)
    if not decodes and run.config is not None:
        decodes = {run.config.evaluate.decode: None}
    parts = list(dict.fromkeys(part for decode in decodes for part in decode.split("+")))
    return ("; ".join(_DECODE.get(part, part) for part in parts) or "unknown") + split


def setting(value: object) -> str:
    """The value of a key, as a configuration has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
