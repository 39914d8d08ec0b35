"""Runs with random lives: killed, extended, damaged and repaired. Do they end with the files of a run left alone?

    python benchmarks/lives.py                     # six lives of each kind
    python benchmarks/lives.py --lives 20 nlora ewc

A run of four tasks on a tiny random model begins with some of them. It is killed (SIGKILL) before random things that it
does, as in kill.py, and started again until it is done. Then, perhaps, files that its checksums cover are cut, changed
or deleted, or a whole stage is. The next start then has to refuse the damage, or to be right all the same; a repair
follows, which is killed as well. Then a task is appended, and so on. At the end every file is compared, times aside,
with those of a run that had all tasks from the start and was left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from forks import forked
from kill import LABELS, count_events, die_at_event, differences, import_what_it_imported, learn, write_config
from nlora.errors import NloraError
from nlora.runs.checksums import CHECKSUM_FILE
from nlora.runs.layout import OUTPUTS

KINDS: dict[str, dict[str, Any]] = {
    "nlora": {},
    "auto": {"method": {"name": "nlora", "weight": "auto"}, "evaluate": {"validation_share": 0.5}},
    "replay": {"replay": {"memory": 6}},
    "routed": {"serve": "routed"},
    **{
        name: {"method": name}
        for name in (
            "ewc",
            "gorp",
            "l2p",
            "lori",
            "lwf",
            "magmax",
            "olora",
            "pertask",
            "progprompt",
            "seqft",
            "slao",
        )
    },
}
"""What each kind changes in the configuration. None plans for the number of tasks, as `osf` and `inflora` do."""
TASKS = {**LABELS, "shades": ("dark", "light", "pale"), "moods": ("glad", "sad", "calm")}
_REFUSED = 3
"""The exit status of a start that named what is wrong. Any other failure has another."""
_KILLED = -signal.SIGKILL
_MOST_KILLS = 4
"""In a row; then a start is left alone."""


class Life:
    """One run. folder: of the configurations. events: what a whole run does. did: what was done to it, in numbers."""

    def __init__(self, folder: Path, run: Path, events: int, draw: random.Random) -> None:
        self.folder, self.run, self.events, self.draw = folder, run, events, draw
        self.did: Counter[str] = Counter()
        self.tasks = draw.randint(1, len(TASKS))

    def live(self) -> int:
        """The last exit status: 0 if the run is complete."""
        while True:
            if status := self._started():
                return status
            if self.draw.random() < 0.6:
                self._damage()
                if self.draw.random() < 0.5:
                    self._append()
                if self.draw.random() < 0.5 and self._started() not in (0, _REFUSED):
                    return -1
                if status := self._started(repair=True):
                    return status
            if self.tasks == len(TASKS):
                return self._started()
            self._append()

    def _append(self) -> None:
        self.did["tasks appended"] += self.tasks < len(TASKS)
        self.tasks = min(self.tasks + 1, len(TASKS))

    def _started(self, *, repair: bool = False) -> int:
        """Start it until it is not killed any more."""
        self.did["repairs"] += repair
        kills = 0
        while True:
            is_killed = kills < _MOST_KILLS and self.draw.random() < 0.7
            number, save_every = self.draw.randint(1, self.events // 3), self.draw.choice((1, 2, 3))
            status = forked(partial(self._learn, number if is_killed else None, save_every, repair=repair))
            if status != _KILLED:
                return status
            kills += 1
            self.did["kills"] += 1

    def _learn(self, number: int | None, save_every: int, *, repair: bool) -> None:
        """In a process of its own. number: of the event before which it dies, if any."""
        if number is not None:
            die_at_event(self.run, number)
        try:
            learn(self.folder / f"{self.tasks}.json", self.run, save_every, repair=repair)
        except NloraError:
            os._exit(_REFUSED)

    def _damage(self) -> None:
        """Spoil one or two files, or remove a stage."""
        stages = sorted(path.parent for path in self.run.glob(f"{OUTPUTS}/*/{CHECKSUM_FILE}"))
        for _ in range(self.draw.randint(1, 2)):
            stage = self.draw.choice(stages)
            file = stage / self.draw.choice(sorted(json.loads((stage / CHECKSUM_FILE).read_text())["files"]))
            if file.exists():
                _spoil(file, self.draw.choice(("cut", "add", "remove")))
                self.did["files damaged"] += 1
        if self.draw.random() < 0.2:
            shutil.rmtree(self.draw.choice(stages))
            self.did["stages removed"] += 1


def _spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if how == "cut" else content + b"\n")


def write_configs(folder: Path, changes: dict[str, Any]) -> None:
    """Write a configuration with one task to `1.json`, one with two tasks to `2.json`, and so on."""
    whole = json.loads(write_config(folder, TASKS).read_text())
    for count in range(1, len(TASKS) + 1):
        values = {**whole, **changes, "tasks": whole["tasks"][:count]}
        (folder / f"{count}.json").write_text(json.dumps(values))


def lives(folder: Path, kind: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """What was done in all, and a line for each run that did not end as it should."""
    whole, config = folder / "whole", folder / f"{len(TASKS)}.json"
    if forked(lambda: write_configs(folder, KINDS[kind])) or forked(lambda: count_events(config, whole)):
        return Counter(), [f"{kind}: the run that is left alone failed"]
    import_what_it_imported(folder)
    events = json.loads((folder / "events-0").read_text())
    did: Counter[str] = Counter()
    wrong = []
    for number in range(count):
        life = Life(folder, folder / f"run-{number}", events, random.Random(f"{seed} {kind} {number}"))
        status = life.live()
        did += life.did
        if status:
            wrong.append(f"{kind} {number}: ended with status {status}")
        elif others := differences(whole, life.run):
            wrong.append(f"{kind} {number}: differs in {', '.join(others)}")
    return did, wrong


def main() -> None:
    """Print what was done to the runs of each kind, and what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; by default all")
    parser.add_argument("--lives", type=int, default=6, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := sorted(set(options.kinds) - KINDS.keys()):
        parser.error(f"unknown kind {unknown[0]}; there are {', '.join(KINDS)}")
    total: Counter[str] = Counter()
    wrong = []
    for kind in options.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            did, others = lives(Path(folder), kind, options.lives, options.seed)
        total += did
        wrong += others
        print(f"{kind}: {_said(did)}", flush=True)
    print(f"{len(options.kinds or KINDS)} kinds, {options.lives} lives of each: {_said(total)}")
    print(*wrong, f"{len(wrong)} of them ended otherwise", sep="\n")
    sys.exit(bool(wrong))


def _said(did: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(did.items()))


if __name__ == "__main__":
    main()
