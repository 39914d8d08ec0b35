"""What must answer at once does not import torch."""

from __future__ import annotations

import subprocess
import sys

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
