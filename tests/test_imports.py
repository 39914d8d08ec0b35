"""What has to answer quickly does not import torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "nlora",
        "nlora.cli.app",
        "nlora.cli.ls",
        "nlora.config.load",
        "nlora.data",
        "nlora.methods",
        "nlora.kernels",
        "nlora.evaluation.continual_metrics",
        "nlora.runs.folder",
        "nlora.runs.released_files",
        "nlora.report.terminal",
        "nlora.data.builtin",
        "nlora.report.comparison_formats",
        "nlora.cli.sweep",
        "nlora.analysis",
        "nlora.report.page",
        "nlora.cli.report",
        "nlora.api.functions",
    ],
)
def test_no_torch_where_none_is_needed(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'peft', 'pyarrow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("{name: nlora, weight: 1}\nsead: 3", "sead: unknown key; did you mean 'seed'?"),
        ("{name: nlora, wieght: 1}", "method.wieght: unknown key; did you mean 'weight'?"),
        ("nlroa", "method: unknown method 'nlroa'; did you mean 'nlora'?"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_heavy_is_imported(
    tmp_path: Path, method: str, said: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(f"tasks: [agnews]\nmethod: {method}\n")
    heavy = {"torch", "transformers", "peft", "accelerate", "pyarrow", "pandas"}
    code = f"""import sys
from nlora.cli.app import main
sys.argv = ["nlora", "check", {str(file)!r}]
try:
    main()
except SystemExit as end:
    print(end.code, *{heavy} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said in done.stderr
    assert done.stdout.strip() == "2"
