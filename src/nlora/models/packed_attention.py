"""A causal model on a packed batch (`nlora.data.packing`): every token is computed once, without padding.

All examples of a batch form one row of tokens. Norms, projections and feed-forward layers treat each token separately;
only attention must know which example a token belongs to. It is registered as an attention function of transformers and
receives the batch's layout: the prefix that all examples share attends to itself, and the rest of each example to the
prefix and to itself. Loss and gradients equal those of each example alone. With dropout, the examples share the masks
of the prefix, so their masks have the right distribution but are not independent of each other.

Compared with a padded batch and a repeated key-value cache, this is one pass over a few hundred tokens instead of two,
one of which (over the prefix) would be too small for fast matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface

from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.models.inspection import (
    Batch,
    first_position,
    forward_parameters,
    full_attention,
    is_encoder_decoder,
    logits_agree,
    probe_tokens,
)
from nlora.models.packed_layout import BatchLayout, Continuation

_NAME = "nlora_packed"
_UNKNOWN = ("softcap", "sliding_window", "s_aux", "position_bias")
"""Arguments with which some models ask for more than a scale and dropout; none of these is supported."""


def packed_logits(model: nn.Module, batch: Batch, layout: BatchLayout | Continuation | None = None) -> Tensor:
    """Logits (1, N, V) at the layout's `predict_at`, within `packed_attention`.

    batch: as `pack` makes it; with a layout, only its input_ids and position_ids (1, S).
    """
    layout = layout if layout is not None else BatchLayout.of(batch)
    positions = batch["position_ids"] + first_position(model)
    inputs = {"input_ids": batch["input_ids"], "position_ids": positions}
    kept = "logits_to_keep" in forward_parameters(model)
    if kept:
        inputs["logits_to_keep"] = layout.predict_at
    logits: Tensor = model(**inputs, use_cache=False, layout=layout).logits
    return logits if kept else logits[:, layout.predict_at]


@contextmanager
def packed_attention(model: Any, *, skips: bool = True) -> Iterator[None]:
    """A block in which the model takes packed batches only. model: without wrappers.

    skips: whether the last layer's feed-forward part runs on the tokens that predict something only.
    """
    AttentionInterface.register(_NAME, _attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    hooks: list[RemovableHandle] = []
    try:
        hooks += _skip_unpredicted_tokens(model) if skips else []
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


def _skip_unpredicted_tokens(model: Any) -> list[RemovableHandle]:
    """Make the last layer's feed-forward part run on `predict_at` only, since its other outputs are never used.

    Nothing happens if that part does not have its usual name. These are three hooks because families differ in the
    forward of a layer, and because the layout reaches the layer, as a keyword, but not its feed-forward part. It is
    read again at every call: with gradient checkpointing, the layer runs once more in the backward pass.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    layers = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(layers) != 1 or not isinstance(getattr(layers[0][-1], "mlp", None), nn.Module):
        return []
    last: Any = layers[0][-1]
    current: list[BatchLayout | Continuation] = []

    def enter_layer(layer: nn.Module, args: Any, kwargs: Any) -> None:
        current[:] = [_required(kwargs.get("layout"))]

    def enter_mlp(mlp: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0].index_select(1, current[0].predict_at), *args[1:]  # (1, N, n)

    def leave_mlp(mlp: nn.Module, args: Any, out: Any) -> Any:
        if isinstance(out, tuple):  # a mixture of experts also returns its routing
            return leave_mlp(mlp, args, out[0]), *out[1:]
        zeros = out.new_zeros(1, current[0].tokens, out.shape[2])
        return zeros.index_copy(1, current[0].predict_at, out)  # (1, S, n)

    return [
        last.register_forward_pre_hook(enter_layer, with_kwargs=True),
        last.mlp.register_forward_pre_hook(enter_mlp),
        last.mlp.register_forward_hook(leave_mlp),
    ]


def may_pack(model: Any) -> bool:
    """Whether a packed batch could give this model's own logits, judging by its properties alone.

    Not for encoder-decoder models, sliding windows, unknown attention kernels, and models that implement attention
    themselves or do not take positions.
    """
    if is_encoder_decoder(model) or not full_attention(model):
        return False
    can_be_set = getattr(model, "_can_set_attn_implementation", lambda: False)
    return "position_ids" in forward_parameters(model) and bool(can_be_set())


def packing_is_exact(model: Any, examples: Sequence[TokenizedExample] | None = None) -> bool:
    """Whether a packed batch gives this model's own logits, found out on a few examples if `may_pack`.

    examples: without earlier answers; None: two of a few tokens, of different lengths.
    """
    if not may_pack(model):
        return False
    device = next(model.parameters()).device
    if examples is None:
        first, second = probe_tokens(model).tolist()
        examples = [
            TokenizedExample(first[:-2], first[-2:]),
            TokenizedExample(second[:-4], second[-3:]),
        ]
    batch = send_to_device(pack(examples), device)

    def attempt() -> tuple[Tensor, Tensor]:
        alone = []
        for e in examples:
            ids = torch.tensor([[*e.prompt_ids, *e.answer_ids]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits
            alone.append(logits[:, -len(e.answer_ids) - 1 : -1])
        with packed_attention(model):
            return packed_logits(model, batch), torch.cat(alone, dim=1)

    return logits_agree(model, attempt)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: BatchLayout | Continuation | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, H, S, D), key and value (1, Hk, S, D) -> (1, S, H, D)."""
    unknown = [name for name in _UNKNOWN if more.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"packed batches do not support attention with {', '.join(unknown)}")
    # squeeze, not [0], whose gradient would be written into zeros
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))  # (S, heads, D)
    return _required(layout).attend(q, k, v, dropout, scaling)[None], None


def _required(layout: BatchLayout | Continuation | None) -> BatchLayout | Continuation:
    if layout is None:
        raise ValueError("within packed_attention, a model takes packed batches only")
    return layout
