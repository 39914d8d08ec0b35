"""How well `nlora check` foretells the memory of a run: its estimate beside the measured peak.

    python benchmarks/memory.py                           # all cases on a CPU: about ten minutes
    python benchmarks/memory.py --cases packed-8 t5-8     # some of them

Each case is a run of two of the built-in tasks, in a process of its own, which trains on a few steps of each and then
scores. The peak is the most resident memory that the process had (VmHWM). The estimate is made in a process of its
own as well, before the run. Models with random weights are made in a temporary folder: `mistral` has SmolLM2's shape
and a sliding window, so its batches are padded; `t5` has t5-small's shape.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import measure
from nlora.api.learn import learn
from nlora.config.load import LoadedConfig, load_config
from nlora.models.backbone import load_tokenizer
from nlora.runs.events import Progress
from nlora.runs.memory_estimate import estimate_memory
from nlora.runs.plan import make_plan
from nlora.training.peak_memory import peak_memory_bytes
from one_line import one_line_errors

PARTS = (
    "process",
    "weights",
    "loading",
    "adapter",
    "optimizer",
    "earlier",
    "originals",
    "training",
    "scoring",
)
SHORT, LONG = ("train.max_source_tokens=128",), ("train.max_source_tokens=512",)
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "packed-2": ("smollm2", (*SHORT, "train.batch_size=2")),
    "packed-8": ("smollm2", (*SHORT, "train.batch_size=8")),
    "packed-8-long": ("smollm2", (*LONG, "train.batch_size=8")),
    "packed-24-long-micro-4": ("smollm2", (*LONG, "train.batch_size=24", "train.micro_batch_size=4")),
    "packed-8-long-checkpointing": (
        "smollm2",
        (*LONG, "train.batch_size=8", "train.gradient_checkpointing=true"),
    ),
    "packed-8-long-bfloat16": ("smollm2", (*LONG, "train.batch_size=8", "dtype=bfloat16")),
    "lwf-8-long": ("smollm2", (*LONG, "train.batch_size=8", "method=lwf")),
    "ewc-8": ("smollm2", (*SHORT, "train.batch_size=8", "method=ewc")),
    "seqft-8": ("smollm2", (*SHORT, "train.batch_size=8", "method=seqft", "train.learning_rate=1e-5")),
    "padded-2": ("mistral", (*SHORT, "train.batch_size=2")),
    "padded-8-long": ("mistral", (*LONG, "train.batch_size=8")),
    "t5-8": ("t5", (*SHORT, "train.batch_size=8")),
    "t5-16-long": ("t5", (*LONG, "train.batch_size=16")),
    "tiny-8-long": ("tiny", (*LONG, "train.batch_size=8")),
}
SIZE: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


def make_model(name: str, folder: Path) -> str:
    """The model of a case: the built-in one, or one with random weights, made in `folder`."""
    if name == "smollm2":
        return name
    tokenizer: Any = load_tokenizer("smollm2")
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model: Any
    if name == "mistral":
        model = transformers.MistralForCausalLM(
            transformers.MistralConfig(**SIZE, **common, sliding_window=4096)
        )
    elif name == "tiny":
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{**SIZE, "num_hidden_layers": 4}, **common)
        )
    else:
        config: Any = transformers.T5Config(
            d_model=512, d_ff=2048, d_kv=64, num_heads=8, num_layers=6, **common
        )
        config.decoder_start_token_id = tokenizer.pad_token_id
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(options: argparse.Namespace) -> LoadedConfig:
    """The configuration of one case."""
    batch = next(int(o.partition("=")[2]) for o in options.settings if o.startswith("train.batch_size="))
    return load_config(
        "demo",
        [
            f"model={options.model}", f"output_dir={options.folder}/run",
            "tasks=[reuters,newsgroups]", "evaluate.max_samples=32", "train.epochs=1",
            f"train.max_samples={2 * batch}", *options.settings,
        ],
    )  # fmt: skip


def peak_alone(options: argparse.Namespace) -> dict[str, Any]:
    """What the run of one case needed, in this process."""
    learn(loaded(options), Progress())
    return {"peak": peak_memory_bytes()}


def estimate_alone(options: argparse.Namespace) -> dict[str, Any]:
    """What one case is estimated to need, by a process like this one."""
    found = estimate_memory(make_plan(loaded(options)), device="cpu")
    return {part: getattr(found, part) for part in (*PARTS, "peak")}


def measured(case: str, script: Path, threads: int | None) -> dict[str, Any]:
    """Estimate and peak of a case, each in a fresh process."""
    model, settings = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        arguments = [
            "--model",
            make_model(model, place / "model"),
            "--folder",
            folder,
            "--settings",
            *settings,
        ]
        arguments += ["--threads", str(threads)] if threads else []
        estimate = measure.alone(script, [*arguments, "--alone", "estimate"])
        peak = measure.alone(script, [*arguments, "--alone", "run"])["peak"]
    print(f"{case}: {estimate['peak'] / 2**20:.0f} of {peak / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    return {"case": case, "estimate": estimate, "measured": peak}


def rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One line for each case."""
    lines = []
    for one in found:
        estimate = one["estimate"]
        off = estimate["peak"] / one["measured"] - 1
        lines.append(
            [
                one["case"],
                *(f"{estimate[part] / 2**20:.0f}" for part in PARTS),
                measure.mib(estimate["peak"]),
                measure.mib(one["measured"]),
                f"{off:+.0%}",
            ]
        )
    return lines


@one_line_errors
def main() -> None:
    """Prints the table, or, in a process of its own, what one case needs."""
    made = measure.parser(__doc__)
    made.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    made.add_argument("--alone", choices=["run", "estimate"], help=argparse.SUPPRESS)
    for name in ("--model", "--folder"):
        made.add_argument(name, help=argparse.SUPPRESS)
    made.add_argument("--settings", nargs="*", help=argparse.SUPPRESS)
    options = made.parse_args()
    measure.start(options)
    transformers.utils.logging.disable_progress_bar()
    if options.alone:
        figures = peak_alone(options) if options.alone == "run" else estimate_alone(options)
        measure.write_json(options.json, figures)
        return
    found = [measured(case, Path(__file__), options.threads) for case in options.cases]
    header = ["case", *PARTS, "estimated", "measured", "off"]
    measure.report("memory", options, {"cases": found}, measure.table(header, rows(found)))


if __name__ == "__main__":
    main()
