"""How large the updates of a run are, and on how many entries each pair of tasks collides.

    python benchmarks/updates.py runs/demo/nlora runs/demo/inclora

Two tasks collide at an entry when both |ΔW| exceed the threshold there; the rate is the share of such entries of all
modules. It depends on the threshold, which is printed with it.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from nlora.factors import State, load_factors


def collision_rate(a: State, b: State, threshold: float) -> float:
    """Share of the entries at which both updates exceed the threshold."""
    both = sum(
        int(((a[name].update().abs() > threshold) & (b[name].update().abs() > threshold)).sum()) for name in a
    )
    return both / sum(factors.entries for factors in a.values())


def main() -> None:
    """A block of lines per run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--threshold", type=float, default=1e-4)
    options = parser.parse_args()
    for run in options.runs:
        folders = sorted(run.glob("outputs/*/adapter"), key=lambda f: int(f.parent.name.split("-")[0]))
        states = [load_factors(folder) for folder in folders]
        print(f"{run}, threshold {options.threshold:g}")
        for folder, state in zip(folders, states, strict=True):
            updates = [factors.update() for factors in state.values()]
            l1 = sum(float(u.abs().sum()) for u in updates)
            l2 = sum(float(u.square().sum()) for u in updates) ** 0.5
            print(f"  {folder.parent.name}: sum of |entries| {l1:.0f}, Frobenius norm {l2:.2f}")
        rates = [collision_rate(a, b, options.threshold) for a, b in itertools.combinations(states, 2)]
        print(f"  collision rate, mean over {len(rates)} pairs: {sum(rates) / max(len(rates), 1):.3f}")


if __name__ == "__main__":
    main()
