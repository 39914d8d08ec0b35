"""The guess counts what is computed: a shared beginning once per pass, and no less than a pass must cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nlora.runs.time_estimate import (
    LEAST_TOKENS,
    Speed,
    bfloat16_gain,
    flops_per_second,
    pass_tokens,
    score_seconds,
    train_seconds,
)


def test_a_shared_beginning_counts_once() -> None:
    assert pass_tokens(tokens=75, shared=42, rows=8) == 42 + 8 * 33
    assert pass_tokens(tokens=75, shared=0, rows=8) == 600
    assert pass_tokens(tokens=20, shared=10, rows=2) == LEAST_TOKENS


def test_training_costs_twice_what_scoring_costs() -> None:
    speed = Speed(parameters=1e8, layers=10, rate=1e11, start_seconds=0.0)
    work = {"tokens": 100.0, "shared": 0, "rows": 10, "passes": 3}
    # 3 passes of 1000 tokens at 2 operations per weight and token: 6e11 operations.
    assert score_seconds(speed, **work) == pytest.approx(6.0)
    assert train_seconds(speed, **work) == pytest.approx(12.0)


def test_a_fast_device_waits_for_the_operations_of_a_small_model() -> None:
    work = {"tokens": 100.0, "shared": 0, "rows": 10, "passes": 3}
    small = Speed(parameters=1e8, layers=200, rate=1e14, start_seconds=1e-3)
    assert train_seconds(small, **work) == pytest.approx(0.6)
    assert score_seconds(small, **work) == pytest.approx(0.2)
    large = replace(small, parameters=1e11)
    assert train_seconds(large, **work) == pytest.approx(12.0)


def test_this_machine_multiplies_matrices() -> None:
    for dtype in ("float32", "bfloat16"):
        assert 1e7 < flops_per_second(dtype, size=128, repeats=2) < 1e16


def test_the_size_of_the_matrices_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, **options: sizes.append(size) or ones(*size, **options))
    monkeypatch.setattr("nlora.runs.time_estimate.SIZES", {"cpu": 32, "cuda": 64})
    flops_per_second("float32", repeats=1)
    assert sizes == [(64, 64) if torch.cuda.is_available() else (32, 32)]


def test_the_rate_is_measured_once_for_each_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nlora demo` computes with one thread and then with two."""
    made = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, **options: made.append(size) or ones(*size, **options))
    for threads in (1, 2, 1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        flops_per_second("float32", size=48, repeats=1)
    assert made == [(48, 48)] * 2


def test_the_gain_is_that_of_the_shorter_format(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"float32": 2e11, "bfloat16": 5e11}
    monkeypatch.setattr("nlora.runs.time_estimate.flops_per_second", rates.__getitem__)
    assert bfloat16_gain() == 2.5
