"""benchmarks/choosing.py prints each method: its scores, its difference to no protection, the size of its updates."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import learn, write_config
from nlora.runs.summary import read_summary

FOLDER = Path(__file__).parents[2] / "benchmarks"


def norm(adapter: Path, scaling: float) -> float:
    """Frobenius norm of s·B·A over all modules."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    updates = [
        scaling * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        for name in tensors
        if "lora_A" in name
    ]
    return float(torch.stack([update.square().sum() for update in updates]).sum().sqrt())


def test_a_method_is_compared_with_no_protection_that_trained_as_long(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), lora={"r": 4, "alpha": 8, "dropout": 0.0})
    runs = tmp_path / "runs"
    for epochs in (1, 3):
        for method in ("inclora", "nlora"):
            name = f"{method}-epochs={epochs}"
            own = [f"name={name}", f"method={method}", f"train.epochs={epochs}", f"output_dir={runs / name}"]
            learn(config, *own)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["choosing.py", str(runs)])
    importlib.import_module("choosing").main()
    printed = capsys.readouterr().out
    rows = {
        line.split("`")[1]: [c.strip() for c in line.split("|")[2:-1]] for line in printed.splitlines()[2:]
    }
    assert len(rows) == 4
    for epochs in (1, 3):
        plain, other = (read_summary(runs / f"{m}-epochs={epochs}") for m in ("inclora", "nlora"))
        assert rows[f"inclora-epochs={epochs}"][:3] == ["1", f"{plain.average_accuracy:.1f}", "-"]
        _, accuracy, minus, transfer, kept, _, update, _ = rows[f"nlora-epochs={epochs}"]
        assert accuracy == f"{other.average_accuracy:.1f}"
        assert plain.average_accuracy is not None
        assert other.average_accuracy is not None
        assert minus.startswith(f"{other.average_accuracy - plain.average_accuracy:+.1f} (")
        assert transfer == f"{other.backward_transfer:.1f}"
        assert plain.backward_transfer is not None
        assert other.backward_transfer is not None
        assert kept.startswith(f"{other.backward_transfer - plain.backward_transfer:+.1f} (")
        adapters = (runs / f"nlora-epochs={epochs}").glob("outputs/*/adapter")
        assert update == f"{sum(norm(adapter, 2.0) for adapter in adapters) / 2:.1f}"

    kept_file = tmp_path / "kept.jsonl"
    monkeypatch.setattr(sys, "argv", ["choosing.py", str(runs), "--keep", str(kept_file)])
    importlib.import_module("choosing").main()
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["choosing.py", str(kept_file)])
    importlib.import_module("choosing").main()
    assert capsys.readouterr().out == printed
    assert "text" not in kept_file.read_text()


def test_what_a_method_costs_is_a_share_of_what_no_protection_does(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    runs = tmp_path / "runs"
    for method, memory in (("inclora", 0), ("inclora", 2)):
        name = f"{method}-{memory}" if memory else method
        own = [f"name={name}", f"method={method}", f"replay.memory={memory}", f"output_dir={runs / name}"]
        learn(config, *own)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["choosing.py", str(runs), "--costs"])
    importlib.import_module("choosing").main()
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = {line.split("`")[1]: [c.strip() for c in line.split("|")[2:-1]] for line in lines}
    plain, replay = (read_summary(runs / name) for name in ("inclora", "inclora-2"))
    ratio = replay.train_seconds[-1] / plain.train_seconds[-1]
    assert (rows["inclora"][0], rows["inclora-2"][0]) == ("1.00", f"{ratio:.2f}")
    whole = [run.train_seconds[-1] + run.prepare_seconds[-1] for run in (plain, replay)]
    assert (rows["inclora"][1], rows["inclora-2"][1]) == ("1.00", f"{whole[1] / whole[0]:.2f}")
    assert 0 < plain.prepare_seconds[-1] < 600
    assert rows["inclora"][3] == f"{plain.trained_parameters:,}"
    assert (rows["inclora"][-1], rows["inclora-2"][-1]) == ("0", "2")


KEPT = sorted((FOLDER / "results").glob("*.jsonl"))


@pytest.mark.parametrize("file", KEPT, ids=[file.stem for file in KEPT])
def test_the_tables_of_the_manual_are_those_of_the_kept_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a command of the manual prints from the file is on a page that has the command."""
    monkeypatch.syspath_prepend(str(FOLDER))
    pages = [path.read_text().replace("−", "-") for path in sorted((FOLDER.parent / "docs").glob("*.md"))]
    command = re.compile(rf"benchmarks/choosing.py benchmarks/results/{file.name}(.*)")
    whole = [page.replace("\\\n", " ") for page in pages]
    commands = {options.split("#")[0].strip() for page in whole for options in command.findall(page)}
    assert commands
    for options in commands:
        monkeypatch.setattr(sys, "argv", ["choosing.py", str(file), *options.split()])
        importlib.import_module("choosing").main()
        printed = capsys.readouterr().out
        assert any(printed in page for page in pages)


REPLAY = "`replay`, 32 examples of each earlier task"


def test_single_seeds_and_the_routers_guesses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the kept runs: the mean over a method's single seeds is that of all, and no guess counts twice."""
    monkeypatch.syspath_prepend(str(FOLDER))
    file = FOLDER / "results" / "choosing_long.jsonl"

    def printed(*options: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", ["choosing.py", str(file), *options])
        importlib.import_module("choosing").main()
        return [
            [cell.strip() for cell in row.split("|")[1:-1]]
            for row in capsys.readouterr().out.splitlines()[2:]
        ]

    everything = {row[0]: row for row in printed()}
    each = [{row[0]: row for row in printed("--seeds", seed)} for seed in ("1", "2", "3", "4")]
    assert {row[1] for row in everything.values()} == {"4"}
    for name, row in everything.items():
        assert [of_seed[name][1] for of_seed in each] == ["1"] * 4
        mean = sum(float(of_seed[name][2]) for of_seed in each) / 4
        assert float(row[2].split(" ± ")[0]) == pytest.approx(mean, abs=0.1)

    (one,) = printed("--only", "ewc", "--base", "replay")
    assert one[:3] == everything[one[0]][:3]
    lower = float(one[3].split()[0])
    gains = [float(everything[name][3].split()[0]) for name in (one[0], REPLAY)]
    assert lower == pytest.approx(gains[0] - gains[1], abs=0.11)
    with pytest.raises(SystemExit):
        printed("--base", "nothing")

    for name, _, share, by_task in printed("--routing"):
        of_tasks = [float(part.rpartition(" ")[2]) for part in by_task.split(", ")]
        assert name.startswith("`pertask_routed")
        assert float(share.split(" ± ")[0]) == pytest.approx(sum(of_tasks) / len(of_tasks), abs=0.1)

    with pytest.raises(SystemExit):
        printed("--seeds", "77")
    assert "--seeds 77: no run has one of them" in capsys.readouterr().err
