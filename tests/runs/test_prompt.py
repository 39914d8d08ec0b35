"""The prompt on file is the prompt that was asked: plain PEFT and transformers give the run's answers with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from helpers import learn, write_config, write_task
from nlora.report.forgotten_examples import prompts_of
from nlora.report.run_files import load_run
from tiny import load

TinyModel = Callable[[str], Path]
BRACES = "Answer with {one} word: {0}, {}"


@pytest.fixture(scope="module")
def lines(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel
) -> tuple[Path, list[dict[str, Any]]]:
    """A run that generates, of two tasks whose instructions hold braces; and what its last stage wrote."""
    folder = tmp_path_factory.mktemp("prompt")
    labels = {"tints": ("red", "green"), "beasts": ("fox", "dog")}
    tasks = [{**write_task(folder, name, words), "instruction": BRACES} for name, words in labels.items()]
    for task in tasks:
        file = Path(task["test"])
        file.write_text(file.read_text().replace("number 3", r"{0}\nnumber {3}"))
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "max_target_tokens": 6}
    evaluate = {"batch_size": 4, "decode": "generate"}
    learn(write_config(folder, tiny_model("llama"), tasks=tasks, train=train, evaluate=evaluate))
    text = (folder / "run/outputs/2-beasts/predict_eval_predictions.jsonl").read_text()
    return folder / "run", [json.loads(line) for line in text.splitlines()]


def test_plain_peft_gives_the_runs_answers_with_it(
    lines: tuple[Path, list[dict[str, Any]]], tiny_model: TinyModel
) -> None:
    run, rows = lines
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    adapters = [str(run / f"outputs/{stage}/adapter") for stage in ("1-tints", "2-beasts")]
    model: Any = PeftModel.from_pretrained(load(tiny_model("llama")), adapters[0], adapter_name="tints")
    model.load_adapter(adapters[1], adapter_name="beasts")
    model.base_model.set_adapter(["tints", "beasts"])

    def answer(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.eval().generate(**inputs, max_new_tokens=6, do_sample=False)
        text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()

    predictions = [row["Prediction"] for row in rows]
    assert [answer(row["Prompt"]) for row in rows] == predictions
    instances = [row["Instance"] for row in rows]
    released = [answer(each["instruction"].replace("{0}", each["sentence"])) for each in instances]
    assert released != predictions, "the two lines more must matter for the test to say anything"


def test_it_stands_beside_the_released_field(lines: tuple[Path, list[dict[str, Any]]]) -> None:
    _, rows = lines
    assert len(rows) == 18
    for row in rows:
        sentence, task = row["Instance"]["sentence"], row["Dataset"]
        options = {"tints": "red, green", "beasts": "fox, dog"}[task]
        released = f"{BRACES}\nOption: {options} \n{{0}}\nAnswer:"
        assert row["Instance"]["instruction"] == released
        assert (
            row["Prompt"] == f"Task:{task}\nDataset:{task}\n{BRACES}\nOption: {options} \n{sentence}\nAnswer:"
        )


def test_the_page_shows_it_to_the_character(lines: tuple[Path, list[dict[str, Any]]]) -> None:
    run, rows = lines
    shown = prompts_of(load_run(run))
    assert list(shown) == ["tints", "beasts"]
    first = {row["Dataset"]: row["Prompt"] for row in reversed(rows)}
    assert {task: prompt.text for task, prompt in shown.items()} == first
