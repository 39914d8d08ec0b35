"""The README.md of an export: Hugging Face's model card, with the scores and what was forgotten."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nlora import __version__
from nlora.evaluation.choices import metric_name
from nlora.runs.export import stock_code
from nlora.runs.export.base_name import hub_name, public_name
from nlora.runs.export.options import FORMS
from nlora.runs.run_yaml import read_run_file

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from nlora.config.task_source import TaskSource
    from nlora.runs.export.result import Export

_PACKAGES = ("torch", "transformers", "peft")
_CITATION = """@misc{nlora,
  title = {Is Parameter Collision Hindering Continual Learning in LLMs?},
  eprint = {2410.10179},
  archivePrefix = {arXiv}
}"""


def write(export: Export, folder: Path) -> None:
    """Writes README.md next to the exported files."""
    from huggingface_hub import ModelCard, ModelCardData

    config = export.checkpoint.config
    base = hub_name(config.model)
    data = ModelCardData(
        model_name=config.name,
        base_model=base,
        library_name="transformers" if export.options.form == "merged" else "peft",
        pipeline_tag="text-generation" if export.options.form == "merged" else None,
        tags=[
            "continual-learning",
            *(["lora"] if export.checkpoint.method.trains == "adapter" else []),
            "nlora",
            config.method.label,
        ],
        eval_results=_eval_results(export),
        metrics=sorted({_METRIC_IDS[m] for m in _metrics(export).values() if m in _METRIC_IDS}),
    )
    if export.options.form == "sparse":
        data.library_name = "nlora"
    text = f"---\n{data.to_yaml()}\n---\n\n{_text(export)}"
    card = ModelCard(text, ignore_metadata_errors=False)
    (folder / "README.md").write_text(str(card), encoding="utf-8")


_METRIC_IDS = {"exact_match": "exact_match", "macro_f1": "f1", "rougeL": "rouge"}


def _metrics(export: Export) -> dict[str, str]:
    record = export.checkpoint.run.stage_record(export.checkpoint.stage)
    return {name: task.metric if (task := record.tasks.get(name)) else "exact_match" for name in export.run}


def _eval_results(export: Export) -> list[EvalResult]:
    """The stage's scores on whole test sets, as the run measured them."""
    from huggingface_hub import EvalResult

    # A routed run's scores are those of its guesses; the export does not guess.
    if not export.options.is_exact or export.checkpoint.config.serve == "routed":
        return []
    metrics = _metrics(export)
    kinds = {
        task.name: "text-classification" if task.labels else "text-generation" for task in _tasks(export)
    }
    return [
        EvalResult(
            task_type=kinds.get(name, "text-generation"),
            dataset_type=re.sub(r"[^\w.-]+", "-", name),
            dataset_name=name,
            dataset_split=export.checkpoint.config.evaluate.split,
            metric_type=_METRIC_IDS.get(metrics[name], metrics[name]),
            metric_name=metric_name(metrics[name]),
            metric_value=round(score, 2),
        )
        for name, score in _rows(export)[-1].items()
        if name in metrics
    ]


def _tasks(export: Export) -> Sequence[TaskSource]:
    return export.checkpoint.config.tasks


def _rows(export: Export) -> list[dict[str, float]]:
    """The rows of the accuracy matrix up to the stage: scores by task."""
    run, stage = export.checkpoint.run, export.checkpoint.stage
    return [dict(run.stage_record(k).scores) for k in range(1, stage + 1)]


