"""Adapters that were made elsewhere, as tasks learned before the first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlora
from helpers import ANIMALS, COLORS, learn, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.config.load import load_config
from nlora.errors import AdapterError, InputErrors, NloraError
from nlora.methods.registry import method_names
from nlora.models.lora_factors import load_factors
from nlora.runs.events import Progress
from nlora.runs.plan import make_plan
from tiny import logits

Made = Callable[[str], Path]
REFUSED = {
    "seqft": "trains the model's own weights",
    "osf": "trains the model's own weights",
    "ewc": "needs the Fisher information",
    "mtl": "trains on the examples of all tasks",
    "disjoint": "gives each task rows of its own",
    "seqlora": "continues the adapter",
    "gorp": "needs the gradients of earlier tasks",
    "inflora": "needs the inputs of earlier tasks",
    "slao": "each was trained on from the one before",
    "progprompt": "trains soft prompts",
    "l2p": "trains soft prompts",
}


def foreign_adapter(folder: Path, model: Path, seed: int = 0, **options: Any) -> Path:
    """An adapter that plain PEFT made, with a B that is not zero."""
    torch.manual_seed(seed)
    values = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "o_proj"], **options}
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(task_type="CAUSAL_LM", **values)
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    peft.save_pretrained(folder)
    return folder


def config_of(folder: Path, model: Path, tasks: list[dict[str, Any]], **changes: Any) -> Path:
    values = {"method": "inclora", "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3}, **changes}
    path = write_config(folder, model, **values)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "tasks": tasks}))
    return path


def test_what_concerns_examples_leaves_an_adapter_alone(tmp_path: Path, tiny_model: Made) -> None:
    """It was refused for its labels, which it needs not have, and for a lack of examples to hold out."""
    model = tiny_model("llama")
    old = {"name": "old", "adapter": str(foreign_adapter(tmp_path / "theirs", model))}
    tasks = [
        old,
        write_task(tmp_path, "colors", COLORS, train=24),
        write_task(tmp_path, "animals", ANIMALS, train=24),
    ]
    config = config_of(
        tmp_path, model, tasks, train={"epochs": 1, "batch_size": 8, "label_weights": "balanced"},
        evaluate={"split": "validation", "validation_share": 0.25, "batch_size": 4},
    )  # fmt: skip
    plan = make_plan(load_config(config))
    assert [bool(task.test) for task in plan.tasks] == [False, True, True]
    summary = learn(config)
    assert summary.R[0] == (None, None, None)
    assert all(score is not None for score in (*summary.R[1][1:2], *summary.R[2][1:]))
    tested = config_of(tmp_path, model, [old | {"test": tasks[1]["test"], "labels": list(COLORS)}, tasks[2]],
                       evaluate={"split": "validation"}, output_dir=str(tmp_path / "other"))  # fmt: skip
    assert make_plan(load_config(tested)).tasks[0].test == ()  # test files are not for tuning


def test_a_run_may_begin_with_nothing_but_an_adapter(tmp_path: Path, tiny_model: Made) -> None:
    """It has no examples at all; a task that is appended is learned on top of it."""
    model = tiny_model("llama")
    old = {"name": "old", "adapter": str(foreign_adapter(tmp_path / "theirs", model))}
    alone = learn(config_of(tmp_path, model, [old]))
    assert (alone.status, alone.R, alone.average_accuracy) == ("complete", ((None,),), None)
    more = learn(config_of(tmp_path, model, [old, write_task(tmp_path, "colors", COLORS)]))
    assert (more.status, more.R[0]) == ("complete", (None, None))
    assert more.average_accuracy == more.R[1][1]


def test_a_foreign_adapter_is_scored_first_and_learned_on(tmp_path: Path, tiny_model: Made) -> None:
    """Another rank, other modules, rslora and an alpha pattern; the last model is the sum of all of them."""
    model = tiny_model("llama")
    options = {"use_rslora": True, "alpha_pattern": {"q_proj": 5}}
    adapter = foreign_adapter(tmp_path / "theirs", model, **options)
    colors = write_task(tmp_path, "colors", COLORS)
    before = {k: v for k, v in colors.items() if k != "train"} | {"adapter": str(adapter)}
    summary = learn(config_of(tmp_path, model, [before, write_task(tmp_path, "animals", ANIMALS)]))
    assert summary.status == "complete"
    assert summary.R[0][0] is not None
    assert summary.average_accuracy is not None
    run = tmp_path / "run"
    record = json.loads((run / "outputs/1-colors/stage.json").read_text())
    assert record["is_adopted"]
    import nlora

    ours, _tokenizer = nlora.open_run(run).model()
    stock = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model), adapter, adapter_name="one"
    )
    stock.load_adapter(run / "outputs/2-animals/adapter", adapter_name="two")
    stock.base_model.set_adapter(["one", "two"])
    ids = AutoTokenizer.from_pretrained(model)("the red fox", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids).logits, stock.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    report = nlora.open_run(run).evaluate(["colors"], stage=1)
    assert report.scores[0].score == pytest.approx(summary.R[0][0])


@pytest.mark.parametrize("is_old", [False, True], ids=["now", "by an older version"])
def test_the_runs_own_copy_is_only_scored_again(tmp_path: Path, tiny_model: Made, is_old: bool) -> None:
    """The original may be gone, or be another one by now."""
    model = tiny_model("llama")
    theirs = foreign_adapter(tmp_path / "theirs", model)
    colors = {k: v for k, v in write_task(tmp_path, "colors", COLORS).items() if k != "train"}
    tasks = [{**colors, "adapter": str(theirs)}, write_task(tmp_path, "animals", ANIMALS)]
    config = config_of(tmp_path, model, tasks)
    before = learn(config)
    outputs = tmp_path / "run/outputs"
    weights = {path: path.read_bytes() for path in outputs.glob("*/adapter/*.safetensors")}
    shutil.rmtree(theirs)
    first = outputs / "1-colors"
    if is_old:
        (first / "trained.json").unlink()
    answers = first / "predict_eval_predictions.jsonl"
    written = answers.read_text()
    answers.write_text(written.replace("the", "teh"))
    lines: list[str] = []
    summary = learn_run(load_config(config), Progress(lambda event: lines.append(str(event))), repair=True)
    assert [line.rpartition("; ")[2] for line in lines if "again" in line] == ["the stage is scored again"]
    assert summary.R == before.R
    assert answers.read_text() == written
    answers.unlink()  # to save space, which is no damage
    appended = config_of(tmp_path, model, [*tasks, write_task(tmp_path, "shades", ("dark", "pale"))])
    assert learn(appended).status == "complete"
    assert all(path.read_bytes() == content for path, content in weights.items())


def test_an_adapter_after_a_stage_with_other_weights_is_only_scored_again(
    tmp_path: Path, tiny_model: Made
) -> None:
    """What it learned does not depend on them. The run is one of an older version, and the original is gone."""
    model = tiny_model("llama")
    theirs = foreign_adapter(tmp_path / "theirs", model)
    animals = {k: v for k, v in write_task(tmp_path, "animals", ANIMALS).items() if k != "train"}
    config = config_of(
        tmp_path, model, [write_task(tmp_path, "colors", COLORS), {**animals, "adapter": str(theirs)}]
    )
    before = learn(config)
    shutil.rmtree(theirs)
    second = tmp_path / "run/outputs/2-animals"
    (second / "trained.json").unlink()
    sums = json.loads((second / "checksums.json").read_text())
    assert sums["after"]
    (second / "checksums.json").write_text(json.dumps(sums | {"after": "0" * 64}))
    lines: list[str] = []
    again = learn_run(load_config(config), Progress(lambda event: lines.append(str(event))), repair=True)
    assert [line.rpartition("; ")[2] for line in lines if "again" in line] == ["the stage is scored again"]
    assert again.R == before.R


@pytest.mark.parametrize("changes", [{"method": {"name": "replay", "memory": 4}}, {"replay": {"memory": 4}}])
def test_kept_examples_are_not_planned_for_an_adapter(
    tmp_path: Path, tiny_model: Made, changes: dict[str, Any]
) -> None:
    model = tiny_model("llama")
    old = write_task(tmp_path, "old", ANIMALS)
    old = {key: old[key] for key in old if key != "train"}
    old["adapter"] = str(foreign_adapter(tmp_path / "theirs", model))
    colors, cities = (write_task(tmp_path, name, COLORS) for name in ("colors", "cities"))
    plan = make_plan(load_config(config_of(tmp_path, model, [colors, old, cities], **changes)))
    assert [(stage.train_examples, stage.steps) for stage in plan.stages] == [(16, 2), (0, 0), (20, 3)]
    assert [dict(stage.replayed) for stage in plan.stages] == [{}, {}, {"colors": 4}]


def test_after_is_short_for_tasks_with_an_adapter(tmp_path: Path, tiny_model: Made) -> None:
    """They need no examples: they are part of the model, and have no scores."""
    model = tiny_model("llama")
    adapters = [
        str(foreign_adapter(tmp_path / name, model, seed)) for seed, name in enumerate(("old", "older"))
    ]
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)])
    summary = learn(config, f"after={json.dumps(adapters)}")
    assert summary.tasks == ("old", "older", "animals")
    assert summary.R[2][:2] == (None, None)
    assert summary.average_accuracy == summary.R[2][2]
    shutil.rmtree(adapters[0])  # the run has a copy
    assert learn(config, f"after={json.dumps(adapters)}").R == summary.R

    import nlora

    run = nlora.open_run(tmp_path / "run")
    (score,) = run.evaluate().scores
    assert (score.task, score.score) == ("animals", pytest.approx(summary.R[2][2]))
    for told in ({"stage": 1}, {"tasks": ["old"]}):
        with pytest.raises(InputErrors, match=r"^tasks: old: no test examples to score"):
            run.evaluate(**told)
    with pytest.raises(InputErrors, match="at stage 1 of 3, old the run scored no task"):
        run.export(tmp_path / "out", "adapter", stage=1)
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_scores_leaves_the_metrics_of_a_new_run(tmp_path: Path, tiny_model: Made) -> None:
    """Free text has ROUGE-L, also of a task that is appended: no older version scored its stage."""
    model = tiny_model("llama")
    adapter = str(foreign_adapter(tmp_path / "old", model))
    tasks = [write_task(tmp_path, "colors", COLORS), write_task(tmp_path, "animals", ANIMALS)]
    for task in tasks:
        del task["labels"]
    for known in (1, 2):
        learnt = learn(config_of(tmp_path, model, [{"name": "old", "adapter": adapter}, *tasks[:known]]))
    assert learnt.status == "complete"
    assert learnt.metrics == {"colors": "rougeL", "animals": "rougeL"}

    import nlora

    scores = nlora.open_run(tmp_path / "run").evaluate().scores
    assert [(score.task, score.metric) for score in scores] == list(learnt.metrics.items())
    assert [score.score for score in scores] == pytest.approx(learnt.R[2][1:])


def test_an_appended_adapter_of_other_layers_has_no_collisions(tmp_path: Path, tiny_model: Made) -> None:
    model = tiny_model("llama")
    adapter = foreign_adapter(tmp_path / "theirs", model, target_modules=["o_proj"])
    tasks = [write_task(tmp_path, "colors", COLORS), write_task(tmp_path, "animals", ANIMALS)]
    lora = {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    before = learn(config_of(tmp_path, model, tasks, lora=lora)).collision
    tasks.append({"name": "shapes", "adapter": str(adapter)})
    grown = learn(config_of(tmp_path, model, tasks, lora=lora))
    assert (grown.status, grown.tasks) == ("complete", ("colors", "animals", "shapes"))
    assert before is not None
    assert grown.collision is not None
    assert grown.collision.pairs.keys() == before.pairs.keys() == {"colors|animals"}
    assert "colors and shapes have no module in common" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("method", method_names())
def test_every_method_learns_on_or_says_why_not(tmp_path: Path, tiny_model: Made, method: str) -> None:
    """The adapters have the layers that the run trains, fewer, and more."""
    model = tiny_model("llama")
    layers = (["q_proj", "v_proj"], ["q_proj"], ["q_proj", "v_proj", "o_proj"])
    adapters = [
        str(foreign_adapter(tmp_path / f"old{i}", model, seed=i, target_modules=targets))
        for i, targets in enumerate(layers)
    ]
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)], method=method)
    if method in REFUSED:
        with pytest.raises(InputErrors, match=REFUSED[method]) as caught:
            learn(config, f"after={json.dumps(adapters)}")
        assert all(f"after.{i}" in str(caught.value) for i in range(3))
        assert not (tmp_path / "run").exists()
    else:
        assert learn(config, f"after={json.dumps(adapters)}").status == "complete"


def test_seqlora_continues_an_adapter_of_its_own_shape(tmp_path: Path, tiny_model: Made) -> None:
    model = tiny_model("llama")
    adapter = foreign_adapter(tmp_path / "old", model, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)], method="seqlora")
    for targets in (["q_proj"], ["q_proj", "v_proj", "o_proj"]):
        other = foreign_adapter(tmp_path / "other", model, r=4, lora_alpha=8, target_modules=targets)
        with pytest.raises(InputErrors, match=f"name its own there: {', '.join(sorted(targets))}$"):
            learn(config, f"after=[{other}]")
        assert not (tmp_path / "run").exists()
    make_plan(load_config(config, [f"after=[{other}]", f"lora.targets={json.dumps(targets)}"]))
    with pytest.raises(
        InputErrors, match=r"after\.1: seqlora continues one adapter, so only the first task may"
    ):
        learn(config, f"after=[{adapter}, {adapter}]")
    assert learn(config, f"after=[{adapter}]").status == "complete"


def test_adapters_that_do_not_fit_are_one_line(tmp_path: Path, tiny_model: Made) -> None:
    model = tiny_model("llama")
    adapter = foreign_adapter(tmp_path / "old", model)
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: torch.zeros(3, 7) if "lora_A" in key else t for key, t in tensors.items()}, weights)
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)])
    for name, message in (
        ("old", "but the layer is"),
        ("nowhere", "not an adapter, there is no such folder"),
    ):
        with pytest.raises(NloraError, match=message) as caught:
            learn(config, f"after=[{tmp_path / name}]")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_an_adapter_is_taken_in_once(tmp_path: Path, tiny_model: Made) -> None:
    model = tiny_model("llama")
    adapter = foreign_adapter(tmp_path / "old", model)
    (tmp_path / "link").symlink_to(adapter)
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)])
    with pytest.raises(InputErrors, match=r"after\.1: \S*link is given twice; its update would count twice$"):
        learn(config, f"after=[{adapter}, {tmp_path / 'link'}]")
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_an_embedding_is_told_apart_from_a_copy_of_it(tmp_path: Path, tiny_model: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    for copy in (True, False):
        adapted.save_pretrained(tmp_path / "old", save_embedding_layers=copy)
        with pytest.raises(AdapterError, match="adapts an embedding; only LoRA on linear layers can be read"):
            load_factors(tmp_path / "old")


def test_magmax_after_an_adapter_of_other_layers_is_exported_with_them(
    tmp_path: Path, tiny_model: Made
) -> None:
    model = tiny_model("llama")
    adapter = foreign_adapter(tmp_path / "old", model, target_modules=["v_proj", "k_proj"])
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)], method="magmax")
    learn(config, f"after=[{adapter}]")
    run = nlora.open_run(tmp_path / "run")
    run.export(tmp_path / "out", "adapter")
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "out")
    torch.testing.assert_close(logits(exported), logits(run.model()[0]), atol=1e-5, rtol=0)


def test_an_adapter_of_what_is_no_linear_layer_is_one_line(tmp_path: Path, tiny_model: Made) -> None:
    """As the routers of experts, which older versions of transformers had as linear layers."""
    model = tiny_model("llama")
    adapter = foreign_adapter(tmp_path / "old", model)
    weights = adapter / "adapter_model.safetensors"
    tensors = {key.replace("self_attn.q_proj", "input_layernorm"): t for key, t in load_file(weights).items()}
    save_file(tensors, weights)
    config = config_of(tmp_path, model, [write_task(tmp_path, "animals", ANIMALS)])
    with pytest.raises(InputErrors, match=r"layernorm, which is not a linear layer here, but a LlamaRMSNorm"):
        learn(config, f"after=[{adapter}]")


def test_an_adapter_is_not_trained(tmp_path: Path, tiny_model: Made) -> None:
    config = config_of(
        tmp_path, tiny_model("llama"), [{**write_task(tmp_path, "animals", ANIMALS), "adapter": "x"}]
    )
    with pytest.raises(InputErrors, match="has an 'adapter' and a 'train' file; leave one of them out"):
        learn(config)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_copy_of_the_output_layer_is_told_with_the_way_out(tmp_path: Path, tiny_model: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    adapted.save_pretrained(tmp_path / "old")
    with pytest.raises(
        AdapterError, match=r"lm_head\.base_layer\.weight' is a copy .*save_embedding_layers=False"
    ):
        load_factors(tmp_path / "old")
    adapted.save_pretrained(tmp_path / "alone", save_embedding_layers=False)
    assert {name.rpartition(".")[2] for name in load_factors(tmp_path / "alone")} == {"q_proj", "lm_head"}
