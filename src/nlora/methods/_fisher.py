"""The empirical Fisher information of linear layers: how much a task depends on each of their weights.

Gradients are of the whole answer's log-likelihood, one example at a time: the square of a batch's summed gradient would
be a different quantity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.data.collate import IGNORED, Collator
from nlora.data.task import TokenizedExample
from nlora.models import processes
from nlora.models.inspection import is_encoder_decoder
from nlora.models.logits import answer_logits


def fisher_information(
    model: nn.Module, modules: Sequence[str], examples: Sequence[TokenizedExample], pad_id: int
) -> dict[str, Tensor]:
    """Mean over the examples of (∂ log p(answer | prompt) / ∂W)² for every named layer.

    Returns (out, in) each, float32 on the CPU; the sums are made on the device of the model. Several processes share
    the examples, and each gets the mean over all of them. Restores the model's mode, gradients and `requires_grad`.
    Source: arXiv 1612.00796.
    """
    found: dict[str, Any] = {name: model.get_submodule(name) for name in modules}
    layers = {name: getattr(layer, "base_layer", layer) for name, layer in found.items()}  # within an adapter
    weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    collate = Collator(pad_id, is_encoder_decoder(model))
    device = next(model.parameters()).device
    required = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval()
    model.requires_grad_(False)
    for (
        layer
    ) in layers.values():  # a parameter of its own, so that layers that share a weight get separate gradients
        layer.weight = nn.Parameter(layer.weight.detach())
    try:
        for example in examples[processes.rank() :: processes.size()]:
            batch = {key: value.to(device) for key, value in collate([example]).items()}
            logits, targets = answer_logits(model, batch)
            loss = F.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            gradients = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
            for sum_, gradient in zip(total.values(), gradients, strict=True):
                sum_.add_(gradient.float().square())
    finally:
        for name, weight in weights.items():
            layers[name].weight = weight
        model.requires_grad_(False)
        for parameter in required:
            parameter.requires_grad_(True)
        model.train(training)
    sums = {name: sum_.cpu() for name, sum_ in total.items()}
    processes.add_up(sums.values())
    mean = {name: sum_ / len(examples) for name, sum_ in sums.items()}
    # Conv1D stores its weight as (in, out).
    return {n: F_ if isinstance(layers[n], nn.Linear) else F_.t().contiguous() for n, F_ in mean.items()}
