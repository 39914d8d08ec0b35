"""The card of an export, as huggingface_hub reads it, and the upload, against a fake hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from helpers import learn, write_config
from nlora.errors import InputErrors, RunError
from nlora.models.target_modules import target_modules
from nlora.runs.export import hub, stock_code
from nlora.runs.export.base_name import hub_name, name_base
from nlora.runs.export.export import export
from nlora.runs.export.options import FORMS, ExportOptions
from nlora.runs.export.record import RECORD_FILE
from nlora.runs.summary import read_summary
from states import random_state, write_adapter
from tiny import LORA, load

Runs = Callable[..., Path]


def test_the_card_has_the_scores_and_what_was_forgotten(finished_run: Runs, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = finished_run()
    export(run, tmp_path / "out", ExportOptions("adapter"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    summary = read_summary(run)
    results = {r.dataset_name: r for r in card.data.eval_results}
    assert {name: r.metric_value for name, r in results.items()} == pytest.approx(
        dict(zip(summary.tasks, summary.R[1], strict=True)), abs=0.01
    )
    assert {r.metric_type for r in results.values()} == {"exact_match"}
    assert card.data.library_name == "peft"
    assert card.data.base_model is None, "a folder of this machine is no base model to others"
    for stage, task in enumerate(summary.tasks):
        cells = "".join(f" {'' if s is None else f'{s:.1f}'} |" for s in summary.R[stage])
        assert f"| {task} |{cells}" in card.content
    lost = max(s for s in (row[0] for row in summary.R) if s is not None) - (summary.R[1][0] or 0)
    assert (f"- colors: {lost:.1f} points" if lost else "- colors: nothing") in card.content
    assert "Trained with nlora" in card.content
    assert "2410.10179" in card.content


def test_the_card_of_a_routed_run_does_not_publish_the_scores_of_its_guesses(
    finished_run: Runs, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    run = finished_run("llama", "inclora", serve="routed")
    export(run, tmp_path / "out", ExportOptions("adapter", task="animals"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert not card.data.eval_results
    assert "- colors:" not in card.content


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "t5", "gpt2"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_cards_own_code_loads_the_export_and_asks_it(
    finished_run: Runs,
    tmp_path: Path,
    tiny_model: Any,
    capsys: pytest.CaptureFixture[str],
    family: str,
    form: str,
) -> None:
    export(finished_run(family), tmp_path / "out", ExportOptions(form))
    text = (tmp_path / "out" / "README.md").read_text()
    load, ask = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model = tiny_model(family)
    load = load.replace("FOLDER", str(tmp_path / "out")).replace(f'"{model.name}"', f'"{model}"')
    stage = finished_run(family) / "outputs/2-animals/predict_eval_predictions.jsonl"
    row = json.loads(stage.read_text().splitlines()[0])
    values: dict[str, Any] = {}
    exec(load, values)
    exec(ask.replace("A new text", row["Instance"]["sentence"]).replace("=50", "=3"), values)
    capsys.readouterr()
    asked = values["tokenizer"].batch_decode(values["inputs"].input_ids, skip_special_tokens=True)
    assert asked == [row["Prompt"]]
    assert values["prompts"].keys() == {"colors", "animals"}
    before = 1 if family == "t5" else values["inputs"].input_ids.shape[1]
    assert values["output"].shape[1] > before


@pytest.mark.parametrize(
    ("method", "serve", "active"),
    [
        ("pertask", None, ["update_1"]),
        ("seqlora", "pertask", ["update_0"]),
        ("inclora", "pertask", ["update_0", "update_1"]),
        ("inclora", None, ["update_0", "update_1", "update_2"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_cards_code_activates_what_answers_the_task_that_it_asks(
    tmp_path: Path, tiny_model: Any, method: str, serve: str | None, active: list[str]
) -> None:
    """The first update is of an adapter from elsewhere, which has no prompt."""
    model = tiny_model("llama")
    config = write_config(tmp_path, model, method=method, serve=serve, train={"epochs": 1, "batch_size": 8})
    values = yaml.safe_load(config.read_text())
    if method != "seqlora":
        layers = {m.name: (m.out_features, m.in_features) for m in target_modules(load(model), LORA)}
        old = write_adapter(tmp_path / "old", random_state(layers, 2, 1))
        values["tasks"].insert(0, {"name": "old", "adapter": str(old)})
    config.write_text(yaml.safe_dump(values))
    learn(config)
    export(tmp_path / "run", tmp_path / "out", ExportOptions("adapters"))
    text = (tmp_path / "out" / "README.md").read_text()
    load_code, ask = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "prompts['colors']" in ask
    found: dict[str, Any] = {}
    exec(load_code.replace("FOLDER", str(tmp_path / "out")).replace(f'"{model.name}"', f'"{model}"'), found)
    assert found["model"].active_adapters == active


def test_names_of_base_models() -> None:
    assert hub_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_name("google-t5/t5-large") == "google-t5/t5-large"
    assert hub_name("./folder") is None
    assert hub_name("a/b/c") is None
    assert hub_name("models/model.gguf") is None


def test_a_card_says_what_this_export_answers(finished_run: Runs, tmp_path: Path) -> None:
    export(finished_run("llama", "pertask"), tmp_path / "apart", ExportOptions("adapter", task="animals"))
    card = (tmp_path / "apart/README.md").read_text()
    assert "This is one PEFT LoRA adapter that answers the task animals." in card
    assert "| after learning | animals |" in card
    export(finished_run("llama", "seqft"), tmp_path / "whole", ExportOptions("merged"))
    card = (tmp_path / "whole/README.md").read_text()
    assert "This is one model with the weights that were trained, in float32." in card
    assert "- lora" not in card


@pytest.mark.parametrize(
    ("base", "auto", "code", "source"),
    [
        ("a/b", "AutoModelForCausalLM", False, '"a/b", dtype="float32"'),
        ("a/b", "AutoModelForImageTextToText", True, '"a/b", trust_remote_code=True, dtype="float32"'),
        (
            "m.gguf",
            "AutoModelForCausalLM",
            False,
            '"FOLDER_OF_THE_FILE", gguf_file="m.gguf", dtype="float32"',
        ),
    ],
)
def test_the_cards_code_names_the_class_and_the_file(base: str, auto: str, code: bool, source: str) -> None:
    checkpoint = SimpleNamespace(config=SimpleNamespace(trust_remote_code=code))
    made: Any = SimpleNamespace(options=ExportOptions("adapter"), auto_class=auto, checkpoint=checkpoint)
    lines = stock_code.loading(made, base).splitlines()
    assert f"from transformers import AutoTokenizer, {auto}" in lines
    assert f"base = {auto}.from_pretrained({source})" in lines


def test_what_is_uploaded_has_no_path_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "secret/llama"
    folder.mkdir(parents=True)
    for model, is_public, name in (
        (str(folder), True, "llama"),
        (str(folder), False, str(folder)),
        ("smollm2", False, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("Qwen/Qwen3-0.6B", True, "Qwen/Qwen3-0.6B"),
    ):
        for file in ("colors/adapter_config.json", "sparse_config.json"):
            (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / file).write_text(json.dumps({"r": 2, "base_model_name_or_path": model}))
        name_base(tmp_path / "out", model, is_public=is_public)
        for file in ("colors/adapter_config.json", "sparse_config.json"):
            values = json.loads((tmp_path / "out" / file).read_text())
            assert values == {"r": 2, "base_model_name_or_path": name}


class HttpClientError(Exception):
    """As HTTP clients have them: of no built-in kind."""


class FakeHub:
    """huggingface_hub.HfApi without a network: it keeps what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.created, self.uploaded = error, [], []
        self.files: set[str] = set()

    def __call__(self, **arguments: Any) -> FakeHub:
        return self

    def create_repo(self, repo: str, **arguments: Any) -> str:
        if self.error:
            raise self.error
        self.created.append((repo, arguments))
        return f"https://hub/{repo}"

    def upload_folder(self, **arguments: Any) -> None:
        files = {file.name for file in Path(arguments["folder_path"]).iterdir()}
        gone = {f for f in self.files if any(fnmatch(f, p) for p in arguments["delete_patterns"])}
        self.files = self.files - gone | files - set(arguments["ignore_patterns"])
        self.uploaded.append((arguments["repo_id"], sorted(files - set(arguments["ignore_patterns"]))))


