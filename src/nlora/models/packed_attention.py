"""A causal model on a packed batch (`nlora.data.packing`): every token is computed once, and nothing else is.

    with packed_attention(model):                       # only if packing_is_exact(model)
        logits = packed_logits(model, pack(examples))   # (1, N, V): those that predict an answer token

All examples of a batch are one row of tokens. Norms, projections and feed-forward layers work on tokens, whoever they
belong to; only attention has to know. It is registered as an attention function of transformers, which hands it the
batch's layout: the beginning that all examples share attends to itself, each example's rest to that beginning and to
itself. Loss and gradients are those of each example on its own. With dropout, the examples share the masks of the
shared tokens: each sees masks of the right distribution, they are only not independent between examples.

Against a padded batch with a repeated key-value cache, one pass of some hundred tokens takes the place of two, of
which the one over the shared tokens would be too small for a fast matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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
from nlora.models.packed_layout import Continuation, Layout

_NAME = "nlora_packed"
_UNKNOWN = ("softcap", "sliding_window", "s_aux", "position_bias")
"""What some models ask of their attention beyond a scale and dropout."""


def packed_logits(model: nn.Module, batch: Batch, layout: Layout | Continuation | None = None) -> Tensor:
    """Logits (1, N, V) at the layout's `predict_at`, within `packed_attention`.

    batch: as `pack` makes it; with a layout, only its input_ids and position_ids (1, S).
    """
    layout = layout if layout is not None else Layout.of(batch)
    positions = batch["position_ids"] + first_position(model)
    inputs = {"input_ids": batch["input_ids"], "position_ids": positions}
    kept = "logits_to_keep" in forward_parameters(model)
    if kept:
        inputs["logits_to_keep"] = layout.predict_at
    logits: Tensor = model(**inputs, use_cache=False, layout=layout).logits
    return logits if kept else logits[:, layout.predict_at]


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Within it the model takes packed batches, and only those. model: not wrapped."""
    AttentionInterface.register(_NAME, _attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    hooks: list[RemovableHandle] = []
    try:
        hooks += _last_layer_where_it_counts(model)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


def _last_layer_where_it_counts(model: Any) -> list[RemovableHandle]:
    """Lets the last layer's feed-forward part run on `predict_at` only: nobody looks at its other tokens.

    They leave the layer without its contribution. Nothing is done where that part is not found under its usual name.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    layers = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(layers) != 1 or not isinstance(getattr(layers[0][-1], "mlp", None), nn.Module):
        return []
    last: Any = layers[0][-1]
    seen: list[Layout | Continuation] = []

    def look(layer: nn.Module, args: Any, kwargs: Any) -> None:
        seen[:] = [_there(kwargs.get("layout"))]

    def choose(mlp: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0].index_select(1, seen[0].predict_at), *args[1:]  # (1, N, n)

    def put_back(mlp: nn.Module, args: Any, out: Any) -> Any:
        if isinstance(out, tuple):  # experts say which of them were asked, too
            return put_back(mlp, args, out[0]), *out[1:]
        others = out.new_zeros(1, seen[0].tokens, out.shape[2])
        return others.index_copy(1, seen[0].predict_at, out)

    return [
        last.register_forward_pre_hook(look, with_kwargs=True),
        last.mlp.register_forward_pre_hook(choose),
        last.mlp.register_forward_hook(put_back),
    ]


def may_pack(model: Any) -> bool:
    """Whether a packed batch could give this model's own logits, by what is known of it without a try.

    Not so for encoder-decoder models, sliding windows, attention kernels of which nothing is known, models whose
    attention is their own or that cannot be told positions.
    """
    if is_encoder_decoder(model) or not full_attention(model):
        return False
    can_be_set = getattr(model, "_can_set_attn_implementation", lambda: False)
    return "position_ids" in forward_parameters(model) and bool(can_be_set())


def packing_is_exact(model: Any) -> bool:
    """Whether a packed batch gives this model's own logits; tried out on a few tokens, if it may at all."""
    if not may_pack(model):
        return False
    device = next(model.parameters()).device
    first, second = probe_tokens(model).tolist()
    examples = [
        TokenizedExample(first[:-2], first[-2:]),
        TokenizedExample(second[:-4], second[-3:]),
    ]  # of two lengths
    batch = {key: value.to(device) for key, value in pack(examples).items()}

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
    layout: Layout | Continuation | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, H, S, D), key and value (1, Hk, S, D) -> (1, S, H, D)."""
    asked = [name for name in _UNKNOWN if more.get(name) is not None]
    if asked:
        raise NotImplementedError(f"attention with {', '.join(asked)} is not known to packed batches")
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (S, heads, D)
    return _there(layout).attend(q, k, v, dropout, scaling)[None], None


def _there(layout: Layout | Continuation | None) -> Layout | Continuation:
    if layout is None:
        raise ValueError("within packed_attention a model takes packed batches only")
    return layout
