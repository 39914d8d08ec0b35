"""`serve: pertask` and `serve: routed`: which model answers, what is stored, and what cannot be served."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file
from small_runs import after_one_stage, outcome, small

from helpers import learn
from nlora.api import prediction
from nlora.api.run import Run
from nlora.config.load import load_config
from nlora.errors import InputErrors, MissingExtraError, RunError
from nlora.runs.checkpoint import StageModel, read_stage
from nlora.runs.layout import ROUTER_FILE
from nlora.runs.plan import make_plan
from nlora.runs.routing import Routing
from nlora.runs.task_router import TaskRouter

TinyModel = Callable[[str], Path]
Line = dict[str, Any]
STRONG = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-2, "max_target_tokens": 6}
"""Training that changes the generated answers."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Callable[[str], Path]:
    """made("plain" | "pertask" | "prompt" | "text") -> the folder of that run's configuration; made once."""
    serving: dict[str, dict[str, Any]] = {
        "plain": {},
        "pertask": {"serve": "pertask"},
        "prompt": {"serve": "routed"},
        "text": {"serve": "routed", "router": {"reads": "text", "examples": 2}},
    }
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = folders[name] = tmp_path_factory.mktemp(name)
            given = {**serving[name], "method": "inclora", "evaluate": {"decode": "generate", "unseen": True}}
            config = small(folder, tiny_model("llama"), **given)
            values = yaml.safe_load(config.read_text())
            config.write_text(yaml.safe_dump({**values, "train": STRONG}))
            learn(config)
        return folders[name]

    return make


def lines(folder: Path, stage: str) -> list[Line]:
    file = folder / "run/outputs" / stage / "predict_eval_predictions.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def of_task(found: list[Line], task: str) -> list[Line]:
    return [line for line in found if line["Dataset"] == task]


def unrouted(found: list[Line]) -> list[Line]:
    return [{key: value for key, value in line.items() if key != "Routed"} for line in found]


