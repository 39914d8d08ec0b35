"""Time and memory to compare all pairs of some adapters, against a few straightforward lines of torch.

    python benchmarks/collision.py                                     # both shapes, about half an hour on two cores
    python benchmarks/collision.py --shapes llama-7b --rounds 1
    python benchmarks/collision.py --shapes 6x512x512 --adapters 5 --json collision.json

    nlora      compare_states: collisions, sign conflict, overlap energy, orthogonality, cosines, angles, spectra,
               threshold curves; all that `nlora analyze` does after reading the files
    entries    its entrywise measures only: collisions, sign conflict, overlap energy
    plain      for each pair: form both updates, compare, count; collision rates only
    more       the same with sign conflict, overlap energy and cosine
    hoisted    as plain, but module by module, forming every update once and keeping its mask for all pairs

t5-large is 15 adapters of 144 modules of 1024 x 1024, llama-7b is 4 of 64 modules of 4096 x 4096, all of rank 8 with
random factors; MODULESxOUTxIN is any other shape. The benchmark stops if the collision rates differ.

Memory is the peak resident size of a process that does nothing else, and the part of it allocated after the factors;
the difference is Python, torch and the factors.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measure
from measure import Spread
from nlora.analysis.buffers import Scratch
from nlora.analysis.entrywise import Entrywise, entrywise
from nlora.analysis.interference import compare_states
from nlora.analysis.parallel import each
from nlora.analysis.threshold import DEFAULT_FACTOR, root_mean_square
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.training.peak_memory import peak_memory_bytes
from one_line import one_line_errors


@dataclass(frozen=True, slots=True)
class Shape:
    """The number of modules of (out, in), and the default number of adapters."""

    modules: int
    out: int
    n_in: int
    adapters: int


SHAPES = {"t5-large": Shape(144, 1024, 1024, 15), "llama-7b": Shape(64, 4096, 4096, 4)}
Rates = dict[str, float]
"""Collision rate by `a|b`."""


def shape_of(name: str) -> Shape:
    """The shape of a model's name or of MODULESxOUTxIN. Raises ArgumentTypeError for anything else."""
    if name in SHAPES:
        return SHAPES[name]
    sizes = name.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"'{name}' is neither MODULESxOUTxIN nor one of {', '.join(SHAPES)}")
    modules, out, n_in = map(int, sizes)
    return Shape(modules, out, n_in, 15)


def shape_name(name: str) -> str:
    """The name itself, if shape_of understands it."""
    shape_of(name)
    return name


def random_states(shape: Shape, adapters: int, r: int) -> dict[str, AdapterState]:
    """Random factors, B not zero."""
    generator = torch.Generator().manual_seed(0)

    def factors() -> LoraFactors:
        A = torch.randn(r, shape.n_in, generator=generator)
        return LoraFactors(A, torch.randn(shape.out, r, generator=generator), 4.0)

    return {f"t{t}": {f"layers.{m}.q": factors() for m in range(shape.modules)} for t in range(adapters)}


def nlora(states: Mapping[str, AdapterState], threshold: float) -> Rates:
    """Everything that `nlora analyze` prints."""
    found = compare_states(states, threshold).interference().to_json()
    return {pair: own["collision_rate"] for pair, own in found["pairs"].items()}


def entries(states: Mapping[str, AdapterState], threshold: float) -> Rates:
    """The entrywise measures, module by module."""
    modules = list(next(iter(states.values())))
    scratch = Scratch()

    def measure_module(module: str) -> Entrywise:
        return entrywise([state[module] for state in states.values()], threshold, scratch)

    both = np.sum([made.both for made in each(modules, measure_module)], 0)
    total = sum(f.entries for f in next(iter(states.values())).values())
    return {
        f"{a}|{b}": float(n) / total
        for (a, b), n in zip(itertools.combinations(states, 2), both, strict=True)
    }


def plain(states: Mapping[str, AdapterState], threshold: float) -> Rates:
    """The straightforward way."""
    rates = {}
    for (a, one), (b, other) in itertools.combinations(states.items(), 2):
        both = 0
        for name, f in one.items():
            x, y = f.update(), other[name].update()
            both += int(((x.abs() > threshold) & (y.abs() > threshold)).sum())
        rates[f"{a}|{b}"] = both / sum(f.entries for f in one.values())
    return rates


def more(states: Mapping[str, AdapterState], threshold: float) -> Rates:
    """The straightforward way with more entrywise measures; only the rates are returned."""
    rates = {}
    for (a, one), (b, other) in itertools.combinations(states.items(), 2):
        both = unlike = 0
        energy = inner = squares = other_squares = 0.0
        for name, f in one.items():
            x, y = f.update(), other[name].update()
            collide = (x.abs() > threshold) & (y.abs() > threshold)
            product = x * y
            both += int(collide.sum())
            unlike += int((collide & (product < 0)).sum())
            energy += float(product.abs().sum())
            inner += float(product.sum())
            squares += float(x.square().sum())
            other_squares += float(y.square().sum())
        rates[f"{a}|{b}"] = both / sum(f.entries for f in one.values())
    return rates


