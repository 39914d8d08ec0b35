"""Imports point one way, and what must answer at once does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nlora

SOURCE = Path(nlora.__file__).parent

# A room may import from rooms before it in this list, and from its own.
LAYERS = [
    {"errors"},
    {"characters"},
    {"config", "atomic", "other_names", "signals"},
    {
        "yaml_lines",
        "python_values",
        "base_folder",
        "plain_words",
        "overrides",
        "salvage",
        "stage_overrides",
        "stage_problems",
        "config_file",
        "protocol",
        "metrics",
        "analysis",
        "kernels",
        "factors",
        "targets",
    },
    {"folding", "model_facts"},
    {"beside"},
    {"lean_forward"},
    {"lean"},
    {
        "data",
        "learner",
        "adapters",
        "results",
        "task_facts",
        "summary",
        "run_file",
        "run_lock",
        "run_log",
        "run_dir",
        "stage_files",
    },
    {
        "methods",
        "quantise",
        "backbone",
        "positions",
        "packed",
        "paths",
        "memory",
        "logits",
        "label_tree",
        "causal_reading",
        "packed_reading",
        "packed_layout",
        "reading",
        "room_cache",
        "greedy",
        "display",
        "matrix",
        "events",
        "published",
        "compare",
        "compare_notes",
        "compare_table",
        "compare_formats",
        "progress",
        "estimate",
        "fisher",
        "whole",
        "subspace",
    },
    {"plain_passes"},
    {"tryout"},
    {"penalised_trainer", "training", "evaluation", "trackers"},
    {"stage_plan", "record", "learned"},
    {"plan"},
    {"sequence", "served", "asked"},
    {"analyze", "report"},
    {"outcome"},
    {
        "commands",
        "listing",
        "reference",
        "sweep_file",
        "sweep_runs",
        "sweep_check",
        "sweep_runners",
        "sweep",
        "eval_run",
        "predict_run",
    },
    {"cli", "cli_ask", "cli_group", "opened_run"},
    {"api"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file imports when it is loaded or called; what only type checkers see does not count."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nlora"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("nlora.")}
    return names & LEVEL.keys()


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(f for f in SOURCE.rglob("*.py") if f != SOURCE / "__init__.py")


def test_every_room_has_its_place() -> None:
    assert {room_of(file) for file in FILES} == LEVEL.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_point_one_way(file: Path) -> None:
    level = LEVEL[room_of(file)]
    wrong = {room for room in imported_rooms(file) if LEVEL[room] > level}
    assert not wrong, f"{room_of(file)} imports {wrong}"


@pytest.mark.parametrize(
    "module",
    ["nlora", "nlora.cli", "nlora.listing", "nlora.config_file", "nlora.data", "nlora.methods", "nlora.kernels",
     "nlora.metrics.continual", "nlora.run_dir", "nlora.results", "nlora.display", "nlora.data.embedded",
     "nlora.compare_formats", "nlora.sweep", "nlora.analysis", "nlora.report.page", "nlora.report.command",
     "nlora.api"],
)  # fmt: skip
def test_no_torch_where_none_is_needed(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'peft', 'pyarrow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
