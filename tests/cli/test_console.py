"""What users wrote is printed as it is: rich has an emoji for `:100:`, which is also a line of a file in a message."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import nlora as package
from helpers import write_config
from nlora.cli.bars import Bars
from nlora.runs.console import TextConsole
from nlora.runs.events import Event

Nlora = Callable[..., Any]
NAMES_OF_CONSOLES = {"Console", "from_markup", "Markdown"}
"""What replaces emoji codes, whatever the console it is printed on."""


def test_a_mistake_on_line_100_of_data(
    tmp_path: Path, tiny_model: Callable[[str], Path], nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    rows = ["text,label", *["the fox,fox"] * 98, "the cat,cat", "the dog,dog"]
    (tmp_path / "mail.csv").write_text("\n".join(rows) + "\n")
    told = nlora("check", config, f"tasks.1.train={tmp_path}/mail.csv")
    assert told.status == 2
    assert f"{tmp_path}/mail.csv:100: label" in told.err


def test_a_mistake_on_line_100_of_a_configuration(tmp_path: Path, nlora: Nlora) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("tasks: [agnews]\n" + "#\n" * 98 + "sead: 3\n")
    told = nlora("check", path)
    assert told.err.startswith(f"error: {path}:100: sead: unknown key")


def test_a_name_is_shown_in_tables_and_beside_bars(tmp_path: Path, nlora: Nlora) -> None:
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "demo", "output_dir": str(tmp_path / ":100:"), "variants": ["olora"]})
    )
    assert "/:100:" in nlora("sweep", tmp_path / "sweep.yaml", "--dry-run").out
    screen = io.StringIO()
    with Bars(TextConsole(file=screen, force_terminal=True, width=200)) as bars:
        bars(Event("training", task="[bold]:100:", done=0, total=2))
        bars(Event("note", text="a note :100:"))
    assert "train [bold]:100:" in screen.getvalue()
    assert "a note :100:" in screen.getvalue()


def test_everything_is_printed_with_text_console() -> None:
    """Any other of rich's consoles would bring the emoji back."""
    source = Path(package.__file__).parent
    found = [
        f"{file.relative_to(source)}:{node.lineno}"
        for file in sorted(source.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Call) and _name(node.func) in NAMES_OF_CONSOLES)
        or (isinstance(node, ast.ClassDef) and "Console" in map(_name, node.bases))
    ]  # fmt: skip
    assert [place.partition(":")[0] for place in found] == ["runs/console.py"]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
