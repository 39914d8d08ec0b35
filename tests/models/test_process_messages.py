"""The processes of a run agree: what one process sees of it, and the messages of two."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch

from nlora.errors import InputErrors, Problem, RunError
from nlora.models import processes
from nlora.models.fast_paths import FastPaths, agreed


def test_alone_everything_is_as_if_it_were_not_there() -> None:
    with processes.joined():
        assert (processes.size(), processes.rank(), processes.is_main()) == (1, 0, True)
        assert processes.from_main(max, 3, 4) == 4
        assert processes.main_first(lambda: 5) == 5
        assert processes.gather("x") == ["x"]
        total = torch.ones(2)
        processes.add_up([total])
        assert total.tolist() == [1, 1]
        processes.barrier()
    assert processes.speaks(RuntimeError("gloo: connection closed"))


def test_what_a_launch_of_one_process_left_starts_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would wait at a port, or for a machine, that is there no more, wherever LOCAL_RANK is set."""
    left = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "nowhere.invalid",
        "MASTER_PORT": "1",
    }
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with processes.joined():
        assert "LOCAL_RANK" not in os.environ
        with processes.joined():
            assert processes.size() == 1
        assert "LOCAL_RANK" not in os.environ
    assert {name: os.environ[name] for name in left} == left


def test_alone_it_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom nlora.models import processes\n"
        "with processes.joined():\n    processes.from_main(print, processes.gather(1))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_reach_the_other_processes_whole() -> None:
    error = InputErrors([Problem("a.yaml", "wrong", 3, ("seed",)), Problem("", "also wrong")])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.problems, str(again)) == (InputErrors, error.problems, str(error))


def test_the_safest_of_several_verdicts_holds() -> None:
    fast = FastPaths("packed", True, "packed", True, "padded")
    other = FastPaths("padded", True, "single", False, "padded", ("scoring in packed rows fails; not used",))
    assert agreed([fast]) == fast
    assert agreed([fast, other, fast]) == FastPaths("padded", True, "single", False, "padded", other.notes)


@pytest.mark.parametrize("local_rank", [0, 1])
def test_more_processes_than_gpus_are_refused_before_any_waits_for_another(
    monkeypatch: pytest.MonkeyPatch, local_rank: int
) -> None:
    monkeypatch.setattr(processes, "_common_error", None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    for name, value in {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RunError, match="2 processes were started on this machine, but only 1 GPU can") as raised, \
            processes.joined():  # fmt: skip
        pass
    assert processes.speaks(raised.value) == (local_rank == 0)  # one text


@pytest.mark.parametrize(
    ("variables", "speaks"),
    [
        ({}, True),
        ({"RANK": "1"}, True),  # as some other program has left it
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "MASTER_ADDR": "a"}, False),
    ],
)
def test_one_of_those_that_are_stopped_while_they_start_says_so(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], speaks: bool
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.speaks(KeyboardInterrupt()) == speaks
