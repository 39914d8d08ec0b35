"""Every example of the README and of docs/ runs, on a tiny model: shell commands, Python and YAML."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import LANGUAGES, PAGES, REASONS, ROOT, Block, blocks

from chat_models import save_model, template, with_template
from nlora.config.load import load_config
from nlora.runs.plan import make_plan
from released_data import write_benchmark

TinyModel = Callable[[str], Path]
Call = Callable[..., Any]
SUBSTITUTIONS = {
    # the released experiments: checked, not trained
    "nlora run order_": "nlora check order_",
    "nlora run llama_order_": "nlora check llama_order_",
    "google-t5/t5-large": "tiny-t5",
    "meta-llama/Llama-3.1-8B": "tiny",
    # a random model may lose any number of points
    "--max-drop 5": "--max-drop 100",
    "nlora gate ": "nlora gate --max-drop 100 ",
    # models, files and runs that a reader has
    "Qwen/Qwen3-0.6B": "tiny",
    "Qwen/Qwen2.5-0.5B-Instruct": "tiny-chat",
    "smollm2": "tiny",
    "nlora cp recommended mine.yaml": "nlora cp recommended copied.yaml",
    "nlora run mine.yaml": "nlora run support.yaml output_dir=runs/mine",
    "mine.yaml": "support.yaml",
    "runs/demo/nlora": "runs/support",
    "runs/demo/inclora": "runs/plain",
    "runs/mail": "runs/support",
    "runs/a runs/b": "runs/support runs/plain",
    "runs/five-tasks": "runs",
    "RUN": "runs/support",
    "reuters,tweets": "tickets,urgency",
    "--task reuters": "--task tickets",
    "--task teams": "--task tickets",
    "exports/mail": "exports/support",
    "path/to/adapter": "runs/support/outputs/1-tickets/adapter",
    "some/hub-adapter": "runs/support/outputs/2-urgency/adapter",
    **{
        f"nlora sweep benchmarks/{name}.yaml": f"nlora sweep {ROOT}/benchmarks/{name}.yaml --dry-run"
        for name in (
            "five_tasks",
            "general",
            "choosing_short",
            "choosing_tuning",
            "choosing_costs",
            "choosing_claim",
        )
    },
}
"""What a page says -> what is run in its place, in this order."""


def _substituted(text: str) -> str:
    for said, run in SUBSTITUTIONS.items():
        text = text.replace(said, run)
    return text


def _pages(language: str) -> list[str]:
    return [page for page in PAGES if _of(page, language)]


def _of(page: str, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language and block.reason is None]


@pytest.fixture
def reader(here: Path, tiny_model: TinyModel, tiny_tokenizer: Callable[[bool], Any]) -> Path:
    """The folder of a reader: support.yaml, its data, two finished runs, new texts, three models, CL_Benchmark."""
    shutil.copytree("runs/support", "runs/plain")
    mail = "".join(f"text {i} of team {i % 3},{i % 3}\n" for i in range(60))
    (here / "mail.csv").write_text("subject,team\n" + mail)
    (here / "new.csv").write_text("sentence\nIt is down again\n")
    lines = [f"{label} {i},{label}\n" for i in range(20) for label in ("billing", "network", "hardware")]
    (here / "all.csv").write_text("text,label\n" + "".join(lines))
    for folder in ("questions", "entailment"):
        (here / folder).mkdir()
    for split in ("train", "test"):
        (here / f"questions/{split}.csv").write_text(f"question,team\nIs it down ({split})?,network\n")
        row = {"premise": f"It rains ({split})", "hypothesis": "It is wet", "gold": 0}
        (here / f"entailment/{split}.jsonl").write_text(json.dumps(row) + "\n")
    (here / "tiny").symlink_to(tiny_model("llama"))
    (here / "tiny-t5").symlink_to(tiny_model("t5"))
    chat_tokenizer = with_template(tiny_tokenizer(False), template("qwen2_5"))
    save_model(here / "tiny-chat", tiny_model("llama"), chat_tokenizer)
    write_benchmark(here / "CL_Benchmark")
    return here


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language_and_a_known_reason(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line}: {block.language!r} is none of {LANGUAGES}"
        assert block.reason is None or block.reason in REASONS, f"{page}:{block.line}: {block.reason}"


@pytest.mark.parametrize("page", _pages("sh"))
def test_the_commands_of_the_page_run(
    page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in _of(page, "sh"):
        for command in _commands(block.text):
            where = f"{page}:{block.line}: {command}"
            if command.startswith("python benchmarks/"):
                _check_benchmark(shlex.split(command, comments=True)[1:], where)
                continue
            request.getfixturevalue("reader")
            before, _, last = _substituted(command).rpartition(" | ")
            words = shlex.split(last, comments=True)
            assert words[0] == "nlora", f"{where}: nothing runs this; say with <!-- test: ... --> why not"
            given = shlex.split(before.removeprefix("echo "))
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(given).encode())))
            told = request.getfixturevalue("nlora")(*words[1:])
            assert told.status == 0, f"{where}\n{told.err}{told.out}"


def _commands(text: str) -> Iterator[str]:
    """Its command lines; those continued with a backslash joined, a loop over words unrolled."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if loop := re.fullmatch(r"for (\w+) in (.+); do (.+); done", line):
            yield from (loop[3].replace(f"${loop[1]}", word) for word in loop[2].split())
        elif line.split("#")[0].strip():
            yield line


def _check_benchmark(words: list[str], where: str) -> None:
    """A benchmark takes minutes: only that the script exists and knows the options."""
    source = "".join(
        f.read_text(encoding="utf-8") for f in (ROOT / words[0], ROOT / "benchmarks" / "measure.py")
    )
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source, f"{where}: {words[0]} has no {option}"


@pytest.mark.parametrize("page", _pages("python"))
def test_the_python_of_the_page_runs(page: str, reader: Path) -> None:
    """One after another, sharing their names, where no run is yet."""
    shutil.rmtree("runs")
    names: dict[str, Any] = {}
    for block in _of(page, "python"):
        exec(compile("\n" * (block.line - 1) + _substituted(block.text), page, "exec"), names)


@pytest.mark.parametrize("page", _pages("yaml"))
def test_the_yaml_of_the_page_is_accepted(page: str, reader: Path, nlora: Call) -> None:
    for block in _of(page, "yaml"):
        text, file = _substituted(block.text), reader / "block.yaml"
        values = yaml.safe_load(text)
        file.write_text(text if isinstance(values, dict) else yaml.safe_dump({"tasks": values}))
        if "base" in values:
            told = nlora("sweep", file, "--dry-run")
            assert told.status == 0, f"{page}:{block.line}: {told.err}"
        elif "hub:" in text:
            load_config(str(file))
        else:
            make_plan(load_config(str(file)))
