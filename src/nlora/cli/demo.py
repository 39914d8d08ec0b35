"""`nlora demo`: three runs of the built-in recipe, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from nlora.cli.launch import Processes, end_with_launcher, launch
from nlora.cli.options import Overrides
from nlora.cli.run import learn_and_show
from nlora.errors import InputErrors, Problem
from nlora.models.processes import is_main, joined, size

if TYPE_CHECKING:
    from nlora.config.load import LoadedConfig

DEMO = "demo"
DEMO_METHODS = ("nlora", "inclora", "replay")
BESIDE = "nlora"
"""The run that another process learns, because it has nothing in common with the others."""
SAME_FIRST_STAGE = {"replay": "inclora"}
"""At the first task there is nothing to replay, so the demo learns it once for both."""


def demo(overrides: Overrides = None, processes: Processes = 1) -> None:
    """Compare N-LoRA, no protection and a few kept examples on the built-in model and tasks."""
    from nlora.api.learn import begin_with_stage_of
    from nlora.cli.bars import WorkConsole
    from nlora.report.terminal import comparison_table

    texts = overrides or []
    if processes > 1:
        launch(processes, ["demo", *texts])
    end_with_launcher()
    with joined():
        console = WorkConsole(quiet=not is_main())
        runs = dict(zip(DEMO_METHODS, _demo_runs(texts, console), strict=True))
        summaries = {}
        with _beside(runs[BESIDE], texts, console) as wait:
            order = [*runs]
            if wait:  # the other process needs about as long as the next run here
                order.remove(BESIDE)
                order.insert(1, BESIDE)
            for method in order:
                if wait and method == BESIDE:
                    wait()
                loaded, same = runs[method], SAME_FIRST_STAGE.get(method)
                if same and begin_with_stage_of(loaded, Path(loaded.config.output_dir).with_name(same)):
                    first = loaded.config.tasks[0].name
                    console.print(f"{method} begins with what {same} has learned of {first}: it is the same")
                summaries[method] = learn_and_show(loaded, console)
                console.print()
        console.print(comparison_table([summaries[method] for method in DEMO_METHODS]))


@contextmanager
def _beside(
    loaded: LoadedConfig, texts: list[str], console: Console
) -> Iterator[Callable[[], object] | None]:
    """A block in which another process learns a run with half of the threads; yields what waits for it.

    Two processes with one thread each compute more than one with two. None where there is nothing to share: on a GPU,
    with one thread, with several processes, and if the run is complete. Whatever the process leaves undone, because
    it failed or was killed, is left for the caller to resume.
    """
    import torch

    from nlora.sweeps.processes import Job, launch_tethered, stop

    folder, threads = Path(loaded.config.output_dir), torch.get_num_threads()
    if threads < 2 or torch.cuda.is_available() or size() > 1 or _is_complete(folder):
        yield None
        return
    own = [text for text in texts if text.partition("=")[0].strip() != "output_dir"]
    arguments = ["run", DEMO, f"method={BESIDE}", f"name={BESIDE}", *own]
    arguments.append(f"output_dir={json.dumps(str(folder))}")
    log = folder.parent / "logs" / f"{folder.name}.log"
    half = {"OMP_NUM_THREADS": str(threads // 2), "OMP_WAIT_POLICY": "passive"}
    process = launch_tethered(Job(BESIDE, tuple(arguments), log, folder), half)
    said = f"{BESIDE} is learned at the same time, by another process; its log: {log}"
    console.print(said, soft_wrap=True, markup=False, highlight=False)
    torch.set_num_threads(threads - threads // 2)

    def wait() -> None:
        with console.status(f"waiting for {BESIDE}"):
            process.wait()
        torch.set_num_threads(threads)

    try:
        yield wait
    finally:
        torch.set_num_threads(threads)
        stop([process])


def _is_complete(folder: Path) -> bool:
    from nlora.errors import NloraError
    from nlora.runs.summary import read_summary

    try:
        return read_summary(folder).status == "complete"
    except (NloraError, OSError):
        return False


def _demo_runs(texts: list[str], console: Console) -> list[LoadedConfig]:
    """The demo's runs. Raises InputErrors for mistakes in any of them, before the first one trains."""
    from nlora.api.learn import unfinished_plan
    from nlora.config.load import load_config
    from nlora.runs.events import Progress

    for text in texts:
        if text.partition("=")[0].strip() in ("method", "method.name", "name"):
            *first, last = DEMO_METHODS
            own = f"to run one of your own: nlora run demo {text}"
            what = f"nlora demo runs {', '.join(first)} and {last}; {own}"
            raise InputErrors([Problem(text, what)])
    folder = Path(load_config(DEMO, ["output_dir=runs/demo", *texts]).config.output_dir)
    runs = []
    for method in DEMO_METHODS:
        loaded = load_config(DEMO, [f"method={method}", f"name={method}", *texts])
        config = loaded.config.model_copy(update={"output_dir": str(folder / method)})
        runs.append(replace(loaded, config=config))
    for loaded in runs[1:]:  # the first one's are reported when it starts
        unfinished_plan(
            loaded, Progress(lambda event: console.print(str(event), markup=False, highlight=False))
        )
    return runs
