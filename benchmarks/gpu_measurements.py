"""What gpu.py measures: training beside the Trainer, reads of the host, a long prefix, memory, whole runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

import measure
from contestants import LORA, Contestant, contestant
from gpu_checks import one_call
from gpu_material import SHAPES, Row, Sizes, backbone_of, examples_of, write_run
from host_reads import HostReads
from measure import Spread
from nlora.config.load import load_config
from nlora.config.train_options import TrainOptions
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.fast_paths import FastPaths
from nlora.models.lora_adapter import LoraAdapter
from nlora.runs import time_estimate
from nlora.runs.plan import make_plan
from nlora.training.fast_modules import fast_modules
from nlora.training.peak_memory import peak_memory_bytes, reset_peak_memory
from nlora.training.result import TrainResult
from nlora.training.trainer import train


def training(sizes: Sizes, name: str, dtype: str) -> Iterator[Row]:
    """Examples per second beside the Trainer with PEFT, the penalty's share, peaks, the foretold time."""
    section = f"training {sizes.shape(name)} {dtype}"
    backbone = backbone_of(sizes.shape(name), sizes.device, dtype)
    pool = examples_of(sizes.batch * sizes.rounds * sizes.steps, vocabulary=_vocabulary(sizes.shape(name)))
    batches = measure.typical_batches(pool, sizes.batch, sizes.rounds * sizes.steps)
    peaks: dict[str, int] = {}
    turns: dict[str, Callable[[int], Any]] = {}
    contestants = contestants_of(backbone, sizes)
    for who, turn in contestants.items():
        turn(batches[0], 0)
        shares = measure.of_rounds(batches, sizes.rounds, by_length=who != "trainer")
        turns[who] = partial(_with_peak, peaks, who, turn, shares)
    found = measure.interleave(turns, sizes.rounds)
    count = sizes.batch * sizes.steps
    seconds = {who: [turn.seconds for turn in some] for who, some in found.items()}
    for who, some in seconds.items():
        speed = Spread.of([count / s for s in some])
        ratio = "" if who == "nlora" else f", nlora is {measure.ratios(some, seconds['nlora'])} times as fast"
        peak = f", peak {measure.mib(peaks[who])}" if sizes.device == "cuda" else ""
        yield Row(section, who, f"{speed} examples/s{ratio}{peak}")
    share = statistics.median(t.penalty_seconds * sizes.steps / t.seconds for t in found["nlora"])
    yield Row(section, "penalty / step", f"{share:.1%}")
    layers = sum(isinstance(m, nn.Linear) for m in backbone.model.modules())
    parameters = sum(p.numel() for p in backbone.model.parameters())
    expected = time_estimate.Speed.here(parameters, layers, dtype)
    tokens = statistics.mean(map(measure.tokens_of, pool))
    foretold = time_estimate.train_seconds(
        expected, tokens=tokens, shared=60, rows=sizes.batch, passes=sizes.steps
    )
    measured = statistics.median(seconds["nlora"])
    yield Row(section, "matrix rate that a step is taken to reach", f"{expected.rate / 1e12:.3g} TFLOP/s")
    yield Row(section, "foretold / measured seconds", f"{foretold / measured:.2f}")


def contestants_of(backbone: Any, sizes: Sizes) -> dict[str, Contestant]:
    """nlora as it trains on a GPU, and without what it does there; the Trainer with PEFT."""
    names = ("nlora", "plain-penalty", "trainer", "grouped")
    made = {name: contestant(name, backbone, sizes.batch) for name in names}

    def plainer(examples: Sequence[TokenizedExample], seed: int) -> Any:
        with patch("nlora.training.fast_training.fast_modules", partial(fast_modules, devices=())):
            return made["nlora"](examples, seed)

    def by_kind(examples: Sequence[TokenizedExample], seed: int) -> Any:
        with one_call(()):
            return made["nlora"](examples, seed)

    return {
        **made,
        "nlora without fast_modules": plainer,
        "nlora, a call of attention for each kind of token": by_kind,
    }


def _with_peak(
    peaks: dict[str, int],
    name: str,
    turn: Contestant,
    shares: Sequence[list[TokenizedExample]],
    number: int,
) -> Any:
    reset_peak_memory()
    result = turn(shares[number], number)
    peaks[name] = max(peaks.get(name, 0), peak_memory_bytes())
    return result


def _vocabulary(shape: str) -> int:
    return int(SHAPES[shape]["vocab_size"])


