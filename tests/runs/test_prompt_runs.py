"""Runs of the methods that train soft prompts: their files, what answers later, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from helpers import ANIMALS, COLORS, learn, write_config, write_task
from nlora.analysis.of_run import analyze_run
from nlora.api.learn import learn as learn_run
from nlora.api.run import Run
from nlora.config.load import load_config
from nlora.data.task import TokenizedExample
from nlora.errors import InputErrors, ModelError, RunError
from nlora.methods.registry import build
from nlora.models.backbone import load_backbone
from nlora.models.soft_tokens import soft_tokens_of
from nlora.runs.events import Progress
from nlora.runs.export.export import export
from nlora.runs.export.options import ExportOptions
from nlora.runs.memory_estimate import estimate_memory
from nlora.runs.plan import make_plan
from nlora.runs.preflight import preflight
from tiny import LORA

TinyModel = Callable[[str], Path]
PROMPTS = "soft_prompts.safetensors"
PROBES = [
    [TokenizedExample([20, 21, 22, 40, 41], [50, 1]), TokenizedExample([20, 21, 22, 140], [51, 60, 61, 1])]
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> tuple[Path, Any]:
    """The configuration of a T5's progprompt run of two tasks, one generated, and the run's summary."""
    folder = tmp_path_factory.mktemp("prompts")
    config = write_config(
        folder,
        tiny_model("t5"),
        tasks=[write_task(folder, "colors", COLORS, 8, 6), write_task(folder, "animals", ANIMALS, 8, 6)],
        method={"name": "progprompt", "tokens": 3},
        train={"epochs": 2, "batch_size": 4, "learning_rate": 0.3, "max_target_tokens": 6},
        evaluate={"decode": "generate"},
    )
    return config, learn(config)


def test_a_stage_keeps_all_prompts_and_repairs_them(made: tuple[Path, Any]) -> None:
    config, summary = made
    stages = [config.parent / "run/outputs" / name for name in ("1-colors", "2-animals")]
    first, second = (load_file(stage / PROMPTS)["prompts"] for stage in stages)
    assert (first.shape, second.shape) == ((3, 32), (6, 32))
    assert second[:3].equal(first)
    assert [json.loads((stage / "stage.json").read_text())["trained_parameters"] for stage in stages] == [
        96,
        96,
    ]
    assert summary.R[1][0] == summary.R[0][0]  # colors is answered by its own prompt alone
    assert not (stages[0] / "adapter").exists()
    whole = (stages[0] / PROMPTS).read_bytes()
    (stages[0] / PROMPTS).write_bytes(whole[:-1])
    with pytest.raises(RunError, match=f"{PROMPTS}: has .* bytes, but .* were written"):
        learn(config)
    assert learn_run(load_config(config), Progress(), repair=True).R == summary.R
    assert (stages[0] / PROMPTS).read_bytes() == whole
    assert load_file(stages[1] / PROMPTS)["prompts"].equal(second)


def test_what_a_run_of_prompts_cannot_do_is_one_line(made: tuple[Path, Any], tmp_path: Path) -> None:
    folder = made[0].parent / "run"
    with pytest.raises(ModelError, match="progprompt trains soft prompts, which a plain model does not"):
        Run(folder).model()
    with pytest.raises(InputErrors, match="--as: progprompt trains soft prompts, which no export holds yet"):
        export(folder, tmp_path / "out", ExportOptions("merged"))
    with pytest.raises(RunError, match=r"its stages hold no adapters \(progprompt\)"):
        analyze_run(folder)
    assert not list(tmp_path.iterdir())


def test_later_answers_are_those_of_the_run(made: tuple[Path, Any]) -> None:
    folder = made[0].parent / "run"
    for stage, name in ((1, "1-colors"), (2, "2-animals")):
        lines = (folder / "outputs" / name / "predict_eval_predictions.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["Dataset"] == "colors"]
        texts = [row["Instance"]["sentence"] for row in rows]
        assert Run(folder).predict(texts, task="colors", stage=stage) == [row["Prediction"] for row in rows]


def planned(folder: Path, model: Path, *overrides: str) -> Any:
    return make_plan(load_config(write_config(folder, model), list(overrides)))


def test_a_model_needs_positions_for_text_and_prompts(tmp_path: Path, tiny_model: TinyModel) -> None:
    """gpt2 has 1024; two tasks."""
    room = 1024 - 2 * 250 - 10
    options = ("method=progprompt", "method.tokens=250", "train.max_target_tokens=10")
    assert (
        planned(tmp_path, tiny_model("gpt2"), *options, f"train.max_source_tokens={room}").soft_tokens == 500
    )
    for changes, end in (
        (
            (f"train.max_source_tokens={room + 1}",),
            f"max_source_tokens={room + 1}: .* set it to {room} or less",
        ),
        (("method.tokens=600",), "method.*: .* shorten the prompts, or take another model"),
    ):
        with pytest.raises(InputErrors, match=end) as told:
            planned(tmp_path, tiny_model("gpt2"), *options, *changes)
        assert len(told.value.problems) == 1
    planned(tmp_path, tiny_model("llama"), *options, "method.tokens=600")  # computes its positions


@pytest.mark.parametrize(("method", "parameters"), [("progprompt", 10 * 32), ("l2p", 10 * 5 * 32 + 10 * 32)])
def test_what_a_run_of_prompts_trains_and_needs_is_known_before(
    tmp_path: Path, tiny_model: TinyModel, method: str, parameters: int
) -> None:
    plan = planned(tmp_path, tiny_model("llama"), f"method={method}")
    assert plan.trained_parameters == parameters
    found = estimate_memory(plan, device="cpu")
    assert (found.adapter, found.optimizer, found.earlier) == (4 * parameters, 8 * parameters, 0)
    assert found.training > estimate_memory(planned(tmp_path, tiny_model("llama")), device="cpu").training


@pytest.mark.parametrize("overrides", [("train.early_stopping.patience=1",), ("method.top_k=11",)])
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, tiny_model: TinyModel, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(InputErrors, match=r"soft prompts, and only adapters can be taken|11 of 10 prompts"):
        planned(tmp_path, tiny_model("llama"), "method=l2p", *overrides)


@pytest.mark.parametrize("name", ["progprompt", "l2p"])
def test_the_preflight_check_tries_the_prompts_and_leaves_none(tiny_model: TinyModel, name: str) -> None:
    backbone = load_backbone(str(tiny_model("llama")))
    method = build(name, {})
    paths = preflight(backbone, PROBES, lora=LORA, method=method, needs_gradients=False, generates=True)
    assert (paths.training, paths.prefill, paths.fast_modules, paths.notes) == ("packed", "packed", True, ())
    assert soft_tokens_of(backbone.model) is None
    backbone.model.generation_config.repetition_penalty = 1.1  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"rules for the tokens of a text.*evaluate\.decode=labels"):
        preflight(backbone, PROBES, lora=LORA, method=method, needs_gradients=False, generates=True)


def test_a_wrong_gradient_of_the_prompts_is_noticed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faster module whose output is right and whose gradient is not must not be used."""

    @contextmanager
    def wrong(model: Any) -> Iterator[None]:
        (trained,) = (p for name, p in model.named_parameters() if name.endswith("soft_tokens.trained"))
        hook = trained.register_hook(lambda gradient: 2 * gradient)
        yield
        hook.remove()

    monkeypatch.setattr("nlora.runs.preflight.fast_modules", wrong)
    backbone = load_backbone(str(tiny_model("llama")))
    paths = preflight(backbone, PROBES, lora=LORA, method=build("progprompt", {}), needs_gradients=False)
    assert not paths.fast_modules
    assert (
        "training in packed rows with faster modules moves the gradient of trained by 1 of" in paths.notes[0]
    )