def test_the_routers_time_counts_as_preparing_and_as_scoring(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that jumps 1,000 s when a task is learned, and 500 s when the tasks of some texts are guessed."""
    calls = Counter[str]()
    real, learning, guessing = time.perf_counter, TaskRouter.learn, TaskRouter.guess
    monkeypatch.setattr(time, "perf_counter", lambda: real() + 1000 * calls["learn"] + 500 * calls["guess"])

    def learned(*given: Any) -> None:
        learning(*given)
        calls["learn"] += 1

    def guessed(*given: Any) -> list[str]:
        calls["guess"] += 1
        return guessing(*given)

    monkeypatch.setattr(TaskRouter, "learn", learned)
    monkeypatch.setattr(TaskRouter, "guess", guessed)
    found = learn(small(tmp_path, tiny_model("llama"), method="inclora", serve="routed"))
    assert found.prepare_seconds == pytest.approx([1000, 1000], abs=200)
    assert found.evaluate_seconds == pytest.approx([500, 1000], abs=200)
    assert max(found.train_seconds) < 200


def test_per_task_the_first_tasks_answers_stay_those_of_its_stage(made: Callable[[str], Path]) -> None:
    plain, served = made("plain"), made("pertask")
    assert outcome(plain / "run").keys() == outcome(served / "run").keys()
    for stage in ("1-tints", "2-pets"):  # training is the same
        adapter = f"outputs/{stage}/adapter/adapter_model.safetensors"
        assert (plain / "run" / adapter).read_bytes() == (served / "run" / adapter).read_bytes()
    then = of_task(lines(plain, "1-tints"), "tints")
    later = lines(plain, "2-pets")
    assert of_task(later, "tints") != then  # the latest model answers otherwise
    assert lines(served, "2-pets") == [*then, *of_task(later, "pets")]
    summary = Run(served / "run").summary
    assert summary.forgetting == summary.backward_transfer == 0
    assert summary.method_label == "inclora, pertask"


def test_routed_with_right_guesses_is_per_task(made: Callable[[str], Path]) -> None:
    routed, served = made("prompt"), made("pertask")
    found = lines(routed, "2-pets")
    assert [line["Routed"] for line in found] == [line["Dataset"] for line in found]
    assert unrouted(found) == lines(served, "2-pets")
    summary = Run(routed / "run").summary
    assert summary.routing == Routing(tasks=("tints", "pets"), counts=((4, 0), (0, 4)), accuracy=100.0)
    assert json.loads((routed / "run/outputs/1-tints/stage.json").read_text())["routing"] is None
    assert "the task of 100.0 % of the test examples was guessed right" in str(
        Run(routed / "run").accuracy_matrix
    )


def test_each_text_is_answered_by_the_model_of_its_guess(made: Callable[[str], Path]) -> None:
    routed, plain = made("text"), made("plain")
    found = lines(routed, "2-pets")
    guesses = Counter((line["Dataset"], line["Routed"]) for line in found)
    routing = Run(routed / "run").summary.routing
    assert routing is not None
    names = ("tints", "pets")
    assert routing.counts == tuple(tuple(guesses[true, guess] for guess in names) for true in names)
    assert routing.accuracy < 100  # with right guesses only, the rest would show nothing
    models = {"tints": lines(plain, "1-tints"), "pets": lines(plain, "2-pets")}
    assert models["tints"] != models["pets"]
    assert unrouted(found) == [models[line["Routed"]][i] for i, line in enumerate(found)]


def test_the_folder_has_features_of_a_sample_and_no_texts(made: Callable[[str], Path]) -> None:
    for stage in ("1-tints", "2-pets"):
        folder = made("text") / "run/outputs" / stage
        (features,) = load_file(folder / ROUTER_FILE).values()
        assert features.shape == (2, 32)
        assert ROUTER_FILE in json.loads((folder / "checksums.json").read_text())["files"]


def test_a_resumed_run_guesses_the_same(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("text")
    learn(folder / "config.yaml", after_one_stage(folder, tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(folder / "run")
    name = f"outputs/2-pets/{ROUTER_FILE}"
    assert (tmp_path / "run" / name).read_bytes() == (folder / "run" / name).read_bytes()
    assert Run(tmp_path / "run").summary.routing == Run(folder / "run").summary.routing


def test_damaged_features_are_noticed(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = made("text")
    override = after_one_stage(folder, tmp_path / "run")
    file = tmp_path / "run/outputs/1-tints" / ROUTER_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"router.safetensors: was changed after it was written .* --repair"):
        learn(folder / "config.yaml", override)


def test_eval_guesses_as_the_run_did(made: Callable[[str], Path]) -> None:
    run = Run(made("text") / "run")
    found = run.evaluate()
    assert [s.score for s in found.scores] == list(run.summary.R[1])
    assert found.routing == run.summary.routing
    assert found.values()["routing"]["accuracy"] == found.routing.accuracy  # type: ignore[union-attr]
    assert [p.line() for p in found.predictions] == lines(made("text"), "2-pets")
    assert (
        run.evaluate(["pets"], stage=1).scores[0].score is not None
    )  # one task is learned: its model answers


def test_predict_names_the_task_that_it_guessed(
    made: Callable[[str], Path], nlora: Callable[..., Any], tmp_path: Path
) -> None:
    stored = lines(made("text"), "2-pets")
    texts = [line["Instance"]["sentence"] for line in stored]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    told = nlora("predict", made("text") / "run", "--file", tmp_path / "texts.txt")
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert told.status == 0
    assert [row["sentence"] for row in rows] == texts
    assert [row["task"] for row in rows] == [line["Routed"] for line in stored]
    right = [i for i, line in enumerate(stored) if line["Routed"] == line["Dataset"]]
    assert [rows[i]["prediction"] for i in right] == [stored[i]["Prediction"] for i in right]
    run = Run(made("text") / "run")
    named = run.predict(texts, task="tints")  # nothing is guessed: the model and the prompt of that task
    per_task = of_task(lines(made("plain"), "1-tints"), "tints")
    assert named[: len(per_task)] == [line["Prediction"] for line in per_task]
    assert run.predict(texts) == [row["prediction"] for row in rows]


@pytest.mark.parametrize(
    ("name", "stage", "why"),
    [
        ("plain", None, r"this run does not guess tasks \(serve: routed\); name one of tints, pets"),
        ("prompt", None, "router reads prompts, and a prompt is that of a task"),
        ("text", 0, "nothing is learned at stage 0"),
    ],
)
def test_a_task_that_cannot_be_guessed_has_to_be_named(
    made: Callable[[str], Path], name: str, stage: int | None, why: str
) -> None:
    with pytest.raises(InputErrors, match=f"--task: is needed, because .*{why}"):
        prediction.asked_for(read_stage(made(name) / "run", stage), None)


def test_texts_in_different_columns_need_a_task(made: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(made("text") / "run", tmp_path / "run")
    file = tmp_path / "run/run.yaml"
    record = yaml.safe_load(file.read_text())
    record["config"]["tasks"][1]["columns"] = {"text": "body"}
    file.write_text(yaml.safe_dump(record))
    with pytest.raises(InputErrors, match="tints and pets have their texts in different columns"):
        prediction.asked_for(read_stage(tmp_path / "run", None), None)


def test_a_run_that_is_served_per_task_exports_the_model_of_a_task(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    run = Run(made("text") / "run")
    with pytest.raises(InputErrors, match="inclora has a model for each task; say which, as --task tints"):
        run.export(tmp_path / "merged", "merged")
    with pytest.raises(InputErrors, match="has a model for each task"):
        run.model()
    found = Run(made("pertask") / "run").export(tmp_path / "one", "adapter", task="tints")
    assert found.scores == found.run  # also checked answer by answer
    adapter = "adapter/adapter_model.safetensors"
    first = load_file(made("pertask") / "run/outputs/1-tints" / adapter)
    assert load_file(tmp_path / "one/adapter_model.safetensors").keys() == first.keys()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": "mtl", "serve": "pertask"}, "mtl trains one model on all tasks at once; leave serve out"),
        ({"method": "seqft", "serve": "routed"}, "seqft keeps only its latest weights"),
        (
            {"method": "magmax", "serve": "pertask", "stages": {"pets": {"method": {"scale": 0.5}}}},
            "magmax with other options at a later task would change the answers to earlier ones",
        ),
        ({"fsdp": True, "serve": "routed"}, "a router reads the backbone without its head"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, tiny_model: TinyModel, changes: dict[str, Any], problem: str
) -> None:
    config = small(tmp_path, tiny_model("llama"), **changes)
    with pytest.raises(InputErrors, match=rf"config.yaml:\d+: serve: {problem}"):
        make_plan(load_config(config))


def test_a_router_needs_two_texts_of_each_task(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = small(tmp_path, tiny_model("llama"), serve="routed")
    file = tmp_path / "data/pets-train.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(
        InputErrors, match="a router needs 2 different training texts of each task, but pets has 1"
    ):
        make_plan(load_config(config))
    assert not (tmp_path / "run").exists()


def test_a_router_needs_scikit_learn(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name, *rest)
    )
    with pytest.raises(InputErrors, match="serve: scikit-learn is not installed; pip install scikit-learn"):
        make_plan(load_config(made("text") / "config.yaml"))
    with pytest.raises(MissingExtraError, match="pip install scikit-learn"):
        StageModel(read_stage(made("text") / "run", None))
