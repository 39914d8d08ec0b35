"""How many tokens a model has positions for, if it looks them up in a table.

Beyond the end of its table, a model stops with an IndexError. Rotary, relative and most ALiBi positions are computed.
In such a model, max_position_embeddings is only the length that it was trained for, and not a limit. So this looks for
the tables themselves, by the names that transformers gives them; the model may be on the meta device. Tables that grow
by themselves (M2M-100, XGLM) are a different kind of module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Embeddings, learned or sinusoidal; in GPT-J, CodeGen and CTRL sinusoidal buffers.
_TABLES = frozenset({"wpe", "embed_positions", "position_embeddings", "positions_embed", "pos_encoding"})
_OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True, slots=True)
class Positions:
    """How many positions a model has; None: no table limits them.

    text: for prompt and answer together in a causal model, for the prompt in an encoder-decoder model.
    answer: for the answer in an encoder-decoder model.
    """

    text: int | None
    answer: int | None


def positions_of(model: nn.Module) -> Positions:
    """The sizes of the smallest tables. model: a transformers language model, with or without its weights.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> positions_of(GPT2LMHeadModel(GPT2Config(n_positions=1024, n_embd=8, n_layer=1, n_head=1)))
    Positions(text=1024, answer=None)
    """
    config: Any = model.config
    text: list[int] = []
    answer: list[int] = []
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    for name, count in _tables(model):
        of_decoder = is_encoder_decoder and "decoder" in name.split(".")
        (answer if of_decoder else text).append(count)
    if config.model_type == "mpt":  # it computes ALiBi biases for this many tokens
        text.append(config.max_seq_len)
    return Positions(min(text, default=None), min(answer, default=None))


def read_alike_up_to(model: nn.Module) -> int | None:
    """The length up to which a text is read alike beside any others; None: there is no such limit.

    Rotary positions of the kinds longrope and dynamic have other frequencies in a pass whose longest text is longer.
    """
    limits: list[int] = []
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        for layers, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            of_module: Any = module
            if kind == "longrope":
                options = of_module.config.rope_parameters
                options = options if layers is None else options[layers]
                limits.append(options["original_max_position_embeddings"])
            elif "dynamic" in str(kind):
                limits.append(of_module.original_max_seq_len)
    return min(limits, default=None)


def _tables(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and usable rows of each table that a text's positions are looked up in."""
    from torch.nn import Embedding

    for name, table in chain(model.named_modules(), model.named_buffers()):
        if name.rpartition(".")[2] not in _TABLES or any(tower in name for tower in _OTHER_TOWERS):
            continue
        if isinstance(table, Embedding):
            # OPT and BART leave the first rows unused; RoBERTa starts after the padding token's row.
            unused = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
            yield name, table.num_embeddings - unused
        elif getattr(table, "ndim", 0) == 2:
            yield name, int(table.shape[0])
