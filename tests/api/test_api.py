"""nlora from Python: the same files, numbers and mistakes as from the command line, and examples that run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import nlora
from helpers import DESK_TASKS, desk_values
from nlora.api.evaluation import tasks_of
from nlora.runs.checkpoint import StageModel, read_stage
from tiny import IDS, logits

TinyModel = Callable[[str], Path]


def asked_model(run: nlora.Run, stage: int) -> Any:
    """The model that gives the run's answers, with whatever nlora puts around it."""
    chosen = read_stage(run.folder, stage)
    served = StageModel(chosen).serve(chosen, [selected.task for selected in tasks_of(chosen)])
    served.history.activate_for_task(served.method, 0)
    return served.evaluator._backbone.model


@pytest.fixture
def shell(request: pytest.FixtureRequest) -> Any:
    """The fixture `nlora`, whose name is here the package's."""
    return request.getfixturevalue("nlora")


def adapters(run: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted(run.glob("outputs/*/adapter/adapter_model.safetensors"))]


def answers(run: Path) -> list[str]:
    return [file.read_text() for file in sorted(run.glob("outputs/*/predict_eval_predictions.jsonl"))]


def test_python_values_make_the_run_that_the_command_line_makes(here: Path) -> None:
    """From a mapping, while another run is open, and again in the same process."""
    config = yaml.safe_load((here / "support.yaml").read_text())
    config["tasks"] = tuple({**task, "train": Path(task["train"])} for task in config["tasks"])
    theirs = nlora.open_run("runs/support")
    for name in ("one", "two"):
        mine = nlora.run(nlora.load_config(config, {"output_dir": Path("runs", name)}))
        assert mine.folder == here / "runs" / name
        assert mine.summary.R == theirs.summary.R
        pairs = list(zip(adapters(mine.folder), adapters(theirs.folder), strict=True))
        assert len(pairs) == 2
        for a, b in pairs:
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
        assert answers(mine.folder) == answers(theirs.folder)
        assert mine.config == theirs.config.model_copy(update={"output_dir": str(mine.folder)})


def test_a_run_tells_what_happens_and_goes_on_where_it_stopped(here: Path, tiny_model: TinyModel) -> None:
    events: list[nlora.Event] = []

    def stop_after_the_first_stage(event: nlora.Event) -> None:
        events.append(event)
        if event.kind == "training" and event.stage == 2:
            raise ZeroDivisionError

    config = nlora.load_config("support.yaml", ["output_dir=runs/mine"])
    with pytest.raises(ZeroDivisionError):
        nlora.run(config, on_event=stop_after_the_first_stage)
    assert [stage.task for stage in nlora.open_run("runs/mine").stages] == ["tickets"]
    steps = [(e.task, e.done, e.total) for e in events if e.kind == "training" and e.stage == 1]
    assert steps == [("tickets", step, 4) for step in range(5)]  # 16 examples, batches of 8, 2 epochs
    assert [(e.done, e.total) for e in events if e.kind == "scoring"][-1] == (9, 9)
    (done,) = [e for e in events if e.kind == "stage_done"]
    R = nlora.open_run("runs/support").summary.R
    assert done.scores == {"tickets": R[0][0]}
    assert str(done) == f"stage 1: tickets learned; tickets {R[0][0]:.1f}"
    events.clear()
    assert nlora.run(config, on_event=events.append).summary.R == R
    assert {e.stage for e in events if e.kind == "training"} == {2}
    files = {file: file.stat().st_mtime_ns for file in Path("runs/mine/outputs").rglob("*")}
    events.clear()
    assert nlora.run(config, on_event=events.append).summary.status == "complete"
    assert [e.kind for e in events] == ["note"]
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_what_on_event_prints_on_a_terminal_is_seen_and_nothing_else(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # the bars of a terminal would take over what is printed
    shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()  # transformers has one for saving a model
    nlora.run(nlora.load_config("support.yaml", {"output_dir": "runs/quiet", "method": "seqft"}))
    if not shown:
        logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
    nlora.run(nlora.load_config("support.yaml", {"output_dir": "runs/told"}), on_event=print)
    assert "stage 2: urgency, step 4 of 4\n" in capfd.readouterr().out


def test_the_model_is_the_runs_and_the_sum_of_its_stock_adapters(here: Path, tiny_model: TinyModel) -> None:
    run = nlora.open_run("runs/support")
    for stage in (0, 1, 2):
        model, tokenizer = run.model(stage)
        assert type(model).__module__.startswith("transformers.")
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        stock: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32).eval()
        names = [str(k) for k in range(1, stage + 1)]
        for name, one in zip(names, run.stages, strict=False):
            if isinstance(stock, PeftModel):
                stock.load_adapter(one.folder / "adapter", adapter_name=name)
            else:
                stock = PeftModel.from_pretrained(stock, one.folder / "adapter", adapter_name=name)
        if names:
            stock.base_model.set_adapter(names)
        torch.testing.assert_close(logits(model), logits(stock), rtol=1e-5, atol=1e-5)
        assert torch.equal(logits(model), logits(asked_model(run, stage))), "the run's own, bit for bit"
    bare, _ = run.model(0)
    assert not torch.allclose(logits(bare), logits(model), atol=1e-3), "something was learned"
    model.save_pretrained(here / "merged")
    tokenizer.save_pretrained(here / "merged")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(here / "merged").eval()), logits(model))
    assert AutoTokenizer.from_pretrained(here / "merged")("It is down")["input_ids"]
    model(input_ids=IDS, labels=IDS).loss.backward()  # a model like any other: it can be trained on


