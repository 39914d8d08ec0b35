"""Distillation at the answer tokens: Σ T²·KL(softmax(z_before/T) ‖ softmax(z/T))."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation(logits: Tensor, before: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T² times the Kullback-Leibler divergence of the new prediction from the old one, summed over answer tokens.

    logits, before: (B, K, V); gradients flow into `logits` only. targets: (B, K), -100 where nothing is predicted.
    T² makes the gradient's size independent of the temperature (arXiv 1503.02531, section 2).

    >>> import torch
    >>> z = torch.zeros(1, 2, 3)
    >>> distillation(z, z, torch.tensor([[1, -100]]), temperature=2.0)
    tensor(0.)
    """
    answers = targets >= 0
    new = F.log_softmax(logits[answers].float() / temperature, dim=-1)  # (N, V)
    old = F.log_softmax(before.detach()[answers].float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(new, old, reduction="sum", log_target=True)
