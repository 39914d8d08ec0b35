"""What each form of export keeps of a run: size, scores, and the answers that differ from the run's.

    python benchmarks/exports.py runs/demo/nlora          # the tables of docs/export.md

Every export answers all test examples of all tasks, and is deleted again. The run must have one model for all tasks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nlora
from nlora.cli.export import in_words
from one_line import one_line_errors

ALL = 1_000_000


def forms(rank: int) -> dict[str, dict[str, Any]]:
    """The rows of the table: the form and its options. rank: of one task's adapter."""
    return {
        "merged": {},
        "merged --dtype bfloat16": {"dtype": "bfloat16"},
        "adapter": {},
        "adapters": {},
        f"adapter --rank {2 * rank}": {"rank": 2 * rank},
        f"adapter --rank {rank}": {"rank": rank},
        **{
            f"merged --merge {merge}": {"merge": merge}
            for merge in ("magmax", "dare_linear", "slerp", "ties")
        },
    }


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    run = nlora.open_run(parser.parse_args().run)
    tasks = [stage.task for stage in run.stages]
    print(f"| export | size | {' | '.join(tasks)} | answers that differ |")
    print(f"| --- | ---: |{' ---: |' * (len(tasks) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (row, options) in enumerate(forms(run.config.lora.r).items()):
            found = run.export(Path(folder, str(number)), row.split()[0], examples=ALL, **options)
            cells = [in_words(found.size), *(f"{found.scores[task]:.1f}" for task in tasks)]
            print(f"| `{row}` | {' | '.join(cells)} | {sum(found.different.values())} |", flush=True)
            for note in found.notes:
                print(f"<!-- {note} -->")
        found = run.export(Path(folder, "sparse"), "sparse", examples=ALL)
    print(f"\n| threshold / RMS | entries kept | size | {' | '.join(tasks)} |")
    print(f"| ---: | ---: | ---: |{' ---: |' * len(tasks)}")
    for kept in found.thresholds:
        cells = [f"{kept.factor:.3g}", f"{100 * kept.share_kept:.2f} %", in_words(kept.sparse_bytes)]
        print(f"| {' | '.join([*cells, *(f'{kept.scores[task]:.1f}' for task in tasks)])} |")


if __name__ == "__main__":
    main()
