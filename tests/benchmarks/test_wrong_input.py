"""A benchmark's wrong input ends in one line and status 2: no traceback, no empty table, nothing half written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CLAIM, SHORT, TUNING = (str(RESULTS / f"choosing_{name}.jsonl") for name in ("claim", "short", "tuning"))
WRONG = [
    ("choosing nowhere", "nowhere: no finished run"),
    ("choosing config.yaml", "config.yaml:1: no run"),
    ("choosing nowhere --costs", "nowhere: --costs finds no finished run called inclora"),
    (f"choosing {SHORT} --costs", "--costs finds no finished run called inclora"),
    ("choosing sweep --costs", "there are small"),
    (f"choosing {CLAIM} --choose", "--choose: needs runs called METHOD-VALUE"),
    (f"choosing {SHORT} --choose", "--choose: needs runs called METHOD-VALUE"),
    (f"choosing {TUNING} --routing", "--routing: no run guesses its tasks"),
    (f"choosing {TUNING} --choose --only ewc", "--only and --base are of the table"),
    (f"choosing {SHORT} --routing --base ewc", "--only and --base are of the table"),
    (f"choosing {SHORT} --keep kept --only ewc", "--only and --base are of the table"),
    ("choosing sweep --costs --base ewc", "--only and --base are of the table"),
    ("choosing sweep --costs --seeds 1", "--seeds: --costs takes all seeds"),
    (f"choosing {SHORT} --choose --routing", "not allowed with"),
    (f"choosing {SHORT} --keep nowhere/kept", "No such file or directory"),
    ("claim nowhere", "nowhere: no finished run"),
    ("coverage --of nowhere", "nowhere: no finished run"),
    ("interference nowhere --threshold 1e-4", "nowhere: no finished run with adapters"),
    ("choosing_data nowhere --folder made", "nowhere"),
    ("train --model MODEL --data nowhere --no-memory", "nowhere"),
    ("rounding nowhere", "nowhere: no such folder"),
    ("preflight nowhere.yaml", "nowhere.yaml"),
]


@pytest.mark.parametrize(("command", "told"), WRONG, ids=[command.replace("/", ":") for command, _ in WRONG])
def test_wrong_input_ends_in_one_line(
    script: Callable[[str], Any],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    told: str,
) -> None:
    name, *arguments = command.split()
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("name: small\n")
    summary = {
        "schema": 1,
        "status": "complete",
        "name": "small",
        "method": "nlora",
        "model": "tiny",
        "seed": 1,
    }
    Path("sweep/run").mkdir(parents=True)
    Path("sweep/run/summary.json").write_text(json.dumps(summary | {"tasks": ["a"], "R": [[50.0]]}))
    before = sorted(tmp_path.rglob("*"))
    given = [str(tiny_model("llama")) if argument == "MODEL" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *given])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    printed = capsys.readouterr()
    *usage, line = printed.err.strip().splitlines()
    assert told in line
    assert ": error: " in line if usage else line.startswith("error: ")
    assert not usage or usage[0].startswith("usage: ")  # argparse's own
    assert (ended.value.code, printed.out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_part_of_a_benchmark_told_is_not_told_again(
    script: Callable[[str], Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A part that fails has said why itself. One that the system killed could not."""

    def told(code: str) -> str:
        (tmp_path / "part.py").write_text(code)
        with pytest.raises(SystemExit) as ended:
            script("one_line").one_line_errors(script("measure").alone)(tmp_path / "part.py", [])
        assert ended.value.code == 2
        return capfd.readouterr().err

    assert told("import sys\nsys.exit('error: no such data')") == "error: no such data\n"
    assert "died with" in told("import os\nos.kill(os.getpid(), 9)")
