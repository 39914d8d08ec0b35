"""Sequential LoRA: one adapter is trained from task to task, without protection.

Model after stage k: W + s·B_k·A_k, where training (A_k, B_k) starts from (A_{k-1}, B_{k-1}). A lower bound in O-LoRA
and N-LoRA (arXiv 2310.14152, 2410.10179; SeqLoRA in their tables).

Departure from the released code: none known. The optimizer starts without state at every task, as in the released
scripts, which run one process per task.

Pitfall: all tasks share the rank; in a long sequence the last tasks overwrite the first ones.
"""

from __future__ import annotations

from nlora.methods.base import Method


class Seqlora(Method):
    """Each stage starts with the factors that the previous one ended with."""

    updates = "continued"
