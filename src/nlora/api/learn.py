"""Learns the tasks of a configuration: checks everything, trains and scores stage after stage, writes the report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from shutil import copytree

from nlora import __version__
from nlora.api.downloads import announce_downloads
from nlora.api.finish import finish_run
from nlora.config.load import LoadedConfig
from nlora.data.general_text import general_text
from nlora.data.scorers import versions_of_scorers
from nlora.errors import InputErrors, RunError
from nlora.evaluation.choices import decode_of
from nlora.methods.registry import version_of
from nlora.models import launchers, processes
from nlora.report.formatting import duration
from nlora.runs.events import Progress
from nlora.runs.folder import RunFolder
from nlora.runs.follower import open_together
from nlora.runs.importing import importing
from nlora.runs.layout import OUTPUTS, REPORT_FILE, RUN_FILE
from nlora.runs.plan import Plan, make_plan
from nlora.runs.plan_notes import plan_notes
from nlora.runs.repair import Damages, Repair, damage_to_repair, refuse_damage, trains
from nlora.runs.resume_points import latest_position
from nlora.runs.run_yaml import is_recorded, latest_versions, read_run_file
from nlora.runs.summary import Summary, read_summary


def learn(loaded: LoadedConfig, progress: Progress, *, repair: bool = False) -> Summary:
    """Learn the sequence of tasks, or resume it; a complete run is left alone.

    repair: do again what is damaged in the folder; otherwise RunError names it.
    If a launcher has started several processes, all of them learn one run, and only the main one reports progress.

    Raises InputErrors with all mistakes in data, model and method before anything is written.
    """
    with processes.joined():
        return _learn(loaded, progress if processes.is_main() else Progress(), repair=repair)


def _learn(loaded: LoadedConfig, progress: Progress, *, repair: bool) -> Summary:
    with importing():
        from nlora.models.backbone import load_backbone
        from nlora.models.fast_paths import agreed
        from nlora.runs.general import refuse_other_numbers
        from nlora.runs.preflight import preflight, probes
        from nlora.runs.sequence import learn_sequence
        from nlora.runs.stage_results import task_records
        from nlora.training.random_state import kept_random_state
        from nlora.training.trackers import one_wandb_run

    config = loaded.config
    folder = Path(config.output_dir)
    if len(set(processes.gather(config.model_dump_json()))) > 1:
        raise RunError(
            "the processes of this run were started with different configurations; give all of them the same, or start "
            "runs of their own one by one (under Slurm with srun --ntasks=1)"
        )
    if repair and processes.size() > 1:
        whole = " and set fsdp=false" if config.fsdp else ""
        raise RunError(
            f"a repair takes one process; leave --processes or the launcher out{whole} until it is done"
        )
    plan = unfinished_plan(loaded, progress, repair=repair)
    if plan is None:
        return processes.from_main(_complete, loaded, progress)
    damage: Damages = damage_to_repair(RunFolder.read(config), loaded.base_folder) if repair else {}
    with (
        kept_random_state(),
        open_together(config, versions(loaded), loaded.base_folder, damaged=damage) as run,
        _saying_what_is_kept(run, progress),
    ):
        task_records(run, plan.tasks)  # refuses changed examples before the model is loaded
        refuse_other_numbers(run, plan.general)
        run.attach_log()
        done = len(run.committed_stages())
        if run.is_learned():
            progress.say(
                f"{folder}: all stages are learned; what is missing of the untouched model is measured"
            )
        elif done and not damage:
            progress.say(f"{folder}: resuming after stage {done}")
        backbone = load_backbone(
            config.model,
            dtype=config.dtype,
            quantize=config.quantize,
            fsdp=config.fsdp,
            trust_remote_code=config.trust_remote_code,
        )
        paths = preflight(
            backbone,
            [probes(task, plan.encoder) for task in plan.tasks],
            lora=config.lora,
            method=plan.methods[0],
            needs_gradients=plan.methods[0].trains == "adapter",
            generates=any(decode_of(task, config.evaluate) == "generate" for task in plan.tasks),
            longest=plan.soft_tokens + plan.encoder.longest_text(plan.tasks),
        )
        paths = agreed(processes.gather(paths))
        if not run.is_learned():
            progress.say(_announced(plan, run, damage))
        alone = launchers.lone_note(os.environ)
        for note in (*plan_notes(plan), *paths.notes, *([alone] if alone else [])):
            progress.say(f"- {note}")
        with one_wandb_run():
            repairs = Repair(run, damage, plan.methods, progress) if repair else None
            learn_sequence(plan, backbone, run, progress, paths, repair=repairs)
        return processes.from_main(finish_run, run, progress)


def _announced(plan: Plan, run: RunFolder, damage: Damages) -> str:
    """What is about to be done, and about how long the training takes."""
    config = plan.config
    stages = range(1, len(plan.tasks) + 1)
    new = [stage for stage in stages if stage not in damage and not run.is_committed(stage)]
    work = [f"repairs {_counted(len(damage), 'stage')}"] if damage else []
    if new:
        more = "more " if len(new) < len(stages) else ""
        work.append(f"learns {_counted(len(new), more + 'task')}")
    trained = [*new, *(stage for stage, found in damage.items() if trains(found))]
    time = f", about {duration(plan.seconds(trained))}" if trained else ""
    together = f" in {processes.size()} processes" if processes.size() > 1 else ""
    return f"{config.name}: {config.method_label} {' and '.join(work)} on {config.model}{together}{time}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def begin_with_stage_of(loaded: LoadedConfig, source: Path) -> bool:
    """Take the first stage of the run in a folder over; False if this run has one already.

    The caller knows that this run would have learned the same, to the bit.
    """
    with (
        processes.joined(),
        open_together(loaded.config, versions(loaded), loaded.base_folder) as run,
    ):
        if run.committed_stages():
            return False
        first = run.stage_folder(1).name
        with run.stage(1) as folder:
            processes.from_main(copytree, source / OUTPUTS / first, folder, dirs_exist_ok=True)
        run.write_summary()
    return True


def unfinished_plan(loaded: LoadedConfig, progress: Progress, *, repair: bool = False) -> Plan | None:
    """The plan of a run that can start, resume or be repaired; None if nothing is left to learn or to score.

    Raises RunError for a damaged run that is not to be repaired.
    """
    if processes.from_main(_is_learned, loaded, progress, repair=repair):
        return None
    if loaded.config.fsdp and processes.size() == 1:
        way_out = "set fsdp=false" if repair else "add --processes N, or set fsdp=false"
        what = f"shards the model over several processes, but this is one; {way_out}"
        raise InputErrors([loaded.places.problem(("fsdp",), what)])
    announce_downloads(loaded.config, progress)
    return processes.main_first(lambda: make_plan(loaded))


def _is_learned(loaded: LoadedConfig, progress: Progress, *, repair: bool) -> bool:
    """Whether nothing is left to learn; an existing run first says whether it belongs to this configuration."""
    config, folder = loaded.config, Path(loaded.config.output_dir)
    if repair:
        read_run_file(folder)  # a folder without a run has nothing to repair
    if not (folder / RUN_FILE).is_file():
        return False
    run = RunFolder.existing(config)
    if not repair:
        refuse_damage(run, loaded.base_folder)
    else:
        run.damaged.update(damage := damage_to_repair(run, loaded.base_folder))
        if not damage:
            progress.say(f"{folder}: no stage is damaged")
    return run.is_learned() and not (run.lacks_zero_shot() or run.lacks_general())


def versions(loaded: LoadedConfig) -> dict[str, str]:
    """What a run's numbers depend on in addition to its configuration."""
    packages = ("torch", "transformers", "peft", "accelerate", "tokenizers")
    return {
        "nlora": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        **version_of(loaded.config.method.name, loaded.base_folder),
        **versions_of_scorers(loaded.config, loaded.base_folder),
        "processes": str(processes.size()),
    }


