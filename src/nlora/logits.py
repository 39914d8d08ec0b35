"""The model's logits where they are needed, and nowhere else.

    logits, targets = answer_logits(model, batch)        # (B, K, V), (B, K)

A plain forward pass computes the head on every prompt token and runs the instruction that all prompts of a
task begin with once per row. Here the head runs on the answer positions, and the common beginning runs once:
its key-value cache is repeated over the batch, and gradients flow through it, so that loss and gradients
are those of the plain pass. With dropout, the rows of a batch share the prefix's masks: each row sees masks of
the right distribution, they are only not independent between rows.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict the answer tokens, and those tokens.

    batch: as `nlora.data.collate.Collator` makes it.
    Returns logits (B, K, V) and targets (B, K), -100 where there is nothing to predict.
    """
    labels = batch["labels"]
    if is_encoder_decoder(model):
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels,
            use_cache=False,
        )
        return output.logits, labels
    output = causal_forward(model, batch, keep=labels.shape[1], use_cache=False)
    # The logits of a position predict the token after it.
    return output.logits[:, :-1], labels[:, 1:]


def causal_forward(
    model: nn.Module,
    batch: Batch,
    *,
    keep: int,
    use_cache: bool,
    cache: Any = None,
    before: Tensor | None = None,
) -> Any:
    """One pass over a batch of a causal model; logits (B, keep, V) of the last `keep` positions only.

    With `prefix_ids` (1, P) in the batch, those P tokens run once and every row attends to their cache.
    cache, before: instead of that, the cache of tokens that the rows follow, and their mask, (B, P).
    """
    mask = batch["attention_mask"]
    rows = {"input_ids": batch["input_ids"], "attention_mask": mask}
    if "prefix_ids" in batch:
        cache = read_prefix(model, batch["prefix_ids"])
        cache.batch_repeat_interleave(len(mask))
        before = mask.new_ones(len(mask), batch["prefix_ids"].shape[1])
    if before is not None:
        rows["past_key_values"] = cache
        rows["attention_mask"] = torch.cat([before, mask], dim=1)
    if "position_ids" in forward_parameters(model):
        rows["position_ids"] = positions(mask)
        if before is not None:
            rows["position_ids"] = rows["position_ids"] + before.sum(dim=1, keepdim=True)
    output = model(
        **rows, use_cache=use_cache or before is not None, **keep_logits(model, batch["input_ids"], keep)
    )
    if output.logits.shape[1] > keep:
        output.logits = output.logits[:, -keep:]
    return output


def read_prefix(model: Any, prefix_ids: Tensor) -> Any:
    """The key-value cache, of one row, of tokens (1, P) that many rows begin with."""
    output = model(input_ids=prefix_ids, use_cache=True, **keep_logits(model, prefix_ids, 1))
    return output.past_key_values


def positions(attention_mask: Tensor) -> Tensor:
    """(B, T) mask -> (B, T) position of each token in its own row, 0 on the padding before it."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model reads the prompt with an encoder (T5, BART) or with the decoder itself."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False))


def prefix_is_exact(model: Any, *, tolerance: float = 1e-3) -> bool:
    """Whether the shared prefix gives this model's own logits; tried out on a few tokens.

    Refused without a try: encoder-decoder models, sliding windows (their cache forgets tokens) and
    attention kernels that cannot take padding between prefix and row. The try catches what nobody listed.
    tolerance: largest difference of logits, relative to their largest magnitude; in 16 bit it is 1e-2.
    """
    config = model.config
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    window = getattr(text_config, "sliding_window", None)
    slides = layers != {"full_attention"} or (window and getattr(text_config, "layer_types", None) is None)
    attention = getattr(config, "_attn_implementation", "eager")
    if is_encoder_decoder(model) or slides or attention not in {"eager", "sdpa"}:
        return False
    device = next(model.parameters()).device
    # From the middle of the vocabulary: its first tokens may be control tokens that the model never saw, on which
    # rounding alone moved the logits of a trained SmolLM2 by a thousandth. A wrong mask or position moves them by
    # a tenth.
    tokens = (
        torch.linspace(0.1, 0.9, 12, device=device).mul(text_config.vocab_size).long().repeat(2, 1)
    )  # (2, 12)
    tokens[1, 9:] = tokens[1, 9:].flip(0)
    mask = torch.ones_like(tokens)
    split = {
        "prefix_ids": tokens[:1, :8],
        "input_ids": tokens[:, 8:].clone(),
        "attention_mask": mask[:, 8:].clone(),
    }
    # A padded row: the mask between prefix and row has to work too.
    split["attention_mask"][1, 0] = 0
    plain_mask = mask.clone()
    plain_mask[1, 8] = 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            whole = causal_forward(
                model, {"input_ids": tokens, "attention_mask": plain_mask}, keep=2, use_cache=False
            ).logits.float()
            parts = causal_forward(model, split, keep=2, use_cache=False).logits.float()
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(training)
    if next(model.parameters()).dtype in {torch.bfloat16, torch.float16}:
        tolerance = max(tolerance, 1e-2)
    return bool((whole - parts).abs().max() <= tolerance * whole.abs().max())


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Names that the backbone's forward takes; wrappers (PEFT, DDP) pass anything on."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return frozenset(inspect.signature(inner.forward).parameters)


def keep_logits(model: nn.Module, input_ids: Tensor, keep: int) -> dict[str, Tensor]:
    """`logits_to_keep` for the last positions, where the model knows it; the caller cuts where it does not.

    Named by index: a number would make the model slice its hidden states, and the head's product on the
    slice, which is not contiguous, runs row by row, many times slower.
    """
    if "logits_to_keep" not in forward_parameters(model):
        return {}
    length = input_ids.shape[1]
    return {"logits_to_keep": torch.arange(length - keep, length, device=input_ids.device)}
