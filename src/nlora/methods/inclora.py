"""Incremental LoRA: a fresh adapter per task, the earlier ones merged in, and nothing added to the loss.

Model after stage k: W + Σ_{i<=k} s·B_i·A_i, for every task. N-LoRA and O-LoRA (arXiv 2410.10179, 2310.14152) are the
same with a penalty added, so this is the baseline that shows what a penalty is worth.

Departure from the released code: earlier updates are merged into the frozen weight. The released code keeps them as
adapters of growing rank, whose inputs get the dropout too.

Pitfall: nothing keeps the updates of different tasks apart; expect forgetting from the second task on.
"""

from __future__ import annotations

from nlora.methods.base import Method


class Inclora(Method):
    """Incremental LoRA: what the base class does."""
