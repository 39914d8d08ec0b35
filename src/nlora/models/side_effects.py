"""What a pass changes in the model itself, in a few families, and how they are kept from it.

A backbone has to be the same before and after a pass: updates are merged into its weights, and a text must be read
alike whatever was read before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def without_side_effects(model: nn.Module) -> None:
    """Set a model so that no pass changes it, before its first one. Its configuration says so, as will an export's.

    RWKV: in evaluation mode it divides weights of deep layers by powers of two, and in training mode it multiplies them
    again, against overflow in float16. That does not change what the plain model computes, but updates that are merged
    or attached meanwhile have another size than what they are added to.

    BigBird: the first text that is too short for sparse attention switches the model to full attention for good.
    """
    config: Any = model.config
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0
    module: Any
    for module in model.modules():
        if getattr(module, "attention_type", None) == "block_sparse" and hasattr(
            module, "set_attention_type"
        ):
            module.set_attention_type("original_full")
            config.attention_type = "original_full"