def _text(export: Export) -> str:
    config, checkpoint = export.checkpoint.config, export.checkpoint
    base = public_name(config.model)
    learned = [task.name for task in config.tasks[: checkpoint.stage]]
    parts = [
        f"# {config.name}",
        f"{base} after learning {', '.join(learned)} (method: {config.method_label}). "
        f"This is {_form(export)}{_choices(export)}.",
        "## Scores",
        _matrix(export),
        _forgotten(export),
        "## This export",
        _checked(export),
        *([_thresholds(export)] if export.thresholds else []),
        "## How to load it",
        f"```python\n{stock_code.loading(export, base)}\n```",
        _asked(export),
        "## Versions",
        _versions(export),
        "## Citation",
        f"```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _form(export: Export) -> str:
    options = export.options
    if export.checkpoint.method.trains == "weights":
        return "one model with the weights that were trained"
    if options.task is None:
        return FORMS[options.form]
    what = "one PEFT LoRA adapter" if options.form == "adapter" else "one model"
    return f"{what} that answers the task {options.task}"


def _choices(export: Export) -> str:
    options = export.options
    said = [
        f"merged by {options.merge}" if options.merge != "sum" else "",
        f"in {export.dtype}" if options.form == "merged" else "",
        f"recompressed to rank {options.rank}" if options.rank else "",
    ]
    return "".join(f", {one}" for one in said if one)


def _matrix(export: Export) -> str:
    stages = [task.name for task in export.checkpoint.config.tasks]
    names = [name for name in stages if export.options.task is None or name in export.run]
    lines = [_row("after learning", names), _row("---", ["---:"] * len(names))]
    for k, row in enumerate(_rows(export)):
        lines.append(_row(stages[k], [f"{row[name]:.1f}" if name in row else "" for name in names]))
    words = "; ".join(f"{name}: {metric_name(metric)}" for name, metric in _metrics(export).items())
    return (
        "\n".join(lines)
        + f"\n\nIn percent of the run's {export.checkpoint.config.evaluate.split} examples ({words})."
    )


def _row(first: str, cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in (first, *cells)]
    return f"| {' | '.join(escaped)} |"


def _forgotten(export: Export) -> str:
    *before, last = _rows(export)
    lines = []
    for task in export.checkpoint.config.tasks[: export.checkpoint.stage - 1]:
        past = [row[task.name] for row in before if task.name in row]
        if task.name in last and past and task.name in export.run:
            lost = max(*past, last[task.name]) - last[task.name]
            lines.append(
                f"- {task.name}: " + (f"{lost:.1f} points below its best score" if lost else "nothing")
            )
    return "Forgotten so far:\n\n" + "\n".join(lines) if lines else ""


def _checked(export: Export) -> str:
    lines = [
        "It was loaded again with stock libraries, and answered the first test examples of each task.",
        "",
        _row("task", ["examples", "the run", "this export", "answers that differ"]),
        _row("---", ["---:"] * 4),
    ]
    for name, score in export.scores.items():
        cells = [
            str(export.examples[name]),
            f"{export.run[name]:.1f}",
            f"{score:.1f}",
            str(export.different[name]),
        ]
        lines.append(_row(name, cells))
    return "\n".join([*lines, *(["", *export.notes] if export.notes else [])])


def _thresholds(export: Export) -> str:
    names = list(export.scores)
    lines = [
        _row("threshold", ["x RMS", "entries kept", "bytes", *names]),
        _row("---:", ["---:"] * (3 + len(names))),
    ]
    for row in export.thresholds:
        cells = [f"{row.factor:.3g}", f"{100 * row.share_kept:.2f} %", f"{row.sparse_bytes:,}"]
        lines.append(_row(f"{row.threshold:.3g}", [*cells, *(f"{row.scores[n]:.1f}" for n in names)]))
    assert export.sizes is not None
    factors = export.sizes.factors_bytes
    as_factors = "" if factors is None else f"{factors:,} bytes as low-rank factors, "
    return (
        "\n".join(lines)
        + f"\n\nThe whole update takes {as_factors}{export.sizes.dense_bytes:,} bytes as dense matrices."
    )


def _asked(export: Export) -> str:
    parts = []
    if export.prompts:
        parts += [
            "It answers best to the prompts that it was trained on. Long texts were shortened until the prompt had at "
            f"most {export.checkpoint.config.train.max_source_tokens} tokens.",
            f"```python\n{stock_code.asking(export)}\n```",
        ]
    if export.conversations:
        parts.append(
            f"Conversations ({', '.join(export.conversations)}) take `tokenizer.apply_chat_template(messages, "
            "add_generation_prompt=True)`."
        )
    return "\n\n".join(["## How to ask it", *parts]) if parts else ""


def _versions(export: Export) -> str:
    trained = read_run_file(export.checkpoint.run.folder)["versions"]
    now = {"nlora": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}
    then = ", ".join(f"{name} {version}" for name, version in trained.items())
    return f"Trained with {then}. Exported with {', '.join(f'{n} {v}' for n, v in now.items())}."
