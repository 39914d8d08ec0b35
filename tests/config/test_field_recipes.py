"""The recipes `trace` and `superni`: they read the released folders, and run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import learn
from nlora.config.load import load_config, recipe_text
from nlora.data import cl_benchmark
from nlora.data.load import load_tasks
from nlora.data.prompts import prompt
from nlora.errors import InputErrors
from nlora.runs.plan import make_plan

TinyModel = Callable[[str], Path]
ANSWERS = {
    "C-STANCE": "支持",
    "FOMC": "hawkish",
    "MeetingBank": "Recommendation to adopt a resolution.",
    "Py150": "return <NUM_LIT:3>",
    "ScienceQA": "A\nBecause it is so.",
    "NumGLUE-cm": "-3.5",
    "NumGLUE-ds": "12",
    "20Minuten": "Der Hund ist da.",
}


def write_trace(folder: Path) -> None:
    for name, answer in ANSWERS.items():
        place = folder / "LLM-CL-Benchmark_5000" / name
        place.mkdir(parents=True)
        for split in ("train", "eval", "test"):
            rows = [{"prompt": f"The {split} question {i} of {name}?", "answer": answer} for i in range(2)]
            (place / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def write_super_ni(folder: Path, names: list[str], outputs: Any = "POS", **changes: Any) -> None:
    content: dict[str, Any] = {
        "Definition": ["Say which it is. "],
        "Positive Examples": [{"input": "x", "output": "y"}],
    }
    for name in names:
        place = folder / "SuperNI" / name
        place.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            content["Instances"] = [
                {"id": f"{i}", "input": f"{split} text {i}", "output": outputs} for i in range(20)
            ]
            (place / f"{split}.json").write_text(json.dumps(content | changes), encoding="utf-8")


def test_trace_reads_its_folder(tmp_path: Path, tiny_model: TinyModel) -> None:
    write_trace(tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe_text("trace"), encoding="utf-8")
    loaded = load_config(
        tmp_path / "mine.yaml", [f"model={tiny_model('llama')}", f"output_dir={tmp_path}/run"]
    )
    plan = make_plan(loaded)
    assert [task.name for task in plan.tasks] == list(ANSWERS)
    assert [task.train[0].label for task in plan.tasks] == list(ANSWERS.values())
    assert {task.metric for task in plan.tasks} == {
        *(f"nlora.evaluation.trace:{name}" for name in ("identical", "py150", "science_qa")),
        "rougeL",
        "sari",
    }
    # scripts/train_lora.sh: --num_train_epochs 5,3,7,5,3,5,5,7
    epochs = [loaded.config.train_options(name).epochs for name in ANSWERS]
    assert epochs == [5, 3, 7, 5, 3, 5, 5, 7]


def test_trace_is_scored_by_its_metrics(tmp_path: Path, tiny_model: TinyModel) -> None:
    write_trace(tmp_path)
    values = yaml.safe_load(recipe_text("trace"))
    values["tasks"] = [task for task in values["tasks"] if task["name"] in ("Py150", "20Minuten")]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"stages": {}, "dtype": "float32"}))
    summary = learn(
        tmp_path / "mine.yaml", f"model={tiny_model('llama')}", f"output_dir={tmp_path}/run", "method=inclora",
        "train.max_target_tokens=4",
    )  # fmt: skip
    assert summary.metrics == {"Py150": "nlora.evaluation.trace:py150", "20Minuten": "sari"}
    assert summary.backward_transfer is not None
    assert summary.backward_transfer_over_all == pytest.approx(summary.backward_transfer / 2)


def test_superni_reads_its_folder(tmp_path: Path, tiny_model: TinyModel) -> None:
    recipe = load_config("superni").config
    names = [task.name for task in recipe.tasks]
    assert len(set(names)) == 15
    write_super_ni(tmp_path, names, ["POS", "positive"])
    overrides = [f"model={tiny_model('t5')}", f"data={tmp_path}", f"output_dir={tmp_path}/run"]
    plan = make_plan(load_config("superni", overrides))
    first = plan.tasks[0]
    assert (first.type, first.labels, len(first.test)) == ("SuperNI", None, 20)
    assert first.test[0].answers == ("POS", "positive")
    assert prompt(first, first.test[3]) == (
        f"Task:SuperNI\nDataset:{names[0]}\nDefinition: Say which it is.\ntest text 3\nAnswer:"
    )
    own = load_config("superni", [*overrides, f"tasks=[{{name: {names[0]}, instruction: Mine.}}]"])
    assert load_tasks(own.config)[0].instruction == "Mine."


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"Instances": [{"input": "a"}]}, r"Instances\[0\]: no field 'label' \(or output\)"),
        ({"Definition": []}, 'expected an object with a "Definition" and a list of "Instances"'),
        ({"Instances": {}}, 'expected an object with a "Definition" and a list of "Instances"'),
        ({"Instances": []}, "has no examples"),
    ],
)
def test_mistakes_in_a_superni_file(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_super_ni(tmp_path, ["task1"], **changes)
    with pytest.raises(InputErrors, match=what):
        cl_benchmark.read(tmp_path, "task1")


def test_a_superni_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    write_super_ni(tmp_path, ["task1"])
    (tmp_path / "SuperNI/task1/test.json").unlink()
    with pytest.raises(InputErrors, match=r"test\.json: no such file"):
        cl_benchmark.read(tmp_path, "task1")
    (tmp_path / "SuperNI/task1/test.json").write_text("[1")
    with pytest.raises(InputErrors, match="not JSON"):
        cl_benchmark.read(tmp_path, "task1")
