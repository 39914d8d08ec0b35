"""The command for a day on a GPU: without one, everything in it that needs none runs here, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

QUICK = ["checks", "operations", "reads", "training-1B", "attention"]
"""The sections that start no run of their own."""

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="here, benchmarks/gpu.py itself is the test"
)


def test_all_checks_hold_and_what_needs_a_gpu_is_skipped_by_name(
    script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = script("gpu")
    file = tmp_path / "gpu.json"
    command = ["--small", "--device", "cpu", "--together", "--rounds", "1", "--json", str(file)]
    assert gpu.main([*command, "--sections", *QUICK]) == 0
    made = json.loads(file.read_text())
    assert made["machine"]["torch"] == torch.__version__
    rows = made["rows"]
    assert [row for row in rows if row["verdict"] == "failed"] == []
    verdicts = {row["what"]: row["verdict"] for row in rows}
    assert verdicts["packed batches, attention in one call, bfloat16"] == "ok"
    assert verdicts["flex_attention"] == "skipped: no CUDA"
    assert {row["section"] for row in rows} == {
        "checks",
        "operations",
        "reads",
        "training tiny bfloat16",
        "attention",
    }
    started = {row["what"]: int(row["value"].split()[0]) for row in rows if row["section"] == "operations"}
    assert started["nlora"] < min(count for name, count in started.items() if name != "nlora")
    # A step reads nothing from the device; logging does, so reads are counted at all.
    found = {row["what"]: row["value"] for row in rows if row["section"] == "reads"}
    assert all(value.startswith("0 in a step; in 12 steps, logging ") for value in found.values())
    assert all(not value.startswith("0 in a step; in 12 steps, logging 0") for value in found.values())
    assert "packed batches, the prefix not copied, bfloat16 | logits" in capsys.readouterr().out


def test_what_breaks_is_a_failure_and_loses_nothing_else(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, material = script("gpu"), script("gpu_material")

    def breaks(sizes: Any) -> Iterator[Any]:
        yield material.Row("reads", "first", "1")
        raise MemoryError("too much\nof it")

    monkeypatch.setitem(gpu.SECTIONS, "reads", breaks)
    monkeypatch.setitem(
        gpu.SECTIONS, "attention", lambda sizes: iter([material.Row("attention", "next", "2")])
    )
    assert gpu.main(["--device", "cpu", "--together", "--sections", "reads", "attention"]) == 1
    printed = capsys.readouterr().out
    assert "| reads | first | 1 | measured |" in printed
    assert "| reads | the section itself | MemoryError: too much | failed |" in printed
    assert "| attention | next | 2 | measured |" in printed
    row = material.attempt("checks", "a check", lambda: ("0.3", False))
    assert (row.value, row.verdict) == ("0.3", "failed")
    assert material.attempt("checks", "a check", lambda: [][0]).verdict == "failed"


def test_a_section_of_its_own_process_keeps_what_it_found_when_its_time_is_over(
    script: Callable[[str], Any],
) -> None:
    gpu = script("gpu")
    rows = gpu.in_own_process("attention", ["--small", "--device", "cpu"], "cpu", 0.01)
    assert [row.verdict for row in rows] == ["skipped: out of time"]
    assert gpu.main(["--device", "cpu", "--seconds", "0", "--sections", "runs"]) == 0


def test_a_stop_loses_no_section_that_has_ended(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, material = script("gpu"), script("gpu_material")

    def stops(sizes: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(gpu.SECTIONS, "reads", lambda sizes: iter([material.Row("reads", "first", "1")]))
    monkeypatch.setitem(gpu.SECTIONS, "attention", stops)
    assert gpu.main(["--device", "cpu", "--together", "--sections", "reads", "attention", "runs"]) == 130
    printed = capsys.readouterr()
    assert "| reads | first | 1 | measured |" in printed.out
    assert "stopped" in printed.err


def test_a_read_is_counted_once_and_with_its_place(script: Callable[[str], Any]) -> None:
    counting = script("host_reads").HostReads()
    numbers = torch.ones(3)
    with counting:
        counting.mark()
        float(numbers.sum())
        assert numbers.any()
        numbers.tolist()
        counting.mark()
    numbers.tolist()
    assert counting.steps == [0, 3]
    assert {kind for kind, _ in counting.places} == {"step"}
    assert all("test_gpu_benchmark.py:" in place for _, place in counting.places)


@pytest.mark.slow
def test_the_sections_that_start_runs(script: Callable[[str], Any]) -> None:
    arguments = ["--small", "--device", "cpu"]
    found = [
        row
        for name in ("runs", "memory")
        for row in script("gpu").in_own_process(name, arguments, "cpu", 300)
    ]
    assert [row.what for row in found] == ["two at once", "tiny float32: foretold / measured peak"]
    assert found[0].verdict == "ok"
    assert found[1].verdict.startswith(("measured", "skipped: nlora check"))