def trained(sizes: Sizes, shape: str, rows: Any, method: str = "nlora", **more: Any) -> TrainResult:
    """One training of a fresh adapter in packed or padded rows."""
    backbone: Any = backbone_of(shape, sizes.device, "float32")
    adapter = LoraAdapter.attach(backbone.model, LORA, seed=1)
    trained_method: Any = build(method, {})
    examples = examples_of(sizes.batch * 12, vocabulary=_vocabulary(shape))
    paths = FastPaths(rows, True, rows, True, "padded")
    with tempfile.TemporaryDirectory() as folder:
        return train(
            backbone, adapter, examples, TrainOptions(batch_size=sizes.batch),
            penalty=lambda: trained_method.penalty(adapter), seed=1, folder=Path(folder), paths=paths, **more,
        )  # fmt: skip


def reads(sizes: Sizes) -> Iterator[Row]:
    """Reads of the host in the optimizer steps between the first and the last: none."""
    for rows in ("packed", "padded"):
        with _guard_as_on_a_gpu(), HostReads() as found:
            trained(sizes, sizes.shape("0.1B"), rows, on_step=found.mark)
        most = max(found.steps[1:])
        of_kind = Counter[str]()
        for (kind, _), count in found.places.items():
            of_kind[kind] += count
        others = ", ".join(f"{kind} {of_kind[kind]}" for kind in ("logging", "loading", "masks"))
        value = f"{most} in a step; in {len(found.steps)} steps, {others}"
        if most:
            value += "; " + ", ".join(f"{p} {n}x" for (k, p), n in found.places.most_common() if k == "step")
        yield Row("reads", f"{rows} batches", value, "ok" if most == 0 else "failed")


def _guard_as_on_a_gpu() -> AbstractContextManager[Any]:
    """On a CPU, the guard of finite numbers looks at every step, because nothing waits there."""
    if importlib.util.find_spec("nlora.training.finite_guard") is None:
        return nullcontext()
    guard: Any = importlib.import_module("nlora.training.finite_guard").FiniteGuard
    return patch("nlora.training.penalized_trainer.FiniteGuard", partial(guard, defers=True))


def memory(sizes: Sizes) -> Iterator[Row]:
    """The peak of a run's training beside what `nlora check` foretells."""
    if importlib.util.find_spec("nlora.runs.memory_estimate") is None:
        yield Row("memory", "foretold / measured peak", "", "skipped: nlora check foretells no memory here")
        return
    yield _memory(sizes.shape("0.1B"), "float32", sizes.device)
    if sizes.device == "cuda":
        yield _memory(sizes.shape("1B"), "bfloat16", sizes.device)


def _memory(shape: str, dtype: str, device: str) -> Row:
    estimate_memory: Any = importlib.import_module("nlora.runs.memory_estimate").estimate_memory
    with tempfile.TemporaryDirectory() as folder:
        file = write_run(Path(folder), shape, dtype, device, rows=16)
        foretold = estimate_memory(make_plan(load_config(file)), device=device).peak
        summary = _summary(_run(file), file)
    measured = summary["peak_memory_bytes"]
    exact = device == "cuda"  # a process's resident size is not
    verdict = "measured" if not exact else "ok" if measured <= 1.1 * foretold else "failed"
    what = f"{shape} {dtype}: foretold / measured peak"
    return Row("memory", what, f"{measure.mib(foretold)} / {measure.mib(measured)}", verdict)


def runs(sizes: Sizes) -> Iterator[Row]:
    """Two equal runs at once on the device come to the same scores."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in ("one", "two"):
            (Path(folder) / name).mkdir()
            files.append(write_run(Path(folder) / name, "tiny", "float32", "cpu", rows=24))
        processes = [_run(file) for file in files]
        scores = [_summary(process, file)["R"] for process, file in zip(processes, files, strict=True)]
    same = scores[0] == scores[1]
    value = f"{time.perf_counter() - begin:.0f} s, the same scores: {same}"
    yield Row("runs", "two at once", value, "ok" if same else "failed")


def _run(config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nlora", "run", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _summary(process: subprocess.Popen[bytes], config: Path) -> dict[str, Any]:
    """What the run came to. Raises RuntimeError with its last words."""
    said = process.communicate()[0].decode()
    if process.returncode:
        raise RuntimeError(said.strip()[-300:].replace("\n", " "))
    found: dict[str, Any] = json.loads((config.parent / "run" / "summary.json").read_text(encoding="utf-8"))
    return found
