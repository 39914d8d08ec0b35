"""Tasks that are appended to a run: it continues, and ends as a run that had all of them from the start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from helpers import ANIMALS, COLORS, learn, same_outcome, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.errors import InputErrors, NloraError, RunError
from nlora.methods.registry import method_names
from nlora.runs.events import Event, Progress
from nlora.runs.export.export import export
from nlora.runs.export.options import ExportOptions
from nlora.runs.summary import read_summary
from released_data import write_benchmark

Made = Callable[[str], Path]
PLANTS = ("rose", "oak")
DEPENDS_ON_LENGTH = {"osf": {"preserved": 0.4}, "inflora": {"threshold": 0.9, "last_threshold": 0.9}}
"""Earlier stages depend on the number of tasks, unless these options are set."""


def three_tasks(folder: Path) -> list[dict[str, Any]]:
    return [
        write_task(folder, n, w) for n, w in (("colors", COLORS), ("animals", ANIMALS), ("plants", PLANTS))
    ]


def config_of(folder: Path, data: Path, model: Path, tasks: int, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"method": "inclora", "evaluate": {"batch_size": 4, "zero_shot": True}, **changes}
    path = write_config(folder, model, **values)
    text = yaml.safe_load(path.read_text())
    return _written(path, {**text, "tasks": three_tasks(data)[:tasks]})


def _written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def trained_files(run: Path) -> list[Path]:
    return sorted(f.relative_to(run) for f in run.glob("outputs/*/*/*.safetensors"))


# stage.json: its checksum, since it has times
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "predict_runtime",
         "predict_samples_per_second", "predict_steps_per_second", "train_seconds", "evaluate_seconds",
         "prepare_seconds", "peak_memory_bytes", "seconds", "stage.json"}  # fmt: skip


def without_times(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: without_times(value) for key, value in values.items() if key not in TIMES}
    return [without_times(value) for value in values] if isinstance(values, list) else values


@pytest.mark.parametrize("method", [name for name in method_names() if name not in ("disjoint", "mtl")])
def test_two_tasks_and_one_more_are_three_tasks(tmp_path: Path, tiny_model: Made, method: str) -> None:
    options = {"name": method, **DEPENDS_ON_LENGTH.get(method, {})}
    data, model = tmp_path / "data", tiny_model("llama")
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    learn(config_of(grown, data, model, 2, method=options))
    before = {f: (grown / "run" / f).read_bytes() for f in trained_files(grown / "run")}
    stage_1 = (grown / "run/outputs/1-colors/stage.json").read_bytes()
    one = learn(config_of(grown, data, model, 3, method=options))
    other = learn(config_of(whole, data, model, 3, method=options))
    assert same_outcome(one, other)
    assert one.tasks == ("colors", "animals", "plants")
    assert {f: (grown / "run" / f).read_bytes() for f in before} == before
    assert (grown / "run/outputs/1-colors/stage.json").read_bytes() == stage_1
    assert trained_files(grown / "run") == trained_files(whole / "run")
    for file in trained_files(whole / "run"):
        mine, theirs = load_file(grown / "run" / file), load_file(whole / "run" / file)
        assert mine.keys() == theirs.keys()
        assert all((mine[key] == theirs[key]).all() for key in mine), file
    for file in sorted((whole / "run").glob("outputs/*/*.json*")):
        twin = grown / "run" / file.relative_to(whole / "run")
        if file.suffix == ".jsonl":
            assert twin.read_bytes() == file.read_bytes(), file
        else:
            assert without_times(json.loads(twin.read_text())) == without_times(
                json.loads(file.read_text())
            ), file


def test_mtl_trains_all_tasks_anew(tmp_path: Path, tiny_model: Made) -> None:
    """What it trained before the last task was appended has no part in the model."""
    data, model = tmp_path / "data", tiny_model("llama")
    learn(config_of(tmp_path / "grown", data, model, 2, method="mtl"))
    one = learn(config_of(tmp_path / "grown", data, model, 3, method="mtl"))
    other = learn(config_of(tmp_path / "whole", data, model, 3, method="mtl"))
    assert one.R[-1] == other.R[-1]
    place = "run/outputs/3-plants/adapter/adapter_model.safetensors"
    assert (tmp_path / "grown" / place).read_bytes() == (tmp_path / "whole" / place).read_bytes()
    found = export(tmp_path / "grown/run", tmp_path / "out", ExportOptions("adapters"))
    assert (found.adapters, found.active) == (["plants"], [0])


def test_mtl_is_repaired_without_losing_what_it_trained_before(tmp_path: Path, tiny_model: Made) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    learn(config_of(tmp_path, data, model, 2, method="mtl"))
    config, run = config_of(tmp_path, data, model, 3, method="mtl"), tmp_path / "run"
    whole = learn(config)
    assert whole.R[1][:2] != (None, None)
    assert whole.collision is None  # the model has one update
    last = (run / "outputs/3-plants/adapter/adapter_model.safetensors").read_bytes()

    answers = run / "outputs/2-animals/predict_eval_predictions.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    with pytest.raises(RunError, match="which has the stage scored again"):
        learn(config)
    learn_run(load_config(config), Progress(lambda event: None), repair=True)
    assert read_summary(run).R == whole.R

    adapter = run / "outputs/2-animals/adapter/adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    notes: list[str] = []
    learn_run(load_config(config), Progress(lambda event: notes.append(event.text)), repair=True)
    assert any("the stage trains nothing now, and its scores are gone" in note for note in notes)
    assert (whole.R[0], (None, None, None), whole.R[2]) == read_summary(run).R
    assert (run / "outputs/3-plants/adapter/adapter_model.safetensors").read_bytes() == last


def test_a_score_before_any_training_is_of_the_tasks_own_examples(tmp_path: Path, tiny_model: Made) -> None:
    """Of a task that left the list and comes back with other test examples, it is made anew."""
    data, model = tmp_path / "data", tiny_model("llama")
    values = yaml.safe_load(config_of(tmp_path, data, model, 3).read_text())
    colors, animals, plants = values["tasks"]
    other = {**animals, "test": write_task(tmp_path / "other", "animals", ANIMALS, test=5)["test"]}
    cities = write_task(data, "cities", COLORS)

    def started(*tasks: dict[str, Any]) -> None:
        """Stopped in its second stage."""
        path = _written(tmp_path / "config.yaml", {**values, "tasks": list(tasks)})

        def stop(event: Event) -> None:
            if event.stage == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learn_run(load_config(path), Progress(stop))

    started(colors, animals)
    started(colors, plants, cities)
    learn(_written(tmp_path / "config.yaml", {**values, "tasks": [colors, other]}))
    again = json.loads((tmp_path / "run/zero_shot.json").read_text())
    alone = tmp_path / "alone"
    learn(_written(tmp_path / "alone.yaml", {**values, "tasks": [colors, other], "output_dir": str(alone)}))
    assert again == json.loads((alone / "zero_shot.json").read_text())


def test_a_run_whose_first_stage_scored_a_task_that_left_is_complete(
    tmp_path: Path, tiny_model: Made
) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    evaluate = {"zero_shot": True, "unseen": True}
    values = yaml.safe_load(config_of(tmp_path, data, model, 3, evaluate=evaluate).read_text())
    colors, animals, plants = values["tasks"]

    def stop(event: Event) -> None:
        if event.stage == 2:
            raise KeyboardInterrupt

    path = _written(tmp_path / "config.yaml", {**values, "tasks": [colors, animals]})
    with pytest.raises(KeyboardInterrupt):
        learn_run(load_config(path), Progress(stop))
    path = _written(tmp_path / "config.yaml", {**values, "tasks": [colors, plants]})
    learn(path)
    notes: list[str] = []
    learn_run(load_config(path), Progress(lambda event: notes.append(event.text)))
    assert notes == [f"{tmp_path / 'run'}: complete, nothing to do"]


def test_disjoint_needs_rows_for_later_tasks(tmp_path: Path, tiny_model: Made) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    learn(config_of(tmp_path / "a", data, model, 2, method="disjoint"))
    before = (tmp_path / "a/run/run.yaml").read_bytes()
    with pytest.raises(InputErrors, match=r"method\.tasks: the rows were split among 2 tasks") as caught:
        learn(config_of(tmp_path / "a", data, model, 3, method="disjoint"))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a/run/run.yaml").read_bytes() == before
    planned = {"name": "disjoint", "tasks": 3}
    learn(config_of(tmp_path / "b", data, model, 2, method=planned))
    one = learn(config_of(tmp_path / "b", data, model, 3, method=planned))
    assert same_outcome(one, learn(config_of(tmp_path / "c", data, model, 3, method=planned)))


def test_an_unfinished_run_may_get_other_later_tasks(tmp_path: Path, tiny_model: Made) -> None:
    """Tasks that are not learned yet may be replaced, and trained otherwise."""
    data, model = tmp_path / "data", tiny_model("llama")
    config = config_of(tmp_path, data, model, 1)
    learn(config)
    values = yaml.safe_load(config.read_text())
    plants = three_tasks(data)[2]
    values |= {"tasks": [*values["tasks"], plants], "stages": {"plants": {"train": {"epochs": 1}}}}
    summary = learn(_written(config, values))
    assert summary.tasks == ("colors", "plants")
    assert summary.zero_shot is not None
    assert None not in summary.zero_shot
    record = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert record["config"]["tasks"][1]["name"] == "plants"
    (change,) = record["changed"]
    assert change["after_stage"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 9}, "seed: 3 in the folder, 9 now"),
        ({"lora": {"r": 2, "alpha": 8}}, "lora.r: 4 in the folder, 2 now"),
        ({"stages": {"colors": {"train": {"epochs": 5}}}}, "stages.colors.train"),
        ({"evaluate": {"batch_size": 4, "zero_shot": True, "decode": "generate"}}, "evaluate.decode"),
    ],
)
def test_what_committed_stages_depend_on_may_not_change(
    tmp_path: Path, tiny_model: Made, changes: dict[str, Any], message: str
) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    learn(config_of(tmp_path, data, model, 2))
    kept = (tmp_path / "run/run.yaml").read_bytes(), read_summary(tmp_path / "run")
    with pytest.raises(RunError, match=message.replace(".", r"\.")):
        learn(config_of(tmp_path, data, model, 3, **changes))
    assert ((tmp_path / "run/run.yaml").read_bytes(), read_summary(tmp_path / "run")) == kept


def test_learned_tasks_stay_where_they_are(tmp_path: Path, tiny_model: Made) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    config = config_of(tmp_path, data, model, 2)
    learn(config)
    values = yaml.safe_load(config.read_text())
    for tasks in (values["tasks"][::-1], values["tasks"][:1], [three_tasks(data)[2], *values["tasks"]]):
        with pytest.raises(RunError, match="is learned as task"):
            learn(_written(config, {**values, "tasks": tasks}))


def test_what_changes_no_score_may_change(tmp_path: Path, tiny_model: Made) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    first = learn(config_of(tmp_path, data, model, 2))
    again = learn(
        config_of(
            tmp_path, data, model, 2, name="renamed", evaluate={"batch_size": 2, "zero_shot": True},
            train={"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "micro_batch_size": 4},
        )
    )  # fmt: skip
    assert again.R == first.R


REMEMBERS = """
import torch
from nlora.methods.base import Method, MethodOptions


