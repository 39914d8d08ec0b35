"""Greedy decoding: the likeliest token at each step, until the end token.

The tokens are those of transformers' `generate` with one beam and without sampling. It is faster because it does less
between tokens, and because rows that have ended are removed from the batch.

It applies to models whose own generation settings (a repetition penalty, forced tokens) do not change the greedy
answer, which `is_plain` checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nlora.evaluation.prefill import Prefill
from nlora.models.inspection import decoder_start

if TYPE_CHECKING:
    from nlora.models.backbone import Backbone

# fmt: off
_SAMPLING = {"do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff",
             "eta_cutoff"}
_SET_HERE = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "num_beams", "early_stopping"}
_LENGTHS = {"max_length", "max_new_tokens"}
_MACHINERY = {"use_cache", "cache_implementation", "cache_config", "disable_compile", "compile_config"}
_OUTPUT = {
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "num_return_sequences", "transformers_version",
}
# fmt: on
_HARMLESS = _SAMPLING | _SET_HERE | _LENGTHS | _MACHINERY | _OUTPUT
"""Generation settings without effect on greedy decoding."""


def greedy(prefill: Prefill, *, end_ids: Sequence[int], most_tokens: int) -> list[list[int]]:
    """The tokens of each row's answer: at most `most_tokens`, the end token included if one was reached."""
    answers: list[list[int]] = [[] for _ in prefill.rows]
    tokens = prefill.next_logits.argmax(dim=-1)  # (B,)
    for count in range(1, most_tokens + 1):
        found = tokens.tolist()
        for row, token in zip(prefill.rows, found, strict=True):
            answers[row].append(token)
        unfinished = [place for place, token in enumerate(found) if token not in end_ids]
        if count == most_tokens or not unfinished:
            break
        if len(unfinished) < len(found):
            last = dict(zip(prefill.rows, found, strict=True))
            prefill.select_rows(unfinished)
            tokens = tokens.new_tensor([last[row] for row in prefill.rows])
        tokens = prefill.extend(tokens[:, None])[:, -1].argmax(dim=-1)
    return answers


def is_plain(model: Any) -> bool:
    """Whether none of the model's own generation settings would change `generate`'s greedy answers."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return True
    return all(
        name in _HARMLESS or name.startswith("_") or value is None
        for name, value in settings.to_diff_dict().items()
    )


def greedy_generation(backbone: Backbone, *, most_tokens: int, end_ids: Sequence[int] | None = None) -> Any:
    """A GenerationConfig for one beam without sampling; `generate` adds the model's own settings.

    end_ids: None: the tokenizer's end token.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=most_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=backbone.tokenizer.eos_token_id if end_ids is None else list(end_ids),
        pad_token_id=backbone.tokenizer.pad_token_id,
        decoder_start_token_id=decoder_start(backbone.model) if backbone.encoder_decoder else None,
    )
