"""The cost of saving a half-trained task (`train.save_every`).

    python benchmarks/saving.py demo

A few optimizer steps of the first task of a recipe or file, each of them saved: seconds and MiB of a save, and its
share of the time when a task is saved every ten minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measure import Spread
from nlora.config.load import load_config
from nlora.models.backbone import load_backbone
from nlora.runs.plan import make_plan
from nlora.runs.resume_points import StageResumePoints
from nlora.runs.signals import StopRequest
from nlora.training.trainer import train
from one_line import one_line_errors


class Timed(StageResumePoints):
    """Resume points that remember what each of them took."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.seconds: list[float] = []

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """As the base."""
        begin = time.perf_counter()
        super().write(step, fill)
        self.seconds.append(time.perf_counter() - begin)


def cost(source: str, overrides: Sequence[str], saves: int) -> tuple[Spread, float]:
    """Seconds of a save, and the MiB of one."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(load_config(source, [*overrides, f"output_dir={folder}/run"]))
        config = plan.config
        options = config.train_options(plan.tasks[0].name)
        options = options.model_copy(update={"epochs": 1, "report_to": (), "save_every": 1})
        examples = [
            plan.encoded[0][i] for i in range(min(len(plan.encoded[0]), (saves + 1) * options.batch_size))
        ]
        backbone = load_backbone(config.model, dtype=config.dtype)
        trainable = plan.methods[0].attach(backbone.model, config.lora, stage=1, seed=config.seed)
        points = Timed(
            Path(folder, "points"), options.steps(len(examples)), options, {}, StopRequest(), print
        )
        logs = Path(folder)
        train(
            backbone, trainable, examples, options, penalty=lambda: None, seed=1, folder=logs, points=points
        )
        newest = max(Path(folder, "points").iterdir(), key=lambda path: path.stat().st_mtime)
        size = sum(file.stat().st_size for file in newest.iterdir()) / 2**20
    return Spread.of(points.seconds), size


@one_line_errors
def main() -> None:
    """Print the cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a recipe or a configuration file")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    seconds, size = cost(options.source, options.overrides, options.saves)
    print(f"a save: {seconds} s, {size:.1f} MiB; every ten minutes: {seconds.median / 6:.3f} % of the time")


if __name__ == "__main__":
    main()
