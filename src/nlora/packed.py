"""A causal model on a packed batch (`nlora.data.pack`): every token is computed once, and nothing else is.

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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface

from nlora.data.encode import Encoded
from nlora.data.pack import pack
from nlora.model_facts import (
    Batch,
    forward_parameters,
    full_attention,
    is_encoder_decoder,
    logits_agree,
    probe_tokens,
)

_NAME = "nlora_packed"
_UNKNOWN = ("softcap", "sliding_window", "s_aux", "position_bias")
"""What some models ask of their attention beyond a scale and dropout."""


KeysValues = list[tuple[Tensor, Tensor]]
"""Of each layer, keys and values of some tokens, (tokens, heads, D)."""


@dataclass(slots=True, eq=False)
class Memory:
    """The keys and values of one pass.

    before: those of the beginning that all rows continue, from an earlier pass. kept: gets those of this pass.
    """

    before: KeysValues = field(default_factory=list)
    kept: KeysValues = field(default_factory=list)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the next layer's; returns them with what is before them in front."""
        self.kept.append((k, v))
        if not self.before:
            return k, v
        keys, values = self.before[len(self.kept) - 1]
        return torch.cat([keys, k]), torch.cat([values, v])


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Who attends to whom.

    prefix: P, the tokens that all begin with; begins: how many of them run now, P or none. rows_at: (B, L) among
    the tokens that run, keys_at: (B, P + L) among all, the prefix before each row. back_at: the place in
    rows_at.flatten() of each token behind the prefix; None where no row is shorter than L. tokens: S, which run.
    predict_at: (N,).
    """

    prefix: int
    begins: int
    rows_at: Tensor
    keys_at: Tensor
    back_at: Tensor | None
    tokens: int
    predict_at: Tensor
    memory: Memory | None = None
    masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, memory: Memory | None = None) -> Layout:
        """Of a batch as `pack` makes it; memory.before: what a batch without its beginning continues."""
        rows_at, back_at = batch["rows_at"], batch["back_at"]
        tokens = batch["input_ids"].shape[1]
        begins = tokens - len(back_at)
        earlier = len(memory.before[0][0]) if memory is not None and memory.before else 0
        prefix = earlier + begins
        before = torch.arange(prefix, device=rows_at.device).expand(len(rows_at), prefix)
        keys_at = torch.cat([before, rows_at + earlier], dim=1)
        padded = len(back_at) < rows_at.numel()
        places = back_at if padded else None
        return cls(prefix, begins, rows_at, keys_at, places, tokens, batch["predict_at"], memory)

    def masks_for(self, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to the scores of the prefix (heads·P, P) and of a row (heads·L, P + L).

        Behind a row's end its last token is repeated. No token before the end sees that, and nobody looks at what comes
        out there.
        """
        if heads not in self.masks:
            tokens = self.keys_at.shape[1]
            mask = like.new_full((tokens, tokens), float("-inf")).triu_(1)
            self.masks[heads] = (
                mask[: self.prefix, : self.prefix].repeat(heads, 1),
                mask[self.prefix :].repeat(heads, 1),
            )
        return self.masks[heads]


def packed_logits(model: nn.Module, batch: Batch, memory: Memory | None = None) -> Tensor:
    """Logits (1, N, V) at `predict_at`, within `packed_attention`. batch: as `pack` makes it.

    memory: what the rows continue and what is kept of them, where something is to follow.
    """
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    kept = "logits_to_keep" in forward_parameters(model)
    if kept:
        inputs["logits_to_keep"] = batch["predict_at"]
    logits: Tensor = model(**inputs, use_cache=False, layout=Layout.of(batch, memory)).logits
    return logits if kept else logits[:, batch["predict_at"]]


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
    seen: list[Layout] = []

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


def packing_is_exact(model: Any) -> bool:
    """Whether a packed batch gives this model's own logits; tried out on a few tokens.

    Refused without a try: encoder-decoder models, sliding windows, attention kernels of which nothing is known, models
    whose attention is their own or that cannot be told positions. The try catches what nobody listed.
    """
    if is_encoder_decoder(model) or not full_attention(model):
        return False
    can_be_set = getattr(model, "_can_set_attn_implementation", lambda: False)
    if "position_ids" not in forward_parameters(model) or not can_be_set():
        return False
    device = next(model.parameters()).device
    first, second = probe_tokens(model).tolist()
    examples = [Encoded(first[:-2], first[-2:]), Encoded(second[:-4], second[-3:])]  # of two lengths
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
    layout: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, H, S, D), key and value (1, Hk, S, D) -> (1, S, H, D)."""
    layout = _there(layout)
    asked = [name for name in _UNKNOWN if more.get(name) is not None]
    if asked:
        raise NotImplementedError(f"attention with {', '.join(asked)} is not known to packed batches")
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (S, heads, D)
    prefix_mask, row_mask = layout.masks_for(q.shape[1] // k.shape[1], q)
    if layout.memory is not None:
        k, v = layout.memory.extend(k, v)
    rows = _grouped(
        _taken(q, layout.rows_at),
        _taken(k, layout.keys_at),
        _taken(v, layout.keys_at),
        row_mask,
        dropout,
        scaling,
    ).flatten(0, 1)  # (B·L, H, D)
    if layout.back_at is not None:
        rows = rows.index_select(0, layout.back_at)
    if not layout.begins:
        return rows[None], None
    q, k, v = (states[None, : layout.begins] for states in (q, k, v))
    return torch.cat([_grouped(q, k, v, prefix_mask, dropout, scaling), rows[None]], dim=1), None


def _there(layout: Layout | None) -> Layout:
    if layout is None:
        raise ValueError("within packed_attention a model takes packed batches only")
    return layout


def _taken(states: Tensor, at: Tensor) -> Tensor:
    """States (S, heads, D) at places (B, n): (B, n, heads, D)."""
    return states.index_select(0, at.flatten()).view(*at.shape, *states.shape[1:])


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Attention of q (B, L, H, D) to k and v (B, n, Hk, D): (B, L, H, D). mask: (H/Hk·L, n).

    The queries of all heads that share a key lie one after another, so that keys and values need no copies.
    """
    rows, tokens, heads, _ = q.shape
    shared_by = heads // k.shape[2]
    q = (
        q.view(rows, tokens, -1, shared_by, q.shape[3]).permute(0, 2, 3, 1, 4).flatten(2, 3)
    )  # (B, Hk, H/Hk·L, D)
    out = F.scaled_dot_product_attention(
        q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return out.view(rows, -1, shared_by, tokens, v.shape[3]).permute(0, 3, 1, 2, 4).flatten(2, 3)
