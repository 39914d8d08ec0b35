"""Everything that has to be found out about nlora on a GPU, in one command of less than ten minutes.

    pip install '.[quant]'                          # on a machine with CUDA; nothing else is downloaded
    python benchmarks/gpu.py --json gpu.json            # all sections
    python benchmarks/gpu.py --sections checks reads    # some of them
    python benchmarks/gpu.py --small --device cpu       # a trial with tiny models

    checks           does the device compute what a CPU, or plain transformers and PEFT, computes? In float32, bfloat16
                     and quantized: packed batches, checkpointing, faster modules, masks, penalties, merging
    operations       how many operations a training step starts
    reads            how often a training step waits for the device
    training-0.1B    nlora beside the Trainer with PEFT, the penalty's share of a step, peaks of memory, the foretold
                     time; a random model of SmolLM2's shape in float32 and bfloat16
    training-1B      the same with Llama-3.2-1B's shape in bfloat16
    attention        a long common prefix, copied for each example or not, and torch's flex_attention
    memory           the peak of a run beside what `nlora check` foretells
    runs             two runs at once on one device

Each section has a process of its own, so none can spoil another; what a stopped one has found stays. The exit status
is 1 if a check failed. Nothing is read from a hub: models and texts are random.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import gpu_measurements as measurements
import measure
from gpu_attention import attention
from gpu_checks import checks
from gpu_material import Row, Sizes
from gpu_operations import operations
from nlora.runs.signals import stopped_like_ctrl_c


def _small_models(sizes: Sizes) -> Iterator[Row]:
    for dtype in ("float32", "bfloat16"):
        yield from measurements.training(sizes, "0.1B", dtype)


def _large_models(sizes: Sizes) -> Iterator[Row]:
    yield from measurements.training(sizes, "1B", "bfloat16")


SECTIONS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
    "checks": lambda sizes: checks(sizes.device),
    "operations": operations,
    "reads": measurements.reads,
    "training-0.1B": _small_models,
    "training-1B": _large_models,
    "attention": attention,
    "memory": measurements.memory,
    "runs": measurements.runs,
}


def rows_of(section: str, sizes: Sizes) -> Iterator[Row]:
    """The rows of a section; what stops it is the last of them."""
    try:
        yield from SECTIONS[section](sizes)
    except Exception as error:  # the other sections go on
        first = str(error).strip().partition("\n")[0]
        yield Row(section, "the section itself", f"{type(error).__name__}: {first}", "failed")


def in_own_process(section: str, argv: Sequence[str], device: str, seconds: float) -> list[Row]:
    """The rows of a section, run by a process that is stopped when its time is up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, __file__, *argv, "--alone", section, "--rows", str(file)]
        # One device: with several, the Trainer would use all of them. Its own session, to stop its children, too.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] if device == "cuda" else ""
        child = subprocess.Popen(
            command,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": visible},
            stdout=sys.stderr,
            start_new_session=True,
        )
        try:
            status: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [Row(**json.loads(line)) for line in lines]
    if status is None:
        rows.append(Row(section, "the rest", "", "skipped: out of time"))
    elif status:
        rows.append(Row(section, "the section itself", f"ended with status {status}", "failed"))
    return rows


def write_rows(section: str, sizes: Sizes, file: Path) -> None:
    """Each row of a section as a line of JSON, as soon as it is there, and for the eye: a lent machine may be gone."""
    with file.open("w", encoding="utf-8") as lines:
        for row in rows_of(section, sizes):
            lines.write(json.dumps(asdict(row)) + "\n")
            lines.flush()
            print(f"{row.section}: {row.what}: {row.value} ({row.verdict})", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = measure.parser(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="(default: cuda where there is one)")
    parser.add_argument(
        "--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="(default: all)"
    )
    parser.add_argument("--small", action="store_true", help="tiny models, to try this command out")
    parser.add_argument("--seconds", type=float, default=570, help="time limit in seconds (default: 570)")
    parser.add_argument("--together", action="store_true", help="all sections in this process")
    parser.add_argument("--alone", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sections, prints the table, writes JSON. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    measure.start(options)
    sizes = Sizes(options.device, options.small, options.rounds)
    if options.alone:
        write_rows(options.alone, sizes, options.rows)
        return 0
    if (options.device == "cuda") > torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries the command out")
    if options.together and (options.device == "cuda") != torch.cuda.is_available():
        parser.error("nlora takes the GPU; with CUDA_VISIBLE_DEVICES= there is none")
    end = time.monotonic() + options.seconds
    rows: list[Row] = []
    stopped = False
    try:
        with stopped_like_ctrl_c():  # SIGTERM stops the section, too
            for section in options.sections:
                left = end - time.monotonic()
                if left <= 0:
                    rows.append(Row(section, "all of it", "", "skipped: out of time"))
                elif options.together:
                    rows += rows_of(section, sizes)
                else:
                    rows += in_own_process(section, argv, options.device, left)
                print(f"{section}: done", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        stopped = True
        print("stopped; its rows are above, those of the sections before it below", file=sys.stderr)
    table = measure.table(
        ["section", "what", "found", ""], [[r.section, r.what, r.value, r.verdict] for r in rows]
    )
    figures: dict[str, Any] = {"rows": [asdict(row) for row in rows]}
    measure.report("gpu", options, figures, table)
    return 130 if stopped else int(any(row.verdict == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
