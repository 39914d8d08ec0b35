"""Standard input and output that are closed, full or read by nobody."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlora.runs.summary import read_summary

Nlora = Callable[..., Any]
RUN = "runs/support"
PREDICT = ["predict", RUN, "--task", "tickets", "--file", "tickets/test.jsonl"]


@pytest.mark.usefixtures("here")
def test_predict_with_closed_standard_input(nlora: Nlora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    told = nlora(*PREDICT[:4])
    assert (told.status, told.err) == (2, "error: --file: is needed, because standard input is closed\n")
    assert nlora(*PREDICT).status == 0


def told(arguments: list[str], redirected: str) -> tuple[int, str]:
    """Exit status and error output of a command whose output the shell redirects."""
    line = shlex.join([sys.executable, "-m", "nlora", *arguments])
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirected}"], stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.usefixtures("here")
def test_a_closed_standard_output_is_like_an_output_to_nowhere() -> None:
    assert told(PREDICT, ">&-") == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [PREDICT, ["compare", RUN], ["ls"]], ids=["predict", "compare", "ls"])
@pytest.mark.usefixtures("here")
def test_an_output_on_a_full_disk(arguments: list[str]) -> None:
    said = "error: the output cannot be written: No space left on device; free some space\n"
    assert told(arguments, "> /dev/full") == (2, said)


@pytest.mark.usefixtures("here")
def test_a_run_goes_on_when_nobody_reads_its_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nlora", "run", "support.yaml", "output_dir=runs/unread"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_summary(Path("runs/unread")).status == "complete"
    assert Path("runs/unread/report.html").exists()


@contextmanager
def no_space() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_recipe_that_does_not_fit_on_the_disk_leaves_no_file(
    nlora: Nlora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with no_space():
        told = nlora("cp", "own", "mine.yaml")
    assert (told.status, told.err) == (2, "error: mine.yaml: cannot be written: File too large\n")
    assert not Path("mine.yaml").exists()


def test_a_file_that_may_not_be_read_is_one_line(nlora: Nlora, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_folders: Any) -> Any:
        raise PermissionError(13, "Permission denied", "runs/hers/summary.json")

    monkeypatch.setattr("nlora.report.comparison.read_runs", forbidden)
    told = nlora("compare", "runs/hers")
    assert (told.status, told.err) == (2, "error: runs/hers/summary.json: Permission denied\n")


LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        f"export {RUN} {LONG} --as adapter",
        f"export {LONG} out --as adapter",
        f"eval {RUN} --out {LONG}",
        f"predict {RUN} --task tickets --file {LONG}",
        f"gate {LONG}",
        f"gate {RUN} --against {LONG}",
        f"report {LONG}",
        f"report {RUN} --out {LONG}",
        f"report {RUN} --figures {LONG}/{LONG}",
        f"compare {LONG}",
        f"compare {RUN} --out {LONG}",
        f"cp demo {LONG}",
        f"cp demo {LONG}/my.yaml",
        f"analyze {LONG}",
        f"analyze {LONG} {LONG}y",
        f"analyze {RUN} --csv {LONG}",
        f"sweep {LONG}",
        "analyze loop",
        "gate loop",
        "compare loop",
        "report loop",
        "cp demo loop/my.yaml",
        f"export {RUN} loop/out --as adapter",
    ],
)
@pytest.mark.usefixtures("here")
def test_a_path_that_the_system_does_not_take_is_one_line(nlora: Nlora, command: str) -> None:
    """A name above 255 bytes, and a link to itself."""
    Path("loop").symlink_to("loop")
    told = nlora(*command.split())
    assert (told.status, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_output_that_cannot_show_every_character(encoding: str, tmp_path: Path) -> None:
    """As a file on Windows: JSON stays JSON, and other lines show the character's number."""
    texts = ["h\xe9 \U0001f44d \u2713", "the fox"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def told(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nlora", *arguments], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode(encoding)

    lines = told(*PREDICT[:4], "--file", str(tmp_path / "texts.jsonl")).splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    config = yaml.safe_load(Path("support.yaml").read_text())
    config["tasks"][0] |= {"name": "\u05e9\u05dc"}
    Path("named.yaml").write_text(yaml.safe_dump(config))
    assert "\\u05e9\\u05dc" in told("check", "named.yaml")