def test_push_uploads_the_folder(finished_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    found = export(finished_run(), tmp_path / "out", ExportOptions("adapter"), push="me/support")
    assert found.url == "https://hub/me/support"
    assert fake.created == [("me/support", {"repo_type": "model", "exist_ok": True})]
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert fake.uploaded == [("me/support", files)]
    assert (
        str(Path.cwd().anchor)
        not in json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
    )


def test_an_upload_leaves_nothing_of_an_export_of_another_form(
    finished_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would load an adapter that is left beside the model, and not the model."""
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    fake.files = {"notes.md", "model-00001-of-00002.safetensors", "colors/adapter_config.json"}
    for form in ("adapter", "merged", "sparse"):
        export(finished_run(), tmp_path / form, ExportOptions(form), push="me/support")
        own = {file.name for file in (tmp_path / form).iterdir()} - {RECORD_FILE}
        assert fake.files - {"LICENSE", "tokenizer.json", "tokenizer_config.json"} <= own | {"notes.md"}
        assert own | {"notes.md"} <= fake.files


@pytest.mark.parametrize("kind", ["token", "network", "client", "offline"])
def test_a_failed_upload_is_one_line_and_the_export_stays(
    finished_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    errors = {
        "token": (LocalTokenNotFoundError("Token is required."), "hf auth login"),
        "network": (ConnectionError("name resolution failed\nmore"), "check the network"),
        "client": (HttpClientError("Name or service not known"), "check the network"),
        "offline": (OfflineModeIsEnabled("offline mode is enabled"), "HF_HUB_OFFLINE"),
    }
    error, hint = errors[kind]
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub(error))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    with pytest.raises(RunError, match=r"the export is in .*, but could not be uploaded to me/x") as raised:
        export(finished_run(), tmp_path / "out", ExportOptions("adapter"), push="me/x")
    assert hint in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_without_a_network_the_real_client_fails_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="could not be uploaded to me/x"
    ):  # the tests run with HF_HUB_OFFLINE=1
        hub.push(tmp_path, "me/x")


def test_without_a_login_nothing_is_begun(
    finished_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        InputErrors, match=r"^--push: nobody is logged in to the hub; run `hf auth login` first$"
    ):
        export(run, tmp_path / "sub" / "out", ExportOptions("adapter"), push="me/support")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b/c", "what?", "-x/y", ""])
def test_a_name_that_no_repository_can_have(finished_run: Runs, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputErrors, match=r"--push: .* is not the name of a repository"):
        export(finished_run(), tmp_path / "out", ExportOptions("adapter"), push=name)
    assert not list(tmp_path.iterdir())
