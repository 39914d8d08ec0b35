"""What the benchmarks share: fair turns, medians with their spread, the machine's name, tables and JSON.

    turns = interleave({"nlora": run_nlora, "trainer": run_trainer}, rounds=5)   # name -> results, one a round
    print(Spread.of([turn.seconds for turn in turns["nlora"]]))                  # 4.02 (3.98 to 4.11)

Computers are never equally fast for long, so contestants take turns in one process, each round in another order,
and a ratio is taken within each round. Only the peak of memory is read in a process of its own (`alone`), since a
process cannot forget it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from nlora.data import builtin, cl_benchmark
from nlora.data.task import Task, TokenizedExample
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, Problem
from nlora.models.backbone import Backbone, load_backbone, load_tokenizer

T = TypeVar("T")
T5_BASE = "t5-base-shape"
"""The name of a random T5 of t5-base's shape, which needs no download."""
POOL_EXAMPLES = 400
"""50 batches of 8, as many as transformers and nlora sort by length at a time."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the most of what it was taken of."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises InputErrors where there are no values."""
        if not values:
            raise InputErrors([Problem("--rounds", "no values to take a median of; run at least one round")])
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


def interleave(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Each contestant's results, one a round; a round begins with the next contestant each time.

    contestants: called with the number of the round, counted from 0, as a seed that all of them share.
    """
    names = list(contestants)
    results: dict[str, list[T]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()  # nobody pays for what another left behind
            results[name].append(contestants[name](i))
            print(f"round {i + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    return results


def ratios(upper: Sequence[float], lower: Sequence[float]) -> Spread:
    """upper / lower, taken within each round."""
    return Spread.of([a / b for a, b in zip(upper, lower, strict=True)])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """What the figures were measured on: processor, threads, versions."""
    name = platform.processor() or platform.machine()
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": name,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def described(on: Mapping[str, Any]) -> str:
    """The machine in one line, to stand above a table."""
    gpu = f"{on['gpu']}, " if on["gpu"] else ""
    return (
        f"{gpu}{on['processor']}, {on['threads']} threads, "
        f"torch {on['torch']}, transformers {on['transformers']}"
    )


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default: 5)")
    made.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    made.add_argument("--json", type=Path, help="write the figures to this file, too")
    return made


def model_options(made: argparse.ArgumentParser) -> None:
    """Options of the benchmarks that need a model."""
    made.add_argument(
        "--model", default="smollm2", help=f"hub id, folder, smollm2 or {T5_BASE} (random weights)"
    )
    made.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="everybody's (default: float32)"
    )


def data_options(made: argparse.ArgumentParser, *, steps: int) -> None:
    """Options of the benchmarks that train: the model, its examples, batches."""
    model_options(made)
    made.add_argument(
        "--data",
        default=default_data(),
        help="folder in the released layout, or builtin (default: the reference data where they are, else "
        "builtin)",
    )
    made.add_argument("--dataset", help="one data set of it (default: agnews; builtin: reuters)")
    made.add_argument("--batch-size", type=int, default=8, help="examples per step (default: 8)")
    made.add_argument("--steps", type=int, default=steps, help=f"steps of a turn (default: {steps})")
    made.add_argument("--max-source-tokens", type=int, default=512, help="longest prompt (default: 512)")


def default_data() -> str:
    """The reference data of NLORA_SHARED (../shared if not set) where they are, else the built-in tasks."""
    folder = Path(os.environ.get("NLORA_SHARED", "../shared")) / "data" / "CL_Benchmark"
    return str(folder) if folder.is_dir() else "builtin"


def read_task(data: str, dataset: str | None) -> Task:
    """One data set of a folder in the released layout, or one of the built-in tasks."""
    if data == "builtin":
        return builtin.read(dataset or "reuters")
    return cl_benchmark.read(Path(data), dataset or "agnews")


def read_model(name: str, dtype: str = "float32") -> Backbone:
    """A backbone by its name, or a random T5 of t5-base's shape over the built-in default's tokenizer."""
    if name != T5_BASE:
        return load_backbone(name, dtype=dtype)
    tokenizer: Any = load_tokenizer("smollm2")
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=768, d_ff=3072, d_kv=64, num_heads=12, num_layers=12,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config.decoder_start_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model: Any = transformers.T5ForConditionalGeneration(config).eval().requires_grad_(False)
    model.to(getattr(torch, dtype))
    return Backbone(model, tokenizer, True, name)


def read_examples(backbone: Backbone, options: argparse.Namespace) -> Sequence[TokenizedExample]:
    """The examples that `data_options` name, the first POOL_EXAMPLES of them."""
    task = read_task(options.data, options.dataset)
    encoder = ExampleTokenizer(
        backbone.tokenizer,
        encoder_decoder=backbone.encoder_decoder,
        max_source_tokens=options.max_source_tokens,
        max_target_tokens=50,
    )
    return encoder.encode(task, task.train[:POOL_EXAMPLES])


def typical_batches(
    examples: Sequence[TokenizedExample], batch_size: int, batches: int
) -> list[list[TokenizedExample]]:
    """A few batches that stand for many: neighbors in length, at evenly spread places of all lengths.

    They are what batches by length are in a long run, the shorter ones first.
    Raises InputErrors if there are fewer examples.
    """
    wanted = batches * batch_size
    if not 0 < wanted <= len(examples):
        what = f"{batches} batches of {batch_size} examples, but the data set has {len(examples)}"
        raise InputErrors([Problem("--rounds times --steps", what)])
    by_length = sorted(examples, key=tokens_of)
    share = len(by_length) / batches  # examples that each batch stands for
    starts = [int(i * share + (share - batch_size) / 2) for i in range(batches)]
    return [by_length[start : start + batch_size] for start in starts]


def of_rounds(
    batches: Sequence[list[TokenizedExample]], rounds: int, by_length: bool
) -> list[list[TokenizedExample]]:
    """The examples of each round; every example is in one of them.

    by_length: whole batches of neighbors in length, of all lengths in each round, for those who put them
    together again. Else drawn at random over all rounds, as batches without grouping are.
    """
    if by_length:
        return [[e for batch in batches[i::rounds] for e in batch] for i in range(rounds)]
    everything = [e for batch in batches for e in batch]
    random.Random(0).shuffle(everything)
    share = len(everything) // rounds
    return [everything[i * share : (i + 1) * share] for i in range(rounds)]


def longest_batch(examples: Sequence[TokenizedExample], batch_size: int) -> list[TokenizedExample]:
    """The batch that decides the peak of memory."""
    return sorted(examples, key=tokens_of)[-batch_size:]


def tokens_of(example: TokenizedExample) -> int:
    """Length of an example, its answer included."""
    return len(example.prompt_ids) + len(example.answer_ids)


class Positions:
    """Counts the positions that a model embeds while it trains, whoever calls it."""

    def __init__(self, model: Any) -> None:
        weight = model.get_input_embeddings().weight
        # T5's encoder and decoder have an embedding each, of the same weight.
        self._embeddings = [
            m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.weight is weight
        ]
        self.count = 0

    def __enter__(self) -> Positions:
        self._hooks = [embedding.register_forward_hook(self._add) for embedding in self._embeddings]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():  # not when nlora tries the shared prefix out
            self.count += inputs[0].numel()


def alone(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What a script writes with --json, run in a process of its own; its errors are shown as they are."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, str(script), *arguments, "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def start(options: argparse.Namespace) -> None:
    """What every benchmark does first."""
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of every process that this one starts
    # PEFT asks transformers under the older of two names.
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


def write_json(file: Path | None, figures: Mapping[str, Any]) -> None:
    """The figures as JSON; nothing without a file."""
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def report(name: str, options: argparse.Namespace, figures: Mapping[str, Any], *tables: str) -> None:
    """Prints the tables under what they were measured with and on, and writes the JSON."""
    on = machine()
    settings = {k: v for k, v in vars(options).items() if k not in {"json", "alone"}}
    write_json(options.json, {"benchmark": name, "machine": on, "settings": settings, **figures})
    print(", ".join(f"{k} {_plain(v)}" for k, v in settings.items() if v is not None and k != "data"))
    print(described(on), *tables, sep="\n\n")


def _plain(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def mib(size_bytes: float) -> str:
    """A size of memory to read."""
    return f"{size_bytes / 2**20:.0f} MiB"
