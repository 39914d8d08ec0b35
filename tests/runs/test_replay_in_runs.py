"""Replay beside a method, in whole runs: what is kept, what is trained on, and what a run that stops goes on with."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers import ANIMALS, COLORS, learn, write_config, write_task
from nlora.api import learn as learning
from nlora.config.load import load_config
from nlora.errors import RunError
from nlora.methods.registry import find
from nlora.report.comparison import compare
from nlora.report.run_files import load_run
from nlora.report.sections import costs
from nlora.report.variants import variants_of
from nlora.runs import preflight
from nlora.runs.plan import make_plan
from nlora.runs.replay_plan import replay_notes
from nlora.runs.summary import read_summary
from nlora.training.penalized_trainer import PenalizedTrainer

TinyModel = Callable[[str], Path]
SHAPES = ("round", "flat")
TRAIN = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "save_every": 1}
HARDEST = {"tokens": 260, "choose": "hardest", "share": 0.5}
NAMES = ("colors", "animals", "shapes")


@pytest.fixture(scope="module", autouse=True)
def _without_extras() -> Iterator[None]:
    """Runs without the preflight check and the report, which take most of a tiny run's time."""
    from nlora.models.fast_paths import default_paths

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "finish_run", lambda run, *_: run.write_summary())
        patch.setattr(preflight, "preflight", lambda backbone, *_, **__: default_paths(backbone.model))
        yield


def config_of(folder: Path, model: Path, tasks: int = 3, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        write_task(folder / "data", name, labels, train=10, test=2)
        for name, labels in zip(NAMES, (COLORS, ANIMALS, SHAPES), strict=True)
    ]
    values = {"method": "inclora", "train": TRAIN} | changes
    return write_config(folder, model, tasks=entries[:tasks], **values)