@pytest.mark.parametrize(
    ("method", "family"),
    [
        ("nlora", "gpt2"),
        ("inclora", "t5"),
        ("seqlora", "llama"),
        ("mtl", "llama"),
        ("seqft", "llama"),
        ("osf", "llama"),
    ],
)
def test_the_model_of_any_method_and_family_is_the_runs_own(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, method: str, family: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = nlora.run(desk_values(tmp_path, tiny_model(family), method=method))
    model, _ = run.model()
    assert torch.equal(logits(model), logits(asked_model(run, 2)))
    assert not torch.allclose(logits(model), logits(run.model(0)[0]), atol=1e-3)


def test_a_model_of_a_bfloat16_run_has_room_for_its_updates(here: Path) -> None:
    run = nlora.run(nlora.load_config("support.yaml", {"dtype": "bfloat16", "output_dir": "runs/half"}))
    model, _ = run.model()
    assert model.dtype == torch.float32
    name = "model.layers.0.self_attn.q_proj"
    weight = model.get_parameter(f"{name}.weight").detach()
    before = run.model(0)[0].get_parameter(f"{name}.weight").detach()
    assert torch.equal(before, before.bfloat16().float())
    update = torch.zeros_like(weight)
    for adapter in adapters(run.folder):
        key = f"base_model.model.{name}.lora_"
        update += 2 * adapter[f"{key}B.weight"].float() @ adapter[f"{key}A.weight"].float()
    torch.testing.assert_close(weight - before, update, rtol=1e-4, atol=1e-6)


def test_a_method_with_a_model_for_each_task_is_asked_which(here: Path) -> None:
    run = nlora.run(nlora.load_config("support.yaml", {"method": "pertask", "output_dir": "runs/own"}))
    with pytest.raises(nlora.InputErrors, match=r"task: pertask has a model for each task.*'tickets'"):
        run.model()
    tickets, urgency = (logits(run.model(task=task)[0]) for task in DESK_TASKS)
    assert not torch.allclose(tickets, urgency, atol=1e-3)
    assert torch.equal(tickets, logits(run.model(stage=1)[0]))
    early = (
        "urgency is not learned at stage 1, and pertask has no model for it; stage 0 is the untrained model"
    )
    with pytest.raises(nlora.InputErrors, match=f"task: {early}"):
        run.model(stage=1, task="urgency")
    with pytest.raises(nlora.InputErrors, match=f"task: {early}"):
        run.predict(["it is down"], stage=1, task="urgency")
    assert len(run.predict(["it is down"], stage=0, task="urgency")) == 1


def test_a_quantized_backbone_says_that_it_takes_no_updates_in(here: Path) -> None:
    run = nlora.open_run("runs/support")
    file = run.folder / "run.yaml"
    file.write_text(file.read_text().replace("quantize: null", "quantize: 8bit"))
    with pytest.raises(nlora.ModelError, match="cannot be merged into them"):
        run.model()


def test_the_matrix_has_names_and_prints_as_the_command_line_prints_it(here: Path, shell: Any) -> None:
    run = nlora.open_run("runs/support")
    written = json.loads((run.folder / "summary.json").read_text())["R"]
    matrix = run.accuracy_matrix
    assert written[0][1] is None
    expected = np.array([[written[0][0], np.nan], written[1]])
    np.testing.assert_array_equal(matrix.values, expected)
    np.testing.assert_array_equal(np.asarray(matrix), expected)
    assert matrix["urgency", "tickets"] == written[1][0]
    assert matrix["tickets", "urgency"] is None
    with pytest.raises(KeyError):
        matrix["tickets", "nothing"]
    printed = "\n".join(line.rstrip() for line in shell("run", "support.yaml").out.splitlines())
    assert repr(matrix) in printed
    assert f"{written[1][0]:.1f}" in str(matrix)


def test_answers_and_scores_are_those_of_the_run(here: Path, shell: Any) -> None:
    run = nlora.open_run("runs/support")
    lines = [json.loads(line) for line in answers(run.folder)[1].splitlines()]
    for task in DESK_TASKS:
        own = [line for line in lines if line["Dataset"] == task]
        texts = [line["Instance"]["sentence"] for line in own]
        assert run.predict(texts, task=task) == [line["Prediction"] for line in own]
    assert run.predict([], task="tickets") == []
    for stage in (1, 2):
        printed = json.loads(shell("eval", run.folder, "--stage", stage, "--json").out)
        report = run.evaluate(stage=stage)
        assert [s.score for s in report.scores] == [s["score"] for s in printed["tasks"]]
        assert [s.score for s in report.scores] == list(run.summary.R[stage - 1])[:stage]
    assert [s.task for s in run.evaluate("urgency", stage=1).scores] == ["urgency"]
    assert run.report() == run.folder / "report.html"


def test_runs_and_updates_are_compared_as_by_the_command_line(here: Path, shell: Any) -> None:
    run = nlora.open_run("runs/support")
    comparison = nlora.compare([run])
    assert comparison.rows == nlora.compare("runs").rows
    row = comparison.rows[0]
    assert row.values["average_accuracy"].mean == pytest.approx(np.mean(run.summary.R[1]))
    assert "support (nlora)" in str(comparison)
    folders = [stage.folder / "adapter" for stage in run.stages]
    printed = json.loads(shell("analyze", *folders, "--json").out)
    assert nlora.interference(folders) == printed
    named = nlora.interference({"1-tickets": folders[0], "2-urgency": str(folders[1])})
    assert named["pairs"] == printed["pairs"]
    whole = nlora.interference(run, threshold=1e-3)
    assert whole["threshold"] == 1e-3
    assert whole["forgetting"] is not None
    assert nlora.interference(str(run.folder), threshold=1e-3) == whole


def test_imports_in_any_order_leave_the_functions_in_place() -> None:
    code = "import nlora.report.comparison, nlora; print(callable(nlora.compare), nlora.Config)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True <class 'nlora.config.schema.Config'>\n"
    assert all(getattr(nlora, name).__doc__ for name in nlora.__all__)
    assert set(nlora.__all__) <= set(dir(nlora))
    with pytest.raises(AttributeError):
        _ = nlora.nothing


def test_all_mistakes_are_told_at_once_by_their_keys(here: Path) -> None:
    values = yaml.safe_load((here / "support.yaml").read_text())
    values["train"] |= {"epoch": 1, "batch_size": "ten", "learning_rate": object()}
    values["seeds"] = 1
    with pytest.raises(nlora.InputErrors) as told:
        nlora.run(values | {"output_dir": "runs/wrong"})
    lines = str(told.value).splitlines()
    for expected in (
        "config: train.epoch: unknown key; did you mean 'epochs'?",
        "config: train.batch_size: must be a whole number >= 1, not 'ten'",
        "config: train.learning_rate: is of type object; give text, numbers, truth values, lists or mappings",
        "config: seeds: unknown key; did you mean 'seed'?",
    ):
        assert expected in lines
    assert len(lines) == 4
    assert not Path("runs/wrong").exists()
    for source, overrides, expected in (
        ({1: 2}, (), "the key 1 must be text"),
        ("support.yaml", {"seed": {1, 2}}, "seed: is of type set"),
        ("support.yaml", {"train.epochs": float("inf")}, "train.epochs: must be a finite number, not inf"),
        ("support.yaml", "seed=3", r"overrides: give a list of texts, \['seed=3'\]"),
    ):
        with pytest.raises(nlora.InputErrors, match=expected):
            nlora.load_config(source, overrides)


def test_wrong_questions_are_told_in_the_words_of_python(here: Path) -> None:
    run = nlora.open_run("runs/support")
    with pytest.raises(nlora.InputErrors, match=r"^stage: there is no stage 3"):
        run.model(3)
    with pytest.raises(nlora.InputErrors, match=r"^task: .*ticket"):
        run.predict(["x"], task="ticket")
    with pytest.raises(nlora.InputErrors, match=r"^tasks: "):
        run.evaluate(["nothing"])
    for table in (pandas.DataFrame({"sentence": ["one text"]}), None, 5):
        with pytest.raises(
            nlora.InputErrors, match=r"^texts: must be a list of texts, not a \w+; of a data frame"
        ):
            run.predict(table, task="tickets")
    with pytest.raises(nlora.InputErrors, match=r"^texts: is a single text; give a list"):
        run.predict("x", task="tickets")
    with pytest.raises(nlora.InputErrors) as told:
        run.predict(["", 3], task="tickets")  # type: ignore[list-item]
    assert [problem.where for problem in told.value.problems] == ["texts[0]", "texts[1]"]
    with pytest.raises(nlora.RunError, match="no such folder"):
        nlora.open_run("runs/none")
    with pytest.raises(nlora.InputErrors, match="give two or more"):
        nlora.interference({"a": run.stages[0].folder / "adapter"})
    with pytest.raises(nlora.InputErrors, match="is a run; give it alone"):
        nlora.interference([run, run.stages[0].folder / "adapter"])
