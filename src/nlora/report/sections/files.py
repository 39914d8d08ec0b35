"""The section about a run's folder: what lies where, and the commands that use it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nlora.report.page_blocks import Block, Fold, Section, Table, Text, words
from nlora.report.run_files import RunFiles
from nlora.report.variants import Variant, runs_of
from nlora.report.wording import into, method_of, shown_folder, trains
from nlora.runs.layout import ADAPTER, LOG_FILE, OUTPUTS, PREDICTIONS_FILE, RUN_FILE, STAGE_FILE
from nlora.runs.summary import SUMMARY_FILE

_IN_THE_RUN = (
    (RUN_FILE, "the configuration with all defaults, and the versions"),
    (SUMMARY_FILE, "the accuracy matrix, the averages, how they were scored"),
    ("zero_shot.json", "the scores before any training"),
    ("analysis.json", "where the updates collide"),
    (LOG_FILE.as_posix(), "what was printed, with times"),
)
_IN_A_STAGE = (
    (f"{ADAPTER}/", "the task's update, a PEFT adapter"),
    (PREDICTIONS_FILE, "every answer, with its prompt"),
    ("all_results.json", "the scores of the stage, also by label"),
    ("trainer_state.json", "loss, penalty and learning rate by step"),
    (STAGE_FILE, "scores, times, memory, digests of the examples"),
)


def files(variants: Sequence[Variant]) -> Section:
    """The files of one run; several have the same in folders of their own."""
    runs = runs_of(variants)
    run = runs[0]
    about = (
        "What a run leaves in its folder. Paths are relative to the folder in which the report was written."
    )
    blocks: list[Block] = []
    if len(runs) > 1:
        table = Table(
            "The folders",
            ("run", "folder"),
            tuple(words(each.label, shown_folder(each)) for each in runs),
            words=frozenset({0, 1}),
        )
        blocks.append(Fold(f"The {len(runs)} folders", (table,)))
    blocks.append(_table(run, many=len(runs) > 1))
    if run.stages:
        blocks += _commands(run)
    return Section("files", "Files", about, blocks, "Files")


def _table(run: RunFiles, *, many: bool) -> Table:
    rows = [words(name, what) for name, what in _IN_THE_RUN if (run.folder / name).exists()]
    if run.stages:
        last = run.stages[-1]
        place = f"{OUTPUTS}/{last.folder.name}"
        rows += [
            words(f"{place}/{name}", what) for name, what in _IN_A_STAGE if (last.folder / name).exists()
        ]
    note = "The other runs have folders like this one's. " if many else ""
    note += "The other stages have folders like the last one's." if len(run.stages) > 1 else ""
    return Table(f"In {shown_folder(run)}", ("file", "what it is"), tuple(rows), note, frozenset({0, 1}))


def _commands(run: RunFiles) -> list[Block]:
    folder = shlex.quote(shown_folder(run))
    task = shlex.quote(run.tasks[0])
    return [
        *_export(run, folder, task),
        Text("Answer new texts of a task:", code=f"nlora predict {folder} --task {task} --file new.csv"),
        Text(
            "Learn one more task: append it to tasks in the configuration that made the run, and start it again:",
            code=f"nlora run CONFIG.yaml {into(shown_folder(run))}",
        ),
    ]


def _export(run: RunFiles, folder: str, task: str) -> list[Block]:
    """The command that writes the model; none where no export holds it."""
    if run.config is None or trains(run) == "prompts":
        return []
    method, out = method_of(run), shlex.quote(f"exports/{run.folder.resolve().name}")
    needs_task = run.config.serve is not None or (method is not None and method.needs_task)
    of_task = f" --task {task}" if needs_task else ""
    if run.config.quantize is not None:
        what, form = "Write the updates as one LoRA for transformers or vLLM:", "adapter"
    else:
        hint = " (--as adapter: one LoRA instead)" if trains(run) == "adapter" else ""
        what, form = f"Write the model for transformers, vLLM or llama.cpp{hint}:", "merged"
    return [Text(what, code=f"nlora export {folder} --as {form}{of_task} {out}")]
