"""Dropout's masks do not show how a step was split, and are random in everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlora.config.schema import ALL_LINEAR, LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.collate import Collator
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import beginnings_of, pack
from nlora.data.task import TokenizedExample
from nlora.kernels.dropout import kept_entries
from nlora.kernels.streams import Streams
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.training.finite_guard import ROWS
from nlora.training.keyed_masks import KeyedMasks
from nlora.training.trainer import train

TinyModel = Callable[[str], Path]
BEGINNING = list(range(20, 29))
EXAMPLES = [
    TokenizedExample([*BEGINNING, *range(40, 41 + i % 5)], [50 + i % 7, *range(60, 60 + i % 3), 1])
    for i in range(11)
]
OTHERS = [TokenizedExample([20, 21, 80, 81, 82, 83, 90 + i, 95], [70, 1]) for i in range(5)]
MIXED = TokenizedExamples(TokenizedExamples.of(some).parts[0] for some in (EXAMPLES[:6], OTHERS))
"""Of two tasks; all of them begin with 2 tokens, and those of a task with 9 or 6."""
CASES: dict[str, tuple[str, Sequence[TokenizedExample]]] = {
    "packed": ("llama", EXAMPLES),
    "packed, of two tasks": ("llama", MIXED),
    "padded on the left": ("mistral", EXAMPLES),
    "padded on the right": ("t5", EXAMPLES),
}


def update(
    folder: Path, model: Path, examples: Sequence[TokenizedExample], dropout: float = 0.3, **options: Any
) -> torch.Tensor:
    """All updates after two steps, in one row."""
    backbone: Any = load_backbone(str(model))
    lora = LoraOptions(r=4, alpha=8, dropout=dropout, targets=ALL_LINEAR)
    adapter = LoraAdapter.attach(backbone.model, lora, seed=1)
    values = TrainOptions(**{"batch_size": 8, "learning_rate": 1e-4, **options})
    train(backbone, adapter, examples, values, penalty=lambda: None, seed=5, folder=folder)
    return torch.cat([f.update().flatten() for f in adapter.state().values()])


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_do_not_change_the_masks(tmp_path: Path, tiny_model: TinyModel, case: str) -> None:
    family, examples = CASES[case]
    model = tiny_model(family)
    whole = update(tmp_path, model, examples)
    # T5 does not scale its attention: random weights make its softmax sharp, which magnifies rounding.
    limit = 2e-2 if family == "t5" else 1e-3
    torch.manual_seed(77)  # torch's generator plays no part
    for micro, checkpointing in ((1, False), (2, True), (4, False)):
        found = update(
            tmp_path, model, examples, micro_batch_size=micro, gradient_checkpointing=checkpointing
        )
        assert (found - whole).norm() < limit * whole.norm()
    other = update(tmp_path, model, examples, dropout=0.0)  # what other masks amount to
    assert (other - whole).norm() > 0.1 * whole.norm()


def begun(batch: dict[str, Any], rows: Sequence[int], beginning: int = 9, step: int = 0) -> KeyedMasks:
    masks = KeyedMasks(5, beginning=beginning, encoder_decoder=False)
    masks.begin(step, {**batch, ROWS: torch.tensor(rows)})
    return masks


def masks_by_token(batch: dict[str, Any], masks: KeyedMasks, rows: int) -> torch.Tensor:
    return kept_entries(torch.empty(rows, 10), 0.5, masks.streams(2, rows))


def test_a_token_has_its_mask_wherever_it_is() -> None:
    together, alone = pack(EXAMPLES[:3], 9), pack(EXAMPLES[1:2], 9)
    count, own = together["input_ids"].shape[1], alone["input_ids"].shape[1]
    of_all = masks_by_token(together, begun(together, [0, 1, 2]), count)
    of_one = masks_by_token(alone, begun(alone, [1]), own)
    assert torch.equal(of_one[:9], of_all[:9])
    assert torch.equal(of_one[9:], of_all[together["groups"][0]["rows_at"][1][: own - 9]])
    # The tokens that predict an answer, which the last layer gets alone.
    n, of = len(together["predict_at"]), len(alone["predict_at"])
    first = len(pack(EXAMPLES[:1])["predict_at"])
    some = masks_by_token(together, begun(together, [0, 1, 2]), n)
    assert torch.equal(some[first : first + of], masks_by_token(alone, begun(alone, [1]), of))


def test_so_has_one_of_several_tasks_whether_its_beginning_is_shared_or_not() -> None:
    beginnings = [list(BEGINNING), [20, 21, 80, 81, 82, 83]]
    assert beginnings_of(MIXED) == beginnings

    def of_each(rows: Sequence[int]) -> dict[int, list[torch.Tensor]]:
        """The masks of each example's tokens, and of those that predict its answer."""
        some = [MIXED[row] for row in rows]
        batch = pack(some, 2, beginnings)
        masks = KeyedMasks(5, beginning=2, beginnings=[9, 6], encoder_decoder=False)
        masks.begin(0, {**batch, ROWS: torch.tensor(rows)})
        every = masks_by_token(batch, masks, batch["input_ids"].shape[1])
        predicting = masks_by_token(batch, masks, len(batch["predict_at"]))
        ends = torch.tensor([len(e.answer_ids) for e in some]).cumsum(0).tolist()
        found, start = {}, 0
        for group in batch["groups"]:
            for i, keys in zip(group["examples"].tolist(), group["keys_at"], strict=True):
                tokens = len(some[i].prompt_ids) + len(some[i].answer_ids) - 1
                answer = predicting[ends[i] - len(some[i].answer_ids) : ends[i]]
                found[rows[i]] = [every[start + keys[:tokens]], answer]
            start += group["keys_at"].max() + 1
        return found

    whole = of_each([7, 0, 3, 8, 1])  # two groups
    for rows in ([0, 7], [7], [3], [8, 1, 0]):  # tasks that share two tokens, and one with its beginning
        for row, masks in of_each(rows).items():
            assert all(map(torch.equal, masks, whole[row])), (rows, row)
    first, other = whole[0][0], whole[7][0]
    assert torch.equal(first[:2], other[:2])
    assert not torch.equal(first[2:6], other[2:6])
    assert not torch.equal(first[9:], whole[3][0][9 : len(first)])


