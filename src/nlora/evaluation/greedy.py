"""Greedy answers: the likeliest token after the likeliest token, until the end token.

    greedy(prefiller.run(prompts), end_id=2, most_tokens=50)      # [[344, 2], [1088, 17, 2]]

The tokens are those of transformers' `generate` with one beam and without sampling. Spared are its work between
tokens and the rows that have ended: they leave the batch.

`is_plain` tells whether a model's own generation settings (a repetition penalty, forced tokens) leave it at that.
"""

from __future__ import annotations

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
"""Generation settings that change nothing here."""


def greedy(prefill: Prefill, *, end_id: int, most_tokens: int) -> list[list[int]]:
    """The tokens of each row's answer: at most `most_tokens`, with the end token where it came to that."""
    answers: list[list[int]] = [[] for _ in prefill.rows]
    tokens = prefill.next_logits.argmax(dim=-1)  # (B,)
    for count in range(1, most_tokens + 1):
        found = tokens.tolist()
        for row, token in zip(prefill.rows, found, strict=True):
            answers[row].append(token)
        going_on = [place for place, token in enumerate(found) if token != end_id]
        if count == most_tokens or not going_on:
            break
        if len(going_on) < len(found):
            last = dict(zip(prefill.rows, found, strict=True))
            prefill.select_rows(going_on)
            tokens = tokens.new_tensor([last[row] for row in prefill.rows])
        tokens = prefill.extend(tokens[:, None])[:, -1].argmax(dim=-1)
    return answers


def is_plain(model: Any) -> bool:
    """Whether `generate` would decode this model's greedy answers without any rule of the model's own."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return True
    return all(
        name in _HARMLESS or name.startswith("_") or value is None
        for name, value in settings.to_diff_dict().items()
    )


def greedy_generation(backbone: Backbone, *, most_tokens: int) -> Any:
    """transformers' GenerationConfig for one beam and no sampling; the model's own rules are added by `generate`."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=most_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=backbone.tokenizer.eos_token_id,
        pad_token_id=backbone.tokenizer.pad_token_id,
        decoder_start_token_id=decoder_start(backbone.model) if backbone.encoder_decoder else None,
    )