class Options(MethodOptions):
    told: str


class Remembers(Method[Options]):
    def examples(self, tasks, index, seed):
        return [] if index == 1 else super().examples(tasks, index, seed)

    def end_task(self, model, modules, examples, pad_id):
        return {"seen": torch.tensor([len(examples)])}

    def restore(self, memory):
        with open(self.options.told, "a") as file:
            file.write(f"{sorted(memory)}\\n")
"""


def test_what_a_method_remembers_outlives_a_stage_that_it_skips(tmp_path: Path, tiny_model: Made) -> None:
    """Also in another process, which reads it from the folder of the last stage that was trained."""
    (tmp_path / "remembers.py").write_text(REMEMBERS)
    method = {"name": str(tmp_path / "remembers.py"), "told": str(tmp_path / "told")}
    data, model = tmp_path / "data", tiny_model("llama")
    learn(config_of(tmp_path, data, model, 2, method=method))
    learn(config_of(tmp_path, data, model, 3, method=method))
    assert (tmp_path / "told").read_text().splitlines() == ["['seen']"]


def test_a_run_of_files_may_get_a_task_of_a_benchmark(tmp_path: Path, tiny_model: Made) -> None:
    """`data` is where tasks are found. Digests of the examples tell whether the learned ones are the same."""
    data, model = tmp_path / "data", tiny_model("llama")
    config = config_of(tmp_path, data, model, 1)
    learn(config)
    write_benchmark(tmp_path / "CL_Benchmark")
    values = yaml.safe_load(config.read_text())
    name = min(path.name for path in (tmp_path / "CL_Benchmark").glob("*/*"))
    values |= {"data": str(tmp_path / "CL_Benchmark"), "tasks": [*values["tasks"], {"name": name}]}
    assert learn(_written(config, values)).tasks == ("colors", name)


def test_a_task_that_cannot_be_read_leaves_the_run_as_it_was(tmp_path: Path, tiny_model: Made) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    config = config_of(tmp_path, data, model, 2)
    learn(config)
    kept = (tmp_path / "run/run.yaml").read_bytes()
    values = yaml.safe_load(config.read_text())
    missing = {
        "name": "x",
        "train": "nowhere.jsonl",
        "test": "nowhere.jsonl",
        "instruction": "Which?",
        "labels": ["a", "b"],
    }
    with pytest.raises(NloraError, match=r"tasks\.2"):
        learn(_written(config, {**values, "tasks": [*values["tasks"], missing]}))
    assert (tmp_path / "run/run.yaml").read_bytes() == kept
    assert learn(_written(config, values)).status == "complete"


@pytest.mark.parametrize(
    ("method", "option", "later"), [("ewc", "weight", 1000.0), ("gorp", "threshold", 0.5)]
)
def test_a_method_that_was_off_may_be_on_for_a_later_task(
    tmp_path: Path, tiny_model: Made, method: str, option: str, later: float
) -> None:
    """What it remembers of a task does not depend on the options of the tasks that follow."""
    data, model = tmp_path / "data", tiny_model("llama")
    off = {"method": {"name": method, option: 0}}
    on = {**off, "stages": {"animals": {"method": {option: later}}}}
    learn(config_of(tmp_path / "grown", data, model, 1, **off))
    one = learn(config_of(tmp_path / "grown", data, model, 2, **on))
    assert same_outcome(one, learn(config_of(tmp_path / "whole", data, model, 2, **on)))
    for file in trained_files(tmp_path / "whole/run"):
        assert (tmp_path / "grown/run" / file).read_bytes() == (tmp_path / "whole/run" / file).read_bytes()


def test_free_keys_of_a_learned_task_come_and_go(tmp_path: Path, tiny_model: Made) -> None:
    data, model = tmp_path / "data", tiny_model("llama")
    first = learn(config_of(tmp_path, data, model, 2))
    own = {"stages": {"colors": {"train": {"save_every": 50, "micro_batch_size": 4}}}}
    assert learn(config_of(tmp_path, data, model, 2, **own)).R == first.R
    assert learn(config_of(tmp_path, data, model, 2)).R == first.R
    with pytest.raises(RunError, match=r"stages\.colors\.train\.epochs"):
        learn(config_of(tmp_path, data, model, 2, stages={"colors": {"train": {"epochs": 7}}}))
