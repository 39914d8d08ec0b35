"""Distillation at the answer tokens: Σ T²·KL(softmax(z_before/T) ‖ softmax(z/T)).

distillation(logits, logits_before, targets, temperature=2.0)         # a scalar with gradients
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation(logits: Tensor, before: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Sum over the answer tokens of T² times the Kullback-Leibler divergence from the old to the new prediction.

    logits, before: (B, K, V); gradients flow into `logits` only. targets: (B, K), -100 where nothing is predicted.
    T² keeps the gradient's size whatever the temperature (arXiv 1503.02531, section 2).
    """
    answers = targets >= 0
    new = F.log_softmax(logits[answers].float() / temperature, dim=-1)  # (N, V)
    old = F.log_softmax(before.detach()[answers].float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(new, old, reduction="sum", log_target=True)
