"""Mean hidden states against plain passes of transformers, one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlora.evaluation import hidden_states
from nlora.evaluation.hidden_states import mean_hidden_states
from nlora.models.backbone import load_backbone

TEXTS = [[5, 9, 17, 33, 2, 40, 8], [7], [21, 3, 60], [5, 9, 17, 33, 2, 40, 9], [11, 12, 13, 14, 15]]


def plain(model: Any, ids: list[int]) -> np.ndarray:
    """The last of all hidden states of the whole model, averaged."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            states = model(
                input_ids=tokens, decoder_input_ids=tokens, output_hidden_states=True
            ).encoder_last_hidden_state
        else:
            states = model(input_ids=tokens, output_hidden_states=True).hidden_states[-1]
    return states[0].mean(dim=0).numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "t5"])
def test_batches_give_what_each_text_gives_alone(tiny_model: Callable[[str], Path], family: str) -> None:
    backbone = load_backbone(str(tiny_model(family)))
    expected = np.stack([plain(backbone.model, ids) for ids in TEXTS])
    found = mean_hidden_states(backbone, TEXTS, batch_size=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected[0] - expected[3]).max() > 1e-2  # one other token of seven is seen


def test_where_padding_changes_the_states_each_text_runs_alone(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_the_left(mask: torch.Tensor) -> torch.Tensor:
        """Positions that are right for a row without padding only."""
        return torch.arange(mask.shape[1]).expand_as(mask)

    backbone = load_backbone(str(tiny_model("gpt2")))
    expected = np.stack([plain(backbone.model, ids) for ids in TEXTS])
    monkeypatch.setattr(hidden_states, "positions", from_the_left)
    together = hidden_states._means(backbone, TEXTS[:2])[1].numpy()
    assert np.abs(together - expected[1]).max() > 0.1
    for size in (5, 2):  # the two longest are equally long
        found = mean_hidden_states(backbone, TEXTS, batch_size=size)
        np.testing.assert_allclose(found, expected, atol=1e-4)
