"""`evaluate.general`: what is measured, when, of which model, and what a resumed run keeps."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small
from transformers import AutoTokenizer

import tiny
from helpers import learn
from nlora.config.general_options import GeneralOptions
from nlora.config.load import load_config
from nlora.data.general_text import general_text
from nlora.errors import InputErrors, RunError
from nlora.models.lora_adapter import load_factors
from nlora.runs.folder import RunFolder
from nlora.runs.general import GeneralPlan, refuse_other_numbers
from nlora.runs.general_scores import GeneralScores, general_line, general_of, harness_rows, perplexity_change
from nlora.runs.plan import make_plan
from nlora.runs.summary import read_summary

WORDS = "the quick brown fox jumps over the lazy dog and runs to the market to sell its stock. " * 4


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> Callable[[str], Path]:
    """made(method) -> a folder with config.yaml, text.txt and its finished run in `run`; do not change it."""
    folders: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in folders:
            folder = folders[method] = tmp_path_factory.mktemp("general")
            (folder / "text.txt").write_text(WORDS)
            general = {"text": "text.txt", "max_characters": 200}
            learn(small(folder, tiny_model("llama"), method=method, evaluate={"general": general}))
        return folders[method]

    return make


@pytest.fixture
def measured(made: Callable[[str], Path]) -> Path:
    return made("inclora")


def losses(model: Any, text: str) -> list[float]:
    """The negative log-likelihood of each token but the first, by a plain softmax in double precision."""
    ids = AutoTokenizer.from_pretrained(model.config._name_or_path)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    return [-float(log_p[i, ids[0, i + 1]]) for i in range(ids.shape[1] - 1)]


@pytest.mark.parametrize("method", ["inclora", "pertask"])
def test_each_stages_model_is_measured(
    made: Callable[[str], Path], tiny_model: Callable[[str], Path], method: str
) -> None:
    run = made(method) / "run"
    summary = read_summary(run)
    base = tiny.load(tiny_model("llama"), torch.float64)
    untouched = weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    for stage, scores in enumerate(summary.general):
        assert scores is not None
        if stage:  # W + Σ scaling·B·A, or W and the newest update alone, by hand
            weights = dict(untouched if method == "pertask" else weights)
            for name, f in load_factors(next(run.glob(f"outputs/{stage}-*")) / "adapter").items():
                weights[f"{name}.weight"] = weights[f"{name}.weight"] + f.scaling * (
                    f.B.double() @ f.A.double()
                )
        by_hand = tiny.load(tiny_model("llama"), torch.float64)
        by_hand.load_state_dict(weights, strict=False)
        nll = losses(by_hand, WORDS[:200])
        mean = math.fsum(nll) / len(nll)
        assert scores.tokens == len(nll)
        assert scores.loss == pytest.approx(mean, rel=1e-5)
        assert scores.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
        assert scores.bits_per_byte == pytest.approx(mean / math.log(2) * (len(nll) + 1) / 200, rel=1e-5)
    first, _, last = [scores.perplexity for scores in summary.general if scores and scores.perplexity]
    assert first != last
    assert summary.perplexity_change == pytest.approx(100 * (last / first - 1))


def test_soft_prompts_leave_what_the_model_knew(made: Callable[[str], Path]) -> None:
    general = read_summary(made("progprompt") / "run").general
    assert len({scores.loss for scores in general if scores is not None}) == 1


def test_a_resumed_run_measures_only_what_is_missing(measured: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(measured / "run", again)
    before = read_summary(again)
    shutil.rmtree(again / "outputs" / "2-pets")
    for file, where in (("general.json", []), ("outputs/1-tints/stage.json", ["general"])):
        values = json.loads((again / file).read_text())
        for key in where:
            values = values[key]
        assert values["perplexity"] > 0
    summary = learn(measured / "config.yaml", f"output_dir={again}")
    assert summary.general[:2] == before.general[:2]  # the seconds as well
    assert summary.general[2].perplexity == pytest.approx(before.general[2].perplexity, rel=1e-6)  # type: ignore[union-attr]


def test_a_finished_run_measures_the_untouched_model_again(measured: Path, tmp_path: Path) -> None:
    """As the message about a broken file says."""
    shutil.copytree(measured, tmp_path / "copy")
    run, config = tmp_path / "copy" / "run", tmp_path / "copy" / "config.yaml"
    whole, file = read_summary(run), run / "general.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(RunError, match="broken; delete it to measure the untouched model again"):
        learn(config, f"output_dir={run}")
    file.unlink()
    again = learn(config, f"output_dir={run}")
    assert perplexity_change(again.general) == perplexity_change(whole.general) is not None
    assert again.general[1:] == whole.general[1:]


def test_a_finished_run_keeps_the_text_that_it_was_measured_on(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured, tmp_path / "copy")
    run, config = tmp_path / "copy" / "run", tmp_path / "copy" / "config.yaml"
    before = (run / "run.yaml").read_text()
    with pytest.raises(
        InputErrors, match=r"evaluate\.general\.text: is not the text that the untouched model"
    ):
        learn(config, f"output_dir={run}", "evaluate.general.text=default")
    assert (run / "run.yaml").read_text() == before


def test_other_numbers_are_refused(measured: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(measured / "run", again)
    shutil.rmtree(again / "outputs" / "2-pets")
    config, here = measured / "config.yaml", f"output_dir={again}"
    what = "evaluate.general.text: is not the text that the untouched model was measured on; restore it"
    with pytest.raises(InputErrors, match=what):
        learn(config, here, "evaluate.general.text=default")
    values = json.loads((again / "general.json").read_text()) | {"harness": {"a": {"acc": 1}}}
    (again / "general.json").write_text(json.dumps(values))
    found = GeneralPlan(GeneralOptions(harness=("a",), harness_limit=5), 8)
    run = RunFolder.read(load_config(config, [here]).config)
    with pytest.raises(InputErrors, match="harness_limit: was null when the untouched model was measured"):
        refuse_other_numbers(run, found)
    refuse_other_numbers(run, GeneralPlan(GeneralOptions(harness=("a",)), 8))


def test_a_run_can_begin_to_measure_with_a_later_task(
    small_run: Callable[[str], Path], measured: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(small_run("inclora") / "run", again)
    shutil.rmtree(again / "outputs" / "2-pets")
    general = json.dumps({"text": str(measured / "text.txt"), "max_characters": 200})
    summary = learn(
        small_run("inclora") / "config.yaml", f"output_dir={again}", f"evaluate.general={general}"
    )
    expected = read_summary(measured / "run").general
    assert [scores and scores.loss for scores in summary.general] == [
        pytest.approx(expected[0].loss),  # type: ignore[union-attr]
        None,
        pytest.approx(expected[2].loss, rel=1e-6),  # type: ignore[union-attr]
    ]


def test_the_untouched_model_is_measured_on_what_came_in_later(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First tasks of the harness alone, then the text and another group, which has no metrics of its own."""
    again = tmp_path / "run"
    shutil.copytree(measured / "run", again)
    expected = read_summary(again).general[0]
    assert expected is not None
    shutil.rmtree(again / "outputs" / "2-pets")
    old = GeneralScores(harness={"a": {"acc": 0.25}}, harness_limit=3, seconds=100)
    (again / "general.json").write_text(old.model_dump_json())
    asked: list[tuple[str, ...]] = []

    def run_harness(backbone: Any, names: tuple[str, ...], **options: Any) -> dict[str, dict[str, float]]:
        asked.append(tuple(names))
        return {{"group": "member"}.get(name, name): {"acc": 0.5} for name in names}

    monkeypatch.setattr("nlora.evaluation.harness.run_harness", run_harness)
    monkeypatch.setattr("nlora.evaluation.harness.harness_problem", lambda names, folder: None)
    general = {
        "text": str(measured / "text.txt"), "max_characters": 200, "harness": ["a", "group"], "harness_limit": 3,
    }  # fmt: skip
    changes = (f"output_dir={again}", f"evaluate.general={json.dumps(general)}")
    found = learn(measured / "config.yaml", *changes).general[0]
    assert found is not None
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.text_sha256 == expected.text_sha256
    assert found.harness == {"a": {"acc": 0.25}, "member": {"acc": 0.5}}
    assert found.harness_limit == 3
    assert found.seconds > 100
    assert asked == [("group",), ("a", "group")]  # the untouched model, then stage 2
    shutil.rmtree(again / "outputs" / "2-pets")
    assert learn(measured / "config.yaml", *changes).general[0] == found
    assert asked[2:] == [("a", "group")]


