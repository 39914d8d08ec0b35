"""A sample of benchmarks/families.py: nlora computes what transformers computes, as docs/models.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One of each kind: packed, padded and single rows; caches that can and cannot be continued; parts without text;
# shared weights; latent attention; positions from pad + 1; decoders with different start tokens.
SAMPLE = [
    "llama", "gpt2", "gemma3", "phi4_multimodal", "deepseek_v3", "kimi_linear", "camembert", "zamba2", "mamba",
    "openai-gpt", "bart (decoder)", "rwkv", "t5", "mbart", "switch_transformers", "xlnet",
]  # fmt: skip


def rows(text: str) -> dict[str, tuple[str, ...]]:
    """family -> verdict, adapted layers, paths of a table; not by how much rounding differs."""
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "
    ]
    return {row[0]: tuple(row[1:4]) for row in cells[2:]}  # the first two are the table's head


@pytest.mark.slow
def test_the_sample_is_as_the_page_says() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "families.py"), *SAMPLE]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, page = rows(printed), rows((ROOT / "docs" / "models.md").read_text())
    assert {family: found[family] for family in SAMPLE} == {family: page[family] for family in SAMPLE}


def test_no_family_is_wrong_and_every_one_has_its_row() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    text = (ROOT / "docs" / "models.md").read_text()
    page = rows(text)
    if f"Made with transformers {transformers.__version__}," in text:  # others have other families
        listed = (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys()
        )
        assert listed <= page.keys()
    verdicts = Counter(row[0] for row in page.values())
    assert verdicts.keys() == {"equal", "refused", "not made"}
    assert dict(re.findall(r"(\w[\w ]*): (\d+)", text.splitlines()[-1])) == {
        v: str(n) for v, n in verdicts.items()
    }


def test_the_page_was_made_with_the_versions_that_make_installs() -> None:
    made = re.search(r"Made with transformers (\S+), peft (\S+)\.", (ROOT / "docs" / "models.md").read_text())
    assert made is not None
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert {f"transformers=={made[1]}", f"peft=={made[2]}"} <= set(pinned)
