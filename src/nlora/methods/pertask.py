"""One adapter per task, with the task known at inference: an upper bound that cannot forget.

Model for task i: W + s·B_i·A_i, trained from W on task i alone. PerTaskFT in the tables of O-LoRA and N-LoRA (arXiv
2310.14152, 2410.10179).

Departures: the papers fine-tune a whole model per task. Here it is a LoRA adapter per task, so that the only difference
from incremental LoRA is that the task is known. The released code has no such baseline; its published numbers come from
other repositories.

Pitfall: it solves an easier problem than the other methods, since the task of each text must be known. On the other
hand no task benefits from another, so later tasks can do worse than in a sequence. Tasks that are not learned yet are
answered by the bare backbone.
"""

from __future__ import annotations

from nlora.methods.base import Method


class Pertask(Method):
    """Each stage starts from the bare backbone, and each task is answered with its own update."""

    updates = "per_task"