@pytest.fixture(scope="module")
def hardest(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """The folder of a configuration of three tasks that replays the hardest examples, and its run; do not change it."""
    folder = tmp_path_factory.mktemp("hardest")
    learn(config_of(folder, tiny_model("llama"), replay=HARDEST))
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    files = sorted(run.glob("outputs/*/adapter/*.safetensors"))
    return {f"{f.relative_to(run)}/{key}": value for f in files for key, value in load_file(f).items()}


def assert_same_files(one: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for times."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    assert importlib.import_module("kill").differences(one, other) == []


def kept(run: Path, stage: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads((run / "outputs" / stage / "replay.json").read_text())
    return found


def test_no_memory_changes_no_bit_and_method_replay_is_a_short_form(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    config = config_of(tmp_path, tiny_model("llama"), tasks=2, lora={"r": 2, "alpha": 4, "dropout": 0.1})
    runs = {
        "plain": [],
        "none": ["replay={memory: 0, choose: hardest, share: 0.5}"],
        "method": ["method={name: replay, memory: 4}"],
        "beside": ["replay.memory=4"],
    }
    for name, overrides in runs.items():
        learn(config, f"output_dir={tmp_path / name}", "train.epochs=1", *overrides)
    plain, none, method, beside = (tensors(tmp_path / name) for name in runs)
    for one, other in ((plain, none), (method, beside)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    second = [key for key in plain if "2-animals" in key]
    assert second
    assert not any(torch.equal(plain[key], beside[key]) for key in second)
    summaries = [read_summary(tmp_path / name) for name in runs]
    seeds = [
        (tmp_path / name, s.model_copy(update={"seed": i}))
        for i, (name, s) in enumerate(zip(runs, summaries, strict=True))
    ]
    assert [row.seeds for row in compare(seeds).rows] == [(0, 1), (2,), (3,)]  # never averaged with others
    assert [s.method_label for s in summaries] == ["inclora", "inclora", "replay", "inclora + replay"]
    assert [s.replayed_examples for s in summaries] == [(0, 0), (0, 0), (0, 4), (0, 4)]


def test_the_examples_with_the_highest_loss_after_their_stage_are_kept(
    hardest: Path, tiny_model: TinyModel
) -> None:
    """Losses of whole prompts by transformers and PEFT, one at a time."""
    plan = make_plan(load_config(hardest / "config.yaml", [f"output_dir={hardest / 'other'}"]))
    merged: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    for index, (task, given) in enumerate(zip(plan.tasks, plan.examples, strict=True)):
        stage = f"{index + 1}-{task.name}"
        adapter = hardest / "run/outputs" / stage / "adapter"
        merged = PeftModel.from_pretrained(merged, adapter).merge_and_unload()
        losses, budget, chosen = [], HARDEST["tokens"], []
        for example in given.own:
            ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
            answer = slice(len(example.prompt_ids) - 1, -1)
            with torch.no_grad():
                log_p = merged(input_ids=ids).logits[0, answer].log_softmax(-1)
            losses.append(-log_p.gather(1, torch.tensor(example.answer_ids)[:, None]).mean().item())
        for i in sorted(range(len(losses)), key=lambda i: -losses[i]):
            if given.own.lengths[i] <= budget:
                chosen.append(i)
                budget -= given.own.lengths[i]
        found = kept(hardest / "run", stage)
        assert found["examples"] == sorted(chosen)
        assert found["losses"] == pytest.approx([losses[i] for i in sorted(chosen)], abs=1e-5)
        assert 0 < len(chosen) < len(losses)


@pytest.mark.parametrize(("method", "hook"), [("ewc", "end_task"), ("inflora", "see_examples")])
def test_what_a_method_remembers_of_a_task_is_of_its_own_examples(
    method: str, hook: str, tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of earlier tasks is trained on again, but is no part of the new one."""
    kind = find(method)
    original, seen = getattr(kind, hook), []

    def counted(self: Any, model: Any, modules: Any, examples: Any, pad_id: int) -> Any:
        seen.append(len(examples))
        return original(self, model, modules, examples, pad_id)

    monkeypatch.setattr(kind, hook, counted)
    learn(config_of(tmp_path, tiny_model("llama"), method=method, replay={"memory": 4}))
    assert seen == [10, 10, 10]
    record = json.loads((tmp_path / "run/outputs/3-shapes/stage.json").read_text())
    assert record["replayed"] == {"colors": 4, "animals": 4}


def test_a_stage_says_what_it_replayed(hardest: Path) -> None:
    run = load_run(hardest / "run")
    counts = [len(kept(hardest / "run", stage)["examples"]) for stage in ("1-colors", "2-animals")]
    records = [stage.record for stage in run.stages]
    assert [record.replayed for record in records] == [
        {}, {"colors": counts[0]}, {"colors": counts[0], "animals": counts[1]}
    ]  # fmt: skip
    # 10 new examples in batches of 2 new and 2 kept ones, twice.
    passes = [20 / counts[0], 20 / sum(counts)]
    assert [record.replay_passes for record in records] == [None, *map(pytest.approx, passes)]
    assert [stage.steps for stage in run.stages] == [6, 10, 10]
    shown = str(costs.cost(variants_of([run])))
    assert "examples of earlier tasks" in shown
    assert f"{sum(counts)} of 2 tasks, each {passes[1]:.3g} times" in shown
    config = load_config(hardest / "config.yaml").config
    assert config.replay.in_words == "260 tokens of each earlier task, the hardest, as 0.5 of each batch"
    assert run.summary.replay == config.replay.in_words


def test_a_run_that_got_a_task_and_was_killed_in_it_ends_like_one_that_was_not(
    hardest: Path, tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hardest / "config.yaml"
    tasks = json.dumps([task.model_dump(exclude_none=True) for task in load_config(config).config.tasks[:2]])
    target = f"output_dir={tmp_path / 'run'}"
    learn(config, target, f"tasks={tasks}")
    original, steps = PenalizedTrainer.training_step, [0]

    def training_step(self: PenalizedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == 8:  # in the second epoch
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PenalizedTrainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            learn(config, target)
    assert list((tmp_path / "run/resume/3-shapes").glob("step-7"))
    learn(config, target)
    assert_same_files(hardest / "run", tmp_path / "run", monkeypatch)


def test_a_damaged_choice_is_made_again(
    hardest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(hardest / "run", run)
    target = f"output_dir={run}"
    file = run / "outputs/1-colors/replay.json"
    file.write_text(file.read_text().replace("[", "[9, ", 1))
    with pytest.raises(RunError, match=r"replay\.json: has .* bytes.*--repair"):
        learn(hardest / "config.yaml", target)
    learning.learn(load_config(hardest / "config.yaml", [target]), learning.Progress(), repair=True)
    shutil.rmtree(run / "damaged")
    assert_same_files(hardest / "run", run, monkeypatch)


def test_micro_batches_change_nothing(hardest: Path, tmp_path: Path) -> None:
    """Neither what is kept nor what is trained; llama's batches are packed."""
    learn(hardest / "config.yaml", f"output_dir={tmp_path / 'run'}", "train.micro_batch_size=1")
    one, whole = tensors(tmp_path / "run"), tensors(hardest / "run")
    for key, tensor in whole.items():
        torch.testing.assert_close(one[key], tensor, rtol=1e-4, atol=1e-4, msg=key)
    for stage in ("1-colors", "2-animals", "3-shapes"):
        assert kept(tmp_path / "run", stage)["examples"] == kept(hardest / "run", stage)["examples"]


def test_nothing_is_kept_of_adapters_and_that_is_said_once(
    hardest: Path, tmp_path: Path, tiny_model: TinyModel
) -> None:
    adapter = hardest / "run/outputs/1-colors/adapter"
    config = config_of(
        tmp_path, tiny_model("llama"), 2, after=[str(adapter)], train=TRAIN | {"batches": "random"},
        replay={"memory": 4, "choose": "hardest", "share": 0.25},
    )  # fmt: skip
    plan = make_plan(load_config(config))
    assert [stage.replayed for stage in plan.stages] == [{}, {}, {"colors": 4}]
    assert replay_notes(plan.config, plan.tasks) == [
        "later tasks train on 4 examples of each earlier task, the hardest, as 0.25 of each batch, too",
        "nothing is kept of 1-colors: an adapter from elsewhere comes without examples",
    ]
    learn(config)
    assert read_summary(tmp_path / "run").replayed_examples == (0, 0, 4)
