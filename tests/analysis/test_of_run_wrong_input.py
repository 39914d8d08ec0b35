"""`nlora analyze` with wrong input: one line each, and exit status 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nlora.analysis.of_run import analyze_run
from nlora.errors import RunError
from states import SHAPES, random_factors, random_state, write_adapter, write_run

Call = Callable[..., tuple[int, str, str]]


def damaged(folder: Path) -> Path:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    return folder


def not_finite(folder: Path) -> Path:
    state = random_state(SHAPES, 2, 7)
    state["model.layers.1.q_proj"].B[0, 0] = float("nan")
    return write_adapter(folder.parent / "nan", state)


def other_shape(folder: Path) -> Path:
    return write_adapter(folder.parent / "wide", {"model.layers.0.q_proj": random_factors(12, 20, 2, 0)})


def other_backbone(folder: Path) -> Path:
    return write_adapter(folder.parent / "t5", {"encoder.block.0.q": random_factors(12, 16, 2, 0)})


def dora(folder: Path) -> Path:
    return write_adapter(folder.parent / "dora", random_state(SHAPES, 2, 1), use_dora=True)


def ia3(folder: Path) -> Path:
    return write_adapter(folder.parent / "ia3", random_state(SHAPES, 2, 1), peft_type="IA3")


def empty(folder: Path) -> Path:
    (folder.parent / "empty").mkdir()
    return folder.parent / "empty"


def a_run(folder: Path) -> Path:
    write_run(folder.parent / "run")
    return folder.parent / "run"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (damaged, "adapter_model.safetensors: damaged or not a safetensors file"),
        (not_finite, "the factors of model.layers.1.q_proj contain NaN"),
        (other_shape, "module model.layers.0.q_proj is 12x16 in "),
        (other_backbone, "have no module in common"),
        (dora, "not a plain LoRA adapter, it uses use_dora"),
        (ia3, "an adapter of kind IA3; only LORA can be read"),
        (empty, "not an adapter, the folder has no adapter_config.json"),
        (lambda folder: folder.parent / "gone", "not an adapter, there is no such folder"),
        (a_run, "is a run; give it alone"),
        (lambda folder: folder.parent.parent / "1-task" / "adapter", "is given twice"),
    ],
)
def test_a_wrong_adapter_is_an_error_of_one_line(
    two: list[Path], nlora: Call, make: Callable[[Path], Path], said: str
) -> None:
    status, out, err = nlora("analyze", two[0], make(two[1]))
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_nothing_to_compare_is_an_error_of_one_line(tmp_path: Path, two: list[Path], nlora: Call) -> None:
    write_run(tmp_path / "none", stages=0)
    write_run(tmp_path / "whole", stages=0, method="seqft")
    (tmp_path / "whole" / "outputs" / "1-r8" / "model").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.yaml").touch()
    for arguments, said in (
        ([two[0]], "is a single adapter; give two or more"),
        ([tmp_path / "none"], "none of its 3 stages is finished"),
        ([tmp_path / "whole"], "its stages hold no adapters (seqft)"),
        ([tmp_path / "broken"], "no summary.json in it"),
        ([*two, "--threshold", "-1"], "--threshold: must be a number >= 0, not -1"),
        ([*two, "--threshold", "nan"], "--threshold: must be a number >= 0, not nan"),
    ):
        status, _, err = nlora("analyze", *arguments)
        assert status == 2
        assert said in err
        assert len(err.strip().splitlines()) == 1
    with pytest.raises(RunError, match="no such folder"):
        analyze_run(tmp_path / "gone")