def hoisted(states: Mapping[str, AdapterState], threshold: float) -> Rates:
    """The straightforward way, with an obvious speedup."""
    both: dict[str, int] = {}
    first = next(iter(states.values()))
    for name in first:
        masks: dict[str, Tensor] = {a: state[name].update().abs() > threshold for a, state in states.items()}
        for (a, x), (b, y) in itertools.combinations(masks.items(), 2):
            both[f"{a}|{b}"] = both.get(f"{a}|{b}", 0) + int((x & y).sum())
    entries = sum(f.entries for f in first.values())
    return {pair: count / entries for pair, count in both.items()}


CONTESTANTS: dict[str, Callable[[Mapping[str, AdapterState], float], Rates]] = {
    "nlora": nlora,
    "entries": entries,
    "plain": plain,
    "more": more,
    "hoisted": hoisted,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One comparison of all pairs."""

    seconds: float
    rates: Rates


def setting(name: str, options: argparse.Namespace) -> tuple[dict[str, AdapterState], float]:
    """The adapters of a shape, and nlora's default threshold for them (of the first, as all are alike)."""
    shape = shape_of(name)
    states = random_states(shape, options.adapters or shape.adapters, options.rank)
    return states, DEFAULT_FACTOR * root_mean_square(next(iter(states.values())))


def measured(name: str, options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Seconds of each contestant in each round, and its memory."""
    states, threshold = setting(name, options)

    def contestant(compare: Callable[[Mapping[str, AdapterState], float], Rates]) -> Callable[[int], Turn]:
        def turn(_: int) -> Turn:
            begin = time.perf_counter()
            rates = compare(states, threshold)
            return Turn(time.perf_counter() - begin, rates)

        return turn

    chosen = {key: contestant(CONTESTANTS[key]) for key in options.contestants}
    turns = measure.interleave(chosen, options.rounds)
    check_same({key: some[0].rates for key, some in turns.items()})
    made: dict[str, Any] = {"shape": name, "adapters": len(states), "pairs": len(turns["nlora"][0].rates)}
    made["seconds"] = {key: [turn.seconds for turn in some] for key, some in turns.items()}
    made["memory"] = {} if options.no_memory else {key: memory(name, key, argv) for key in chosen}
    return made


def check_same(rates: Mapping[str, Rates]) -> None:
    """Raises ValueError if a contestant's rates differ from nlora's.

    A product that is rounded in another order may put an entry on the other side of the threshold: one in 100 000.
    """
    for key, own in rates.items():
        for pair, rate in own.items():
            if abs(rate - rates["nlora"][pair]) > 1e-5:
                raise ValueError(f"{key} found {rate} for {pair}, nlora {rates['nlora'][pair]}")


def memory(name: str, key: str, argv: Sequence[str]) -> dict[str, int]:
    """The peak of a separate process."""
    print(f"memory: {name}, {key}", file=sys.stderr, flush=True)
    return measure.alone(Path(__file__), [*argv, "--shapes", name, "--alone", key])


def compare_alone(options: argparse.Namespace) -> dict[str, int]:
    """Peak of this process for one contestant, and the part of it allocated after the factors."""
    states, threshold = setting(options.shapes[0], options)
    before = peak_memory_bytes()
    CONTESTANTS[options.alone](states, threshold)
    peak = peak_memory_bytes()
    return {"peak_memory_bytes": peak, "grown_bytes": peak - before}


def lines_of(made: Mapping[str, Any]) -> list[list[object]]:
    """The rows of a shape: seconds, speedups of nlora and of its pass over the entries, memory."""
    rows: list[list[object]] = []
    ours = [key for key in ("nlora", "entries") if key in made["seconds"]]
    for key, seconds in made["seconds"].items():
        used = made["memory"].get(key)
        rows.append(
            [
                f"{made['shape']}, {made['adapters']} adapters",
                key,
                Spread.of(seconds),
                *("" if key in ours else measure.ratios(seconds, made["seconds"][own]) for own in ours),
                measure.mib(used["peak_memory_bytes"]) if used else "-",
                measure.mib(used["grown_bytes"]) if used else "-",
            ]
        )
    return rows


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes JSON."""
    parser = measure.parser(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape_name,
        default=list(SHAPES),
        help=f"MODULESxOUTxIN, {', '.join(SHAPES)}",
    )
    parser.add_argument("--adapters", type=int, help="how many (default: 15; llama-7b: 4)")
    parser.add_argument("--rank", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="(default: all)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the processes for memory out")
    parser.add_argument("--alone", choices=CONTESTANTS, help=argparse.SUPPRESS)
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(argv)
    if "nlora" not in options.contestants:
        parser.error("the contestants are compared with nlora; name it, too")
    measure.start(options)
    if options.alone:
        measure.write_json(options.json, compare_alone(options))
        return
    made = [measured(name, options, argv) for name in options.shapes]
    ours = [f"{key} is times as fast" for key in ("nlora", "entries") if key in options.contestants]
    header = ["adapters", "how", "seconds", *ours, "peak memory", "of it after loading"]
    rows = [row for one in made for row in lines_of(one)]
    measure.report("collision", options, {"shapes": made}, measure.table(header, rows))


if __name__ == "__main__":
    main()
