"""Soft tokens: trained vectors that a frozen model reads before the embeddings of a text.

A soft token (arXiv 2104.08691) is a token here: its id is beyond the model's vocabulary, and the input embedding looks
its vector up in a table of its own. A text with soft tokens before it is therefore a longer prompt. Whatever works on
prompts (packing, padding, a cache, `generate`, an encoder) works on it as it is.

The table stays at the model between the stages, as trained weights do. It is float32, and what is looked up is cast to
the embedding's dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from nlora.data.task import TokenizedExample
from nlora.errors import AdapterError, RunError, unusable
from nlora.models.inspection import is_encoder_decoder

PROMPTS_FILE = "soft_prompts.safetensors"
SETTINGS_FILE = "soft_prompts.json"


class SoftTokens(nn.Module):
    """The soft prompts that a model has, as one table of n vectors.

    first_id: the id of the first soft token. lengths: the tokens of each prompt, in the order of the table.
    frozen, trained: (n_f, d) and (n_t, d), the table's rows; only the second part trains.
    keys: (prompts, d), one for each prompt, which texts choose by; None where they do not choose.
    """

    frozen: Tensor

    def __init__(
        self,
        first_id: int,
        lengths: Sequence[int],
        frozen: Tensor,
        trained: Tensor,
        keys: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.first_id, self.lengths = first_id, tuple(lengths)
        self.register_buffer("frozen", frozen, persistent=False)
        self.trained = nn.Parameter(trained)
        self.keys = None if keys is None else nn.Parameter(keys)

    def vectors(self) -> Tensor:
        """(n, d), all rows of the table."""
        return torch.cat([self.frozen, self.trained])

    def ids(self, prompts: Iterable[int]) -> list[int]:
        """The tokens of some of the prompts (numbered from 0), one prompt after another."""
        ends = list(accumulate(self.lengths, initial=self.first_id))
        return [token for i in prompts for token in range(ends[i], ends[i + 1])]

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The prompts whose keys have the largest cosine with each query (B, d): cosines and prompts, (B, count)."""
        assert self.keys is not None
        cosines = F.normalize(queries, dim=1) @ F.normalize(self.keys, dim=1).T
        return cosines.topk(count)


# At the model


def input_embedding(model: Any) -> Any:
    """The module that embeds the tokens of a prompt: in an encoder-decoder model, the encoder's."""
    reader = model.get_encoder() if is_encoder_decoder(model) else model
    return reader.get_input_embeddings()


def soft_tokens_of(model: nn.Module) -> SoftTokens | None:
    """The soft tokens that a model has; None if it has none."""
    found: SoftTokens | None = getattr(input_embedding(model), "soft_tokens", None)
    return found


def put_soft_tokens(model: nn.Module, soft: SoftTokens) -> None:
    """Make the model's input embedding look up these soft tokens, instead of those that it has."""
    remove_soft_tokens(model)
    embedding = input_embedding(model)
    embedding.soft_tokens = soft
    embedding.forward = partial(_embed, embedding.forward, soft)


def remove_soft_tokens(model: nn.Module) -> None:
    """Make the model's input embedding what it was; nothing happens if it has no soft tokens."""
    embedding = input_embedding(model)
    if hasattr(embedding, "soft_tokens"):
        del embedding.soft_tokens
        before = vars(embedding).pop("forward").args[0]
        if embedding.forward != before:  # somebody else, such as accelerate, has replaced the class's own
            embedding.forward = before


def _embed(plain: Callable[[Tensor], Tensor], soft: SoftTokens, input_ids: Tensor) -> Tensor:
    """(B, T) -> (B, T, d). plain: the embedding of the model's own tokens."""
    is_soft = input_ids >= soft.first_id
    states = plain(input_ids.masked_fill(is_soft, 0))
    found = F.embedding((input_ids - soft.first_id).clamp(min=0), soft.vectors())
    return torch.where(is_soft[..., None], found.to(states.dtype), states)


@torch.no_grad()
def vocabulary_vectors(model: nn.Module, count: int, seed: int) -> Tensor:
    """(count, d) float32: the embeddings of random tokens of the vocabulary. They depend only on the seed."""
    embedding = input_embedding(model)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(embedding.weight.shape[0], (count,), generator=draw)
    vectors: Tensor = embedding(tokens.to(embedding.weight.device))
    return vectors.float()


@torch.no_grad()
def mean_embeddings(model: nn.Module, prompts: Iterable[TokenizedExample]) -> Tensor:
    """(B, d) float32 on the CPU: the mean over each prompt's tokens of the model's own embeddings."""
    embedding = input_embedding(model)
    device = embedding.weight.device
    rows = [embedding(torch.tensor(e.prompt_ids, device=device)).float().mean(dim=0) for e in prompts]
    return torch.stack(rows).cpu()


# In a stage's folder


def save_soft_tokens(soft: SoftTokens, folder: Path, *, base_model: str) -> None:
    """Write all prompts that the model has to folder/soft_prompts.safetensors, and their lengths to a JSON file.

    Raises AdapterError, before anything is written, if a vector is not finite.
    """
    tensors = {"prompts": soft.vectors(), **({} if soft.keys is None else {"keys": soft.keys})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise AdapterError(f"{folder}: the soft prompts are not finite; try a smaller train.learning_rate")
    (folder / PROMPTS_FILE).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    settings = {"base_model": base_model, "first_id": soft.first_id, "lengths": soft.lengths}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_soft_tokens(model: nn.Module, folder: Path) -> None:
    """Give the model the soft prompts of a stage. Raises RunError if they are missing, damaged or another model's."""
    path = folder / PROMPTS_FILE
    try:
        tensors = safetensors.torch.load_file(path)
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        prompts, keys = tensors["prompts"], tensors.get("keys")
        first_id, lengths = int(settings["first_id"]), [int(length) for length in settings["lengths"]]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise unusable(path, error, moved=folder) from error
    weight = input_embedding(model).weight
    fits = first_id == weight.shape[0] and prompts.shape == (sum(lengths), weight.shape[1])
    if not fits or (keys is not None and keys.shape != (len(lengths), weight.shape[1])):
        raise RunError(f"{path}: its prompts do not fit this model")
    soft = SoftTokens(first_id, lengths, prompts, prompts[:0], keys)
    put_soft_tokens(model, soft.to(weight.device).requires_grad_(False))
