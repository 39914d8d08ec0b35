"""The processes of a machine hold the original weights once, and nothing of them is left when one is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from process_group import LIMIT_SECONDS, environments
from torch import nn

from forked_processes import forked
from nlora.models import processes, shared_tensors
from nlora.models.lora_factors import AdapterState, LoraFactors
from nlora.models.merged_updates import MergedUpdates

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no memory without a name")
SIDE = 1024  # a weight of 4 MiB, far larger than what a mapping is rounded to
NAMES = ("0", "1")


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE, dtype=torch.float64))


def update(seed: int) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LoraFactors(
            torch.randn(2, SIDE, generator=generator), torch.randn(SIDE, 2, generator=generator), 0.5
        )
        for name in NAMES
    }


def mapping() -> dict[str, Any]:
    """The memory without a name that this process maps: its inode, and KiB of it, here and as its share."""
    found: dict[str, Any] = {"inodes": [], "Rss": 0, "Pss": 0}
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            is_ours = "memfd:nlora" in line
            if is_ours:
                assert "(deleted)" in line
                found["inodes"].append(rest[3])
        elif is_ours and key[:-1] in found:
            found[key[:-1]] += int(rest[0])
    return found


def one_of_two(folder: Path) -> None:
    """Rank 0 writes the originals and is killed; rank 1 goes on with them."""
    with processes.joined():
        here = model()
        PartialState._reset_state()  # as the Trainer does, before it places the model
        weight = here[0].weight
        stays = weight.to(PartialState(cpu=True).device) is weight  # a copy of a file's page would be its own
        merged = MergedUpdates(here, NAMES)
        merged.activate([update(1), update(2)])
        for original in merged._originals.values():
            original.sum()  # a page that was never read counts for nobody
        processes.barrier()
        found = processes.gather((os.getpid(), mapping()))
        if processes.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        select.select([os.pidfd_open(found[0][0])], [], [], LIMIT_SECONDS)  # until it has gone
    alone = model()
    own = MergedUpdates(alone, NAMES)
    equal = []
    for states in ([update(1), update(2)], [update(3)], []):
        merged.activate(states)
        own.activate(states)
        equal.append(
            all(torch.equal(a, b) for a, b in zip(here.parameters(), alone.parameters(), strict=True))
        )
    told = {"together": [one for _, one in found], "alone": mapping(), "equal": equal, "stays": stays}
    (folder / "told.json").write_text(json.dumps(told))
    os._exit(0)  # leaving the group would fail, as the other one is gone


def test_two_processes_hold_the_originals_once_and_either_may_be_killed(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    group = [
        forked(
            one_of_two,
            tmp_path,
            environment=environment | {"TMPDIR": str(temporary)},
            out=tmp_path / f"{rank}.txt",
        )
        for rank, environment in enumerate(environments(2, "torchrun"))
    ]
    try:
        for process in group:
            process.join(LIMIT_SECONDS)
        statuses = [process.exitcode for process in group]
    finally:
        for process in group:
            process.kill()
            process.join()
    assert statuses == [-signal.SIGKILL, 0], (tmp_path / "1.txt").read_text()
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["equal"] == [True, True, True]
    assert told["stays"]
    size = SIDE * SIDE * (4 + 8) // 1024
    first, second = told["together"]
    assert first["inodes"] == second["inodes"] == told["alone"]["inodes"]
    assert len(first["inodes"]) == 1
    assert [first["Rss"], second["Rss"], told["alone"]["Rss"]] == [size] * 3
    assert [first["Pss"], second["Pss"], told["alone"]["Pss"]] == [size // 2, size // 2, size]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("why", ["hidden", "elsewhere"])
def test_a_process_that_cannot_see_the_others_keeps_copies_of_its_own(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the second of two processes: /proc hides the first one's files, or it is in another container."""
    own = shared_tensors._machine()
    answers: list[Any] = [[own, own], ["/proc/0/fd/9", ""], None]
    if why == "elsewhere":
        answers[0] = [("another", "pid:[1]"), own]
        answers[1] = []
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes, "gather", lambda value: answers.pop(0) or [value, value])
    weight = torch.arange(6.0).view(2, 3)
    copy = shared_tensors.once_per_machine({"w": weight})["w"]
    weight.zero_()
    assert copy.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
