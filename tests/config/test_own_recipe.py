"""The recipe for one's own files runs as it is, on files like those that its comment shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlora.config.load import load_config, recipe_text
from nlora.errors import InputErrors
from nlora.runs.plan import make_plan


def shown_files() -> dict[str, list[str]]:
    """The lines that the recipe's comment shows of each file."""
    found: dict[str, list[str]] = {}
    for line in recipe_text("own").splitlines():
        if name := re.fullmatch(r"# (\w+\.\w+)", line):
            found[name[1]] = []
        elif found and line.startswith("#   "):
            found[list(found)[-1]].append(line.removeprefix("#   "))
    return found


def write_files(folder: Path) -> None:
    """Each file with its shown lines, and eight variants of each."""
    for name, lines in shown_files().items():
        head = lines[:1] if name.endswith(".csv") else []
        rows = [
            re.sub(r"charged|connection|described|week|reset|paper", rf"\g<0> {i}", row)
            for i in range(8)
            for row in lines[len(head) :]
        ]
        (folder / name).write_text("".join(f"{line}\n" for line in head + rows))


def test_the_files_that_it_shows_are_those_of_its_tasks() -> None:
    config = load_config("own").config
    assert [task.train for task in config.tasks] == list(shown_files())
    assert all(len(lines) >= 2 for lines in shown_files().values())


def test_every_key_is_a_key_with_a_comment() -> None:
    """On its own line, or on the lines of the first task."""
    keys = re.compile(r"^ *(?:- )?(\w+): ")
    _, _, body = recipe_text("own").partition("\nname:")
    commented = {m[1] for line in body.splitlines() if (m := keys.match(line)) and "#" in line}
    plain = {m[1] for line in body.splitlines() if (m := keys.match(line)) and "#" not in line}
    assert plain - commented == {"instruction"}


def test_without_the_files_each_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputErrors) as caught:
        make_plan(load_config("own", ["model=none"]))
    said = "\n".join(map(str, caught.value.problems))
    for name in shown_files():
        assert re.search(rf"recipe own:\d+: tasks\.\d\.train: no such file: {name}", said)


def test_it_runs_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nlora: Callable[..., Any],
    tiny_model: Callable[[str], Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model("llama"))
    assert nlora("cp", "own", "mine.yaml").status == 0
    for command in ("check", "run"):
        told = nlora(command, "mine.yaml", "model=tiny")
        assert told.status == 0, told.err
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert summary["status"] == "complete"
    assert summary["tasks"] == ["tickets", "reviews", "answers"]
    (tmp_path / "new.csv").write_text("message\nNo connection again\n")
    told = nlora("predict", "runs/mine", "--task", "tickets", "--file", "new.csv")
    assert json.loads(told.out)["prediction"] in {"billing", "network"}


def test_the_recommended_one_replays_and_needs_only_its_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_config("recommended", [f"model={tiny_model('llama')}"])
    for task in loaded.config.tasks:
        assert task.labels is not None
        assert task.train is not None
        rows = (f"a text of number {i},{task.labels[i % 2]}\n" for i in range(60))
        (tmp_path / task.train).write_text("text,label\n" + "".join(rows))
    plan = make_plan(loaded)
    assert [stage.train_examples for stage in plan.stages] == [48, 48 + 32]
    assert plan.methods[0].name == "inclora"
