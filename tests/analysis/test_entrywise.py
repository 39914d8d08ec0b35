"""Counts on packed bits against whole updates, block by block, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nlora.analysis import entrywise as walk
from nlora.analysis.bitsets import counts, filled, packed, pair_counts, put, words_for
from nlora.analysis.buffers import Scratch
from nlora.analysis.entrywise import entrywise
from nlora.models.lora_factors import LoraFactors
from states import of_matrix, random_factors


def test_bits_are_counted_for_every_pair() -> None:
    generator = np.random.default_rng(0)
    large, negative = generator.random((2, 5, 1003)) < 0.4
    both, unlike = pair_counts(packed(large), packed(negative))
    assert counts(packed(large)).tolist() == large.sum(1).tolist()
    expected = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    assert both.tolist() == [int((large[i] & large[j]).sum()) for i, j in expected]
    assert unlike.tolist() == [
        int((large[i] & large[j] & (negative[i] != negative[j])).sum()) for i, j in expected
    ]
    assert pair_counts(packed(large))[1].tolist() == [0] * 10
    assert [len(c) for c in pair_counts(packed(large[:1]))] == [0, 0]


def test_flags_that_end_inside_a_byte_are_padded_with_zeros() -> None:
    words = np.full((2, words_for(65)), 2**64 - 1, np.uint64)  # what was there before is written over
    flags = np.ones((2, 5), bool)
    offset = put(words, put(words, 0, flags), flags)
    assert offset == 2  # each piece begins at a byte
    assert counts(filled(words, offset)).tolist() == [10, 10]


@pytest.mark.parametrize(("tile", "bits"), [(2**18, 2**19), (1, 1), (3 * 4 * 4, 30), (3 * 7 * 5, 2**19)])
@pytest.mark.parametrize("out", [1, 11])
def test_counts_by_tile_are_those_of_whole_updates(
    tile: int, bits: int, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "TILE_ENTRIES", tile)
    monkeypatch.setattr(walk, "BITS_AT_ONCE", bits)
    factors = [random_factors(out, 7, r, seed=r, scaling=s) for r, s in ((2, 1.0), (3, -2.0), (1, 0.5))]
    made = entrywise(factors, 0.7)
    updates = [f.update() for f in factors]
    large = [u.abs() > 0.7 for u in updates]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert made.large.tolist() == [int(m.sum()) for m in large]
    assert made.both.tolist() == [int((large[i] & large[j]).sum()) for i, j in pairs]
    assert made.unlike.tolist() == [
        int((large[i] & large[j] & (updates[i] * updates[j] < 0)).sum()) for i, j in pairs
    ]
    assert made.l1 == pytest.approx([float(u.abs().sum()) for u in updates], rel=1e-5)
    assert made.energy == pytest.approx(
        [float((updates[i] * updates[j]).abs().sum()) for i, j in pairs], rel=1e-5
    )


def test_disjoint_supports_never_collide() -> None:
    support = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    values = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    made = entrywise([of_matrix(values * support), of_matrix(values * ~support)], 0.0)
    assert made.both.tolist() == [0]
    assert made.energy.tolist() == [0.0]
    assert made.large.sum() == 600


def test_equal_updates_collide_wherever_they_are_large() -> None:
    f = random_factors(30, 20, 4, seed=5)
    opposite = LoraFactors(f.A, f.B, -f.scaling)
    made = entrywise([f, f, opposite], 1.5)
    assert made.both.tolist() == [made.large[0]] * 3
    assert made.unlike.tolist() == [0, made.large[0], made.large[0]]
    assert made.energy[0] == pytest.approx(float(f.update().square().sum()), rel=1e-5)


def test_independent_supports_collide_by_the_product_of_their_densities() -> None:
    generator = torch.Generator().manual_seed(2)
    supports = [torch.rand(600, 700, generator=generator) < share for share in (0.3, 0.2)]
    made = entrywise([of_matrix(s.float()) for s in supports], 0.5)
    rate, densities = made.both[0] / 420_000, made.large / 420_000
    # Five standard errors of a share of 0.06 among 420 000 entries.
    assert rate == pytest.approx(densities[0] * densities[1], abs=5 * (0.06 * 0.94 / 420_000) ** 0.5)


def test_orthogonal_updates_can_collide_everywhere() -> None:
    """The paper's figure 1: the products sum to zero, though all coordinates meet."""
    one, other = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 3.0, -3.0]])
    assert float((one * other).sum()) == 0.0
    made = entrywise([of_matrix(one), of_matrix(other)], 0.1)
    assert made.both[0] == 3
    assert made.unlike[0] == 1
    assert made.energy[0] == 18.0


def test_an_entry_at_the_threshold_does_not_count() -> None:
    f = of_matrix(torch.tensor([[0.25, -0.25, 0.5, 0.0]]))
    assert entrywise([f], 0.25).large[0] == 1
    assert entrywise([f], 0.0).large[0] == 3


def test_buffers_used_before_do_not_change_the_numbers() -> None:
    """Larger, smaller, wider, of more adapters: each as if it were alone."""
    scratch = Scratch()
    for count, out, n_in in ((3, 40, 70), (3, 7, 5), (5, 9, 33), (2, 70, 40), (3, 40, 70)):
        factors = [random_factors(out, n_in, 1 + k, seed=10 * count + k) for k in range(count)]
        made, alone = entrywise(factors, 0.5, scratch), entrywise(factors, 0.5)
        for measure in ("large", "l1", "both", "unlike", "energy"):
            assert getattr(made, measure).tolist() == getattr(alone, measure).tolist()
