"""Memory of processes that share a run on a CPU: what a machine holds once, and what each process holds.

    python benchmarks/originals.py                    # 2 and 4 processes, the default model
    python benchmarks/originals.py --targets all-linear --processes 8

The processes load the model, merge an update into its target modules, and read all of its weights. Then each reads
its proportional set size (Pss in /proc/self/smaps_rollup): a page that n processes share counts 1/n for each, so the
sum over the processes is what the machine holds. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import measure
from nlora.config.schema import LoraOptions
from nlora.models import merged_updates, processes, shared_tensors
from nlora.models.backbone import load_backbone
from nlora.models.lora_factors import LoraFactors
from nlora.models.merged_updates import MergedUpdates
from nlora.models.target_modules import target_modules
from one_line import one_line_errors

ONCE = ("nothing", "weights", "weights and originals")
"""What the processes of a machine hold once: the files' own pages, and the copies that updates are merged into."""


def held(model: str, targets: str, once: str) -> dict[str, float]:
    """What one process of a group holds after a merge, in MiB: Pss and Rss, and the originals' own size."""
    if once != ONCE[-1]:
        module: Any = merged_updates
        module.once_per_machine = shared_tensors._copies
    with processes.joined():
        backbone = load_backbone(model)
        if once == ONCE[0]:
            backbone.model.to("cpu:0")  # which to torch is another device than cpu
        chosen = targets if targets == "all-linear" else targets.split(",")
        modules = target_modules(backbone.model, LoraOptions(targets=chosen))
        update = {
            m.name: LoraFactors(torch.ones(8, m.in_features), torch.ones(m.out_features, 8), 1e-6)
            for m in modules
        }
        merged = MergedUpdates(backbone.model, list(update))
        merged.activate([update])
        for weight in backbone.model.parameters():
            weight.sum()
        processes.barrier()
        found = rollup()
        processes.barrier()
    return {**found, "originals": sum(o.nbytes for o in merged._originals.values()) / 2**20}


def rollup() -> dict[str, float]:
    """Pss and Rss of this process in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    return {name: kib[name] / 1024 for name in ("Pss", "Rss")}


def together(size: int, model: str, targets: str, once: str) -> list[dict[str, float]]:
    """What each of several processes holds."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    with tempfile.TemporaryDirectory() as folder:
        given = ["--model", model, "--targets", targets, "--once", once, "--alone", folder]
        subprocess.run([*launch, __file__, *given], check=True)
        return [json.loads(file.read_text()) for file in Path(folder).iterdir()]


@one_line_errors
def main() -> None:
    """Print the table, or, in a process of a group, write what it holds."""
    made = measure.parser(__doc__)
    made.add_argument("--model", default="smollm2")
    made.add_argument("--targets", default="q_proj,v_proj", help="target modules, or all-linear")
    made.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    made.add_argument("--once", choices=ONCE, help=argparse.SUPPRESS)
    made.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.alone:
        found = held(options.model, options.targets, options.once)
        (options.alone / os.environ["RANK"]).write_text(json.dumps(found))
        return
    measure.start(options)
    figures, rows = [], []
    with tempfile.TemporaryDirectory() as folder:  # files that no other process has opened
        backbone: Any = load_backbone(options.model)
        backbone.model.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
        del backbone
        for size, once in itertools.product(options.processes, ONCE):
            each = together(size, folder, options.targets, once)
            figures.append({"processes": size, "once": once, "each": each})
            sizes = [each[0]["originals"], *(sum(one[name] for one in each) for name in ("Pss", "Rss"))]
            rows.append([size, once, *(f"{mib:.0f} MiB" for mib in sizes)])
    header = ["processes", "held once", "originals", "sum of Pss", "sum of Rss"]
    measure.report("originals", options, {"groups": figures}, measure.table(header, rows))


if __name__ == "__main__":
    main()
