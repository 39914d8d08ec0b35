"""What comes into a run from elsewhere, and what leaves it: each mistake is one line, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

Nlora = Callable[..., Any]
RUN = "runs/support"
PREFIX = "base_model.model."


def renamed_adapter(
    here: Path, folder: str, modules: dict[str, str], add: dict[str, Any] | None = None
) -> None:
    """An adapter of the run with other names of modules, and other tensors as well."""
    shutil.copytree(here / RUN / "outputs/1-tickets/adapter", here / folder)
    file = here / folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for old, new in modules.items():
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    save_file({**tensors, **(add or {})}, file)


@pytest.fixture
def adapters(here: Path) -> Path:
    """Adapters of another backbone, and of this one with a vocabulary of another size."""
    renamed_adapter(
        here, "other-backbone", {"model.layers.": "transformer.h.", "self_attn.q_proj": "attn.c_attn"}
    )
    head = {
        f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 32),
        f"{PREFIX}lm_head.lora_B.weight": torch.ones(7, 4),
    }
    renamed_adapter(here, "other-head", {}, head)
    renamed_adapter(here, "embeddings", {}, {f"{PREFIX}model.embed_tokens.weight": torch.ones(7, 32)})
    return here


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("other-backbone", "other-backbone: an adapter updates transformer.h.0.attn.c_attn, which the model "),
        ("other-head", "other-head: an adapter's update of lm_head is 7x32, but the layer is 400x32 (out"),
        ("embeddings", "tensor 'base_model.model.model.embed_tokens.weight' of shape [7, 32] is not a factor of a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["check", "run"])
def test_an_adapter_that_does_not_fit(
    nlora: Nlora, adapters: Path, command: str, adapter: str, message: str
) -> None:
    assert_refused(
        nlora, adapters, message, command, "support.yaml", f"after=[{adapter}]", "output_dir=runs/new"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"columns": {"text": "body"}}, "no field 'body'; the fields are: "),
        ({"template": "{sentence} {body}"}, "no column 'body'; the columns are: "),
        ({"template": "{sentence} {0}"}, "no column '0'; the columns are: "),
        ({"template": "{sentence} {}"}, "tasks.0.template: "),
        ({"template": "{sentence} {"}, "tasks.0.template: "),
        ({"template": "no place"}, "tasks.0.template: "),
    ],
    ids=["column", "place of a column", "number", "empty place", "open brace", "no place"],
)  # fmt: skip
def test_a_column_or_a_place_that_is_not_there(
    nlora: Nlora, here: Path, keys: dict[str, Any], message: str
) -> None:
    task = {"name": "tickets", "train": "tickets/train.jsonl", "test_share": 0.5, **keys}
    (here / "mine.yaml").write_text(json.dumps({"tasks": [task], "output_dir": "runs/new"}))
    model = yaml.safe_load((here / "support.yaml").read_text())["model"]
    assert_refused(nlora, here, message, "run", "mine.yaml", f"model={model}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate", RUN, "--against", "runs/other"], "runs/support: has no scored task in common with runs/other"),
        (["gate", RUN, "--stage", "3"], "--stage: there is no stage 3; the run has 2, counted from 1"),
        (["gate", RUN, "--against-stage", "3"], "--against-stage: there is no stage 3; the run has 2, counted from 1"),
        (["gate", RUN, "--against", "nowhere"], "nowhere: no such folder; give the output_dir of a run"),
        (["gate", "tickets"], "tickets: no run.yaml in it; give the output_dir of a run"),
        (["gate", "tiny-model"], "tiny-model: no nlora_export.json in it, so the run that it was made from is"),
    ],
)  # fmt: skip
def test_a_gate_without_anything_to_compare(
    nlora: Nlora, here: Path, arguments: list[str], message: str
) -> None:
    shutil.copytree(here / RUN, here / "runs/other")
    for file in (here / "runs/other").rglob("*"):
        if file.suffix in (".yaml", ".json", ".jsonl"):
            file.write_text(file.read_text().replace("tickets", "mails").replace("urgency", "haste"))
    for folder in sorted((here / "runs/other/outputs").iterdir()):
        name = folder.name.replace("tickets", "mails").replace("urgency", "haste")
        folder.rename(folder.with_name(name))
    (here / "tiny-model").mkdir()
    (here / "tiny-model/config.json").write_text("{}")
    assert_refused(nlora, here, message, *arguments)


def test_an_upload_without_a_login(nlora: Nlora, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    message = "--push: nobody is logged in to the hub; run `hf auth login` first"
    assert_refused(nlora, here, message, "export", RUN, "--as", "merged", "--push", "me/support", "out")


def assert_refused(nlora: Nlora, here: Path, message: str, *arguments: str) -> None:
    """One line, exit status 2, nothing written. Other mistakes of an export: test_export.py."""
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    told = nlora(*arguments)
    assert (told.status, told.out) == (2, "")
    assert told.err.startswith("error: ")
    mistake, *more = told.err.splitlines()
    assert message in mistake
    assert more in ([], ["data and model are checked once the configuration is right"])
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