def plan(folder: Path, model: Path, **general: Any) -> Any:
    return make_plan(load_config(small(folder, model, evaluate={"general": general}))).general


def test_mistakes_are_found_before_anything_is_loaded(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    llama, t5 = tiny_model("llama"), tiny_model("t5")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("häßlich".encode("latin-1"))
    (tmp_path / "one.txt").write_text("a")
    for general, what in (
        ({"text": "none.txt"}, "config.yaml:.*evaluate.general.text: no such file: none.txt"),
        ({"text": "empty.txt"}, "empty.txt is empty; give a file with text"),
        ({"text": "latin.txt"}, "latin.txt is not UTF-8 text; save it as UTF-8"),
        ({"text": "one.txt"}, "has only one token, and perplexity needs two"),
        ({"text": None}, "has neither a text nor tasks of the harness"),
        ({"harness_limit": 5}, "harness names no task"),
        ({"harness": ["a", "a"]}, "'a' is in it twice"),
        ({"harness": ["a"], "harness_path": "nowhere"}, "harness_path: no such folder: nowhere"),
        ({"text": "x" * 300}, "has a name of 300 bytes in it"),
    ):
        with pytest.raises(InputErrors, match=what):
            plan(tmp_path, llama, **general)
    with pytest.raises(InputErrors, match=r"evaluate.general.text: .* is an encoder-decoder model"):
        plan(tmp_path, t5)


def test_the_shipped_text_is_the_default(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    shipped = general_text(GeneralOptions(), [])
    assert shipped is not None
    assert (len(shipped.text), shipped.bytes) == (20659, 20659)
    assert shipped.text.startswith("Mr. President, Mr. Speaker, Members of the Congress")
    found = plan(tmp_path, tiny_model("gpt2"))
    assert found.text == shipped
    assert all(len(row) <= 1024 for row in found.windows)


def test_the_change_is_of_the_same_text() -> None:
    before, after = (
        GeneralScores(perplexity=20, text_sha256="a"),
        GeneralScores(perplexity=25, text_sha256="a"),
    )
    other, broken = GeneralScores(perplexity=25, text_sha256="b"), GeneralScores(text="x", text_sha256="a")
    assert after.change_since(before) == pytest.approx(25)
    assert other.change_since(before) is None
    assert broken.change_since(before) is None
    assert general_line(broken, before) == "perplexity not finite"
    assert perplexity_change((before, None, after)) == pytest.approx(25)  # mtl skips all stages but the last
    assert perplexity_change((before, after, None)) is None  # a task was added, and evaluate.general left out
    assert perplexity_change((None, after)) is None
    assert perplexity_change(()) is None
    assert general_of(None, [None, None]) == ()
    assert general_of(before, [None]) == (before, None)
    known = GeneralScores(harness={"a": {"acc": 0.5, "acc_stderr": 0.1}})
    assert harness_rows((known, None, before)) == {("a", "acc"): [0.5, None, None]}