def _complete(loaded: LoadedConfig, progress: Progress) -> Summary:
    """The summary of a run whose stages are all committed; what follows from them is made again if it is missing."""
    folder = Path(loaded.config.output_dir)
    is_complete = RunFolder.read(loaded.config).is_complete() and (folder / REPORT_FILE).exists()
    if is_complete and is_recorded(folder, loaded.config):
        progress.say(f"{folder}: complete, nothing to do")
        return read_summary(folder)
    if options := loaded.config.evaluate.general:
        from nlora.runs.general import GeneralPlan, refuse_other_numbers

        text = general_text(options, [Path(), loaded.base_folder])
        wanted = GeneralPlan(options, loaded.config.evaluate.batch_size, text=text)
        refuse_other_numbers(run := RunFolder.read(loaded.config), wanted)
        if run.general_before() is None:
            progress.say(f"{folder}: evaluate.general is measured with the tasks that follow")
    # Nothing is trained or scored, so the numbers depend on what they were made with.
    with RunFolder.open(loaded.config, latest_versions(folder), loaded.base_folder) as run:
        progress.say(f"{folder}: all stages are learned; summary and report are made again")
        return finish_run(run, progress)


@contextmanager
def _saying_what_is_kept(run: RunFolder, progress: Progress) -> Iterator[None]:
    """If the block fails or is stopped, say what the folder keeps and where the same command resumes."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) and processes.is_first(error):
            run.log_failure(error)
        kept = _what_is_kept(run)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(kept) from error
        if run.committed_stages() or run.trained_records():
            progress.say(kept)
        raise


def _what_is_kept(run: RunFolder) -> str:
    done, tasks = len(run.committed_stages()), run.config.tasks
    kept = f"{run.folder} keeps {done} of {len(tasks)} stages"
    if done == len(tasks):
        return f"{kept}; the same command resumes with the report"
    following = f"stage {done + 1}, {tasks[done].name}"
    if done + 1 in run.trained_records():
        return f"{kept}, and {following} is trained; the same command resumes with its scoring"
    if position := latest_position(run.resume_folder(done + 1)):
        half = f"{position.step} of {position.steps} steps of {following}"
        return f"{kept}, and {half}; the same command resumes there"
    return f"{kept}; the same command resumes with {following}"
