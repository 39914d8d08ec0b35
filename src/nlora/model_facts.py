"""What can be asked of a model about itself, and small tries of what it does.

is_encoder_decoder(model)
full_attention(model)                       # every token sees all tokens before it
"position_ids" in forward_parameters(model)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
_TOLERANCE, _SHORT_TOLERANCE = 1e-3, 4e-2
"""Of the largest logit; the second one for models of 16 bits."""
_log = logging.getLogger(__name__)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model reads the prompt with an encoder (T5, BART) or with the decoder itself."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False))


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Names that the backbone's forward takes; wrappers (PEFT, DDP) pass anything on."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return frozenset(inspect.signature(inner.forward).parameters)


def full_attention(model: Any) -> bool:
    """Whether every token sees all tokens before it, through a kernel that takes any mask.

    Not so with sliding windows, whose cache forgets tokens.
    """
    config = model.config
    text_config = _text_config(config)
    layer_types = getattr(text_config, "layer_types", None)
    window = getattr(text_config, "sliding_window", None)
    slides = set(layer_types or ["full_attention"]) != {"full_attention"} or (window and layer_types is None)
    return not slides and getattr(config, "_attn_implementation", "eager") in {"eager", "sdpa"}


def recompute_activations(model: Any, *, on: bool) -> None:
    """Switches gradient checkpointing; not the reentrant kind, which would cut off what trains in the first layer."""
    if hasattr(model, "activation_checkpointing_enable"):  # transformers' newer name for it
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            model.activation_checkpointing_disable()
    elif on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def probe_tokens(model: Any) -> Tensor:
    """(2, 12) tokens to try something on; the two rows part behind their ninth token.

    From the middle of the vocabulary: its first tokens may be control tokens that the model never saw, on which
    rounding alone moved the logits of a trained SmolLM2 by a thousandth. A wrong mask or position moves them by a
    tenth.
    """
    device = next(model.parameters()).device
    size = _text_config(model.config).vocab_size
    tokens = torch.linspace(0.1, 0.9, 12, device=device).mul(size).long().repeat(2, 1)
    tokens[1, 9:] = tokens[1, 9:].flip(0)
    return tokens


def logits_agree(model: nn.Module, attempt: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether a try gives the logits that it should; one that fails does not, whatever the model's code raises.

    attempt: returns the logits found and those expected, of one shape; called without gradients, in evaluation mode.
    The log says if they differ by more than `logits_tolerance`.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            off = logits_off(*attempt())
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(training)
    agree = off <= logits_tolerance(model)
    if not agree:
        _log.warning("another way through the model moved its logits by %.2g of the largest: not taken", off)
    return agree


def logits_off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def logits_tolerance(model: nn.Module) -> float:
    """Up to which share of the largest logit two ways through a model agree.

    A thousandth, in 16 bits 4 hundredths: rounding alone moved SmolLM2's logits by up to 2 hundredths there, one token
    that one row does not see by 9, wrong positions by 20.
    """
    short = next(model.parameters()).dtype in {torch.bfloat16, torch.float16}
    return _SHORT_TOLERANCE if short else _TOLERANCE


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
