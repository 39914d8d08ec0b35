"""How many tokens a model has positions for, where it looks these up in a table.

    positions = positions_of(load_skeleton("gpt2"))
    positions.text              # 1024: prompt and answer together; None: no such limit

Beyond the end of a table a model stops with an IndexError. Rotary, relative and most ALiBi positions are computed, so
what such a model's configuration calls max_position_embeddings is only the length that it was trained for; no limit is
made of it. So the tables themselves are looked for (the model may be on the meta device), by the names that
transformers gives them; those that grow by themselves (M2M-100, XGLM) are no modules of that kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Tables of embeddings, learned or of sines; in GPT-J, CodeGen and CTRL plain buffers of sines.
_TABLES = frozenset({"wpe", "embed_positions", "position_embeddings", "positions_embed", "pos_encoding"})
_OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions for what is read, and for what an encoder-decoder's decoder writes; None: no table limits them.

    text: of a causal model, prompt and answer together; of an encoder-decoder, the prompt.
    """

    text: int | None
    answer: int | None


def positions_of(model: nn.Module) -> Positions:
    """The smallest tables on either side. model: a language model of transformers, with or without its weights."""
    config: Any = model.config
    text: list[int] = []
    answer: list[int] = []
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    for name, count in _tables(model):
        of_decoder = is_encoder_decoder and "decoder" in name.split(".")
        (answer if of_decoder else text).append(count)
    if config.model_type == "mpt":  # it makes its ALiBi biases for so many tokens
        text.append(config.max_seq_len)
    return Positions(min(text, default=None), min(answer, default=None))


def _tables(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and usable rows of each table on the text's way through the model."""
    from torch.nn import Embedding

    for name, table in chain(model.named_modules(), model.named_buffers()):
        if name.rpartition(".")[2] not in _TABLES or any(tower in name for tower in _OTHER_TOWERS):
            continue
        if isinstance(table, Embedding):
            # OPT and BART leave the first rows unused; RoBERTa counts from the one behind padding's.
            unused = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
            yield name, table.num_embeddings - unused
        elif getattr(table, "ndim", 0) == 2:
            yield name, int(table.shape[0])
