"""Properties of a model, read from its configuration and code or found out by a small trial."""

from __future__ import annotations

import inspect
import logging
import re
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from nlora.errors import ModelError

Batch = dict[str, Any]
"""Tensors by name; of a packed batch also `groups`, tuples of such batches."""
_TOLERANCE, _SHORT_TOLERANCE = 1e-3, 6e-2
"""The largest share by which logits may be off; the second one is for 16-bit models."""
_SHORT = {torch.bfloat16, torch.float16}
MODEL_RAISES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What the code of a model, whoever wrote it, may raise for something that it does not support."""
_log = logging.getLogger(__name__)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model reads the prompt with an encoder (T5, BART)."""
    config = getattr(_inner(model), "config", None)
    return bool(getattr(config, "is_encoder_decoder", False))


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of every weight (FSDP2), so that all must compute the same passes."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def shards_by_layer(model: nn.Module) -> bool:
    """Whether transformers knows how to shard this model layer by layer: it has a rule for the model's own layers."""
    names = {re.sub(r"\.\d+", ".*", name) for name, _ in model.named_modules()}
    return any("*" in rule and rule in names for rule in getattr(model, "fsdp_plan", None) or ())


def drops_layers(model: nn.Module) -> bool:
    """Whether training leaves out whole layers at random (LayerDrop, arXiv 1909.11556), on each process other ones."""
    return any(getattr(module, "layerdrop", 0) for module in model.modules())


def decoder_start(model: nn.Module) -> int:
    """The token that the decoder of an encoder-decoder model starts with, in training and in generation.

    If neither configuration names it (mBART), it is the one that the model itself puts in front of labels. Raises
    ModelError if that is unknown, too.
    """
    inner = _inner(model)
    for settings in (inner.config, getattr(inner, "generation_config", None)):
        start = getattr(settings, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    end = getattr(inner.config, "eos_token_id", None)
    end = end[0] if isinstance(end, list) else end
    shift = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
    if shift is None or end is None:
        raise _no_start(inner)
    try:
        return int(shift(torch.tensor([[end, end]]))[0, 0])
    except (AttributeError, TypeError, ValueError) as error:
        raise _no_start(inner) from error


def _no_start(model: Any) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: nothing says which token its decoder starts with; "
        "set decoder_start_token_id in the model's config.json"
    )


def first_position(model: nn.Module) -> int:
    """The number of a text's first position: 0, or 2 in RoBERTa.

    RoBERTa and similar models reserve the positions up to the padding token's id for padding.
    """
    inner = _inner(model)
    if inner not in _first_positions:
        tables = (m for name, m in inner.named_modules() if name.endswith("position_embeddings"))
        paddings = [table.padding_idx for table in tables if isinstance(table, nn.Embedding)]
        _first_positions[inner] = paddings[0] + 1 if paddings and paddings[0] is not None else 0
    return _first_positions[inner]


_first_positions: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""Cached for each model, since every forward pass needs it."""


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the arguments of the backbone's forward; wrappers (PEFT, DDP) accept any."""
    return frozenset(inspect.signature(_inner(model).forward).parameters)


def cache_argument(model: nn.Module) -> str:
    """Name of the forward's argument for a key-value cache: `cache`, or `past_key_values` before transformers 5.24."""
    names = forward_parameters(model)
    return "cache" if "cache" in names and "past_key_values" not in names else "past_key_values"


def _inner(model: Any) -> Any:
    """The backbone inside its wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def full_attention(model: Any) -> bool:
    """Whether every token attends to all tokens before it, with a kernel that accepts any mask.

    Not with sliding windows, whose cache drops tokens.
    """
    config = model.config
    text_config = _text_config(config)
    layer_types = getattr(text_config, "layer_types", None)
    window = getattr(text_config, "sliding_window", None)
    slides = set(layer_types or ["full_attention"]) != {"full_attention"} or (window and layer_types is None)
    return not slides and getattr(config, "_attn_implementation", "eager") in {"eager", "sdpa"}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer changes, by name; a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def recompute_activations(model: Any, *, on: bool) -> None:
    """Switch gradient checkpointing. Not the reentrant kind, which would not train adapters in the first layer."""
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
    """(2, 12) tokens for a trial; the two rows differ after their ninth token.

    They are from the middle of the vocabulary. Its first tokens may be control tokens that the model never saw in
    training; on these, rounding alone changed the logits of SmolLM2 by a thousandth. A wrong mask or position changes
    them by a tenth.
    """
    device = next(model.parameters()).device
    size = _text_config(model.config).vocab_size
    tokens = torch.linspace(0.1, 0.9, 12, device=device).mul(size).long().repeat(2, 1)
    tokens[1, 9:] = tokens[1, 9:].flip(0)
    return tokens


def logits_agree(model: nn.Module, attempt: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether a trial gives the expected logits, up to `logits_tolerance`. If it raises, it does not.

    attempt: returns the logits found and those expected, of the same shape; called without gradients, in evaluation
    mode. A difference is logged.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            off = logits_off(model, *attempt())
    except MODEL_RAISES:
        return False
    finally:
        model.train(training)
    agree = off <= logits_tolerance(model)
    if not agree:
        _log.warning("a faster path moved the model's logits by %.2g of their size; it is not used", off)
    return agree


def logits_off(model: nn.Module, found: Tensor, expected: Tensor) -> float:
    """How far logits (..., V) are off, as a share of their size.

    In 32 bits, where right paths have nearly the same numbers, it is the largest difference, beside the largest logit.
    In 16 bits all numbers differ, and the largest difference is a matter of chance. There it is the norm of the
    differences, beside that of the logits, both without each row's mean, which has no say in the answer.
    """
    found, expected = found.float(), expected.float()
    if not _is_short(model):
        return float((found - expected).abs().max() / expected.abs().max())
    found, expected = (logits - logits.mean(dim=-1, keepdim=True) for logits in (found, expected))
    return float((found - expected).norm() / expected.norm())


def logits_tolerance(model: nn.Module) -> float:
    """The largest result of `logits_off` that counts as rounding: 0.001, or 0.06 in 16 bits.

    In bfloat16, over six prompts together, rounding moves SmolLM2's logits by 0.03 to 0.04, one token hidden from each
    row by 0.08 or more, and wrong positions by 0.66 (`benchmarks/preflight.py demo dtype=bfloat16 --rounding`).
    """
    return _SHORT_TOLERANCE if _is_short(model) else _TOLERANCE


def _is_short(model: nn.Module) -> bool:
    return next(model.parameters()).dtype in _SHORT


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def keeps_all_tokens(model: Any) -> bool:
    """Whether every layer caches the keys and values of all tokens, and nothing else."""
    try:
        layers = DynamicCache(config=model.config).layers
    except AttributeError:  # it consists of several parts with layers of their own (BLT)
        return False
    # No layers: the configuration does not say what they are.
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
