"""The experiment's sweeps train alike: what one of them chooses or explains holds for the others."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from nlora.config.schema import Config
from nlora.sweeps.check import check_sweep
from nlora.sweeps.expand import read_sweep

FOLDER = Path(__file__).parents[2] / "benchmarks"


def configurations(name: str) -> dict[str, Config]:
    """The runs of a sweep by their folders' names."""
    return {folder.name: config for folder, config in check_sweep(read_sweep(str(FOLDER / name))).items()}


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("choosing_tuning.yaml", "inclora-seed100"),
        ("choosing_claim.yaml", "inclora-epochs=5-seed1"),
    ],
)
def test_no_protection_trains_as_in_the_experiment(name: str, baseline: str) -> None:
    experiment = configurations("choosing_short.yaml")["inclora-seed1"]
    other = configurations(name)[baseline]
    for key in ("model", "dtype", "tasks", "method", "lora", "train", "stages"):
        assert getattr(other, key) == getattr(experiment, key), key


def test_tuning_reads_no_test_examples_and_has_a_seed_of_its_own() -> None:
    tuning, experiment = configurations("choosing_tuning.yaml"), configurations("choosing_short.yaml")
    assert {config.evaluate.split for config in tuning.values()} == {"validation"}
    assert not {c.seed for c in tuning.values()} & {c.seed for c in experiment.values()}


def test_every_method_has_four_values() -> None:
    variants = {name.removesuffix("-seed100") for name in configurations("choosing_tuning.yaml")}
    # Tried after the four values, of which one at an end was the best, and worse than that
    beyond_the_budget = {"inclora", "lwf-0.03", "lwf-0.1", "inclora_lr-2.0e-3", "seqft-1.0e-3"}
    assert beyond_the_budget < variants
    methods = Counter(re.sub(r"-[\d.e-]+$", "", name) for name in variants - beyond_the_budget)
    assert set(methods.values()) == {4}