def test_padding_on_the_left_does_not_move_the_masks() -> None:
    batch = Collator(0, False)(EXAMPLES[3:5])
    width = batch["input_ids"].shape[1]
    both = masks_by_token(batch, begun(batch, [3, 4]), 2 * width)
    short = Collator(0, False)(EXAMPLES[3:4])
    alone = masks_by_token(short, begun(short, [3]), short["input_ids"].shape[1])
    assert torch.equal(both[width - len(alone) : width], alone)


def test_rows_that_are_not_the_micro_batchs_have_no_streams() -> None:
    batch = pack(EXAMPLES[:3], 9)
    assert begun(batch, [0, 1, 2]).streams(0, batch["input_ids"].shape[1] + 1) is None
    # A process without examples has a batch of one that does not count.
    assert begun(pack(EXAMPLES[:1]), []).streams(0, 10) is None


def test_masks_of_other_steps_layers_examples_and_seeds_are_independent() -> None:
    p, entries = 0.3, 120_000
    of = [
        Streams((seed, step), layer, [(0, 200, example)])
        for seed, step, layer, example in (
            (1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2), (1, 1, 1, 0), (-1, 1, 1, 1),
        )
    ]  # fmt: skip
    masks = torch.stack(
        [kept_entries(torch.empty(200, entries // 200), p, streams).flatten() for streams in of]
    )
    deviation = (p * (1 - p) / entries) ** 0.5
    assert ((masks.float().mean(1) - (1 - p)).abs() < 5 * deviation).all()
    correlations = torch.corrcoef(masks.float())
    for one, other in combinations(range(len(of)), 2):
        assert abs(correlations[one, other]) < 5 / entries**0.5
    # Rows and columns of one mask
    grid = masks[0].view(200, -1).float()
    for shifted, rest in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        pair = torch.stack([shifted.flatten(), rest.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 5 / entries**0.5


def test_the_numbers_are_philox_of_the_key_and_the_counter() -> None:
    numbers = Streams((3, 4), 5, [(0, 2, 6)]).draw(8)
    expected = np.random.Philox(key=(4 << 64) + 3, counter=(6 << 192) + (5 << 128)).random_raw(16)
    assert numbers.flatten().tolist() == expected.tolist()
    assert Streams((3, 4), 5, [(0, 2, 6)], backwards=True).draw(8).tolist() == numbers[::-1].tolist()
    assert Streams((0, 0), 0, [(0, 1, 0)]).draw(1).tolist() == [[0x02F4BA6408E4D89B]]  # in any version
