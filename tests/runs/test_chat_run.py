"""A run of two tasks of conversations: learned, resumed, evaluated, asked, exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlora
from chat_models import save_model, template, with_template
from helpers import learn, same_outcome
from nlora.data.chat import messages_of
from nlora.data.token_cache import TokenCache
from nlora.errors import InputErrors
from nlora.runs.layout import PREDICTIONS_FILE

WORDS = {"colors": ("red", "green", "blue"), "animals": ("fox", "dog", "ox")}


def chats(task: str, split: str, count: int) -> list[dict[str, Any]]:
    """Two turns each; the last answer is a word for colors, and a sentence for animals."""
    words, rows = WORDS[task], []
    for i in range(count):
        word, other = words[i % 3], words[(i + 1) % 3]
        answer = other if task == "colors" else f"the {other}"
        turns = [
            ("system", "Be quick"),
            ("user", f"the {word} thing number {i} of {split}"),
            ("assistant", word),
        ]
        turns += [("user", f"and {other}?"), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[[str], Path],
    tiny_tokenizer: Callable[[bool], Any],
) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = with_template(tiny_tokenizer(False), template("qwen2_5"))
    save_model(folder / "model", tiny_model("llama"), tokenizer)
    tasks: list[dict[str, Any]] = [{"name": "colors", "labels": list(WORDS["colors"])}, {"name": "animals"}]
    for task in tasks:
        for split, count in (("train", 12), ("test", 6)):
            file = folder / f"{task['name']}-{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in chats(task["name"], split, count)))
            task[split] = str(file)
    values = {
        "model": str(folder / "model"),
        "tasks": tasks,
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "train": {"epochs": 6, "batch_size": 4, "learning_rate": 2e-2, "max_target_tokens": 12},
        "evaluate": {"batch_size": 4},
        "output_dir": str(folder / "run"),
    }
    (folder / "chat.yaml").write_text(yaml.safe_dump(values))
    learn(folder / "chat.yaml")
    return folder / "chat.yaml"


def answers(run: Path, task: str) -> list[tuple[str, str]]:
    """(conversation, answer) of a task after the last stage."""
    lines = map(json.loads, (run / "outputs" / "2-animals" / PREDICTIONS_FILE).read_text().splitlines())
    return [(row["Instance"]["sentence"], row["Prediction"]) for row in lines if row["Dataset"] == task]


def test_the_last_turn_is_the_reference(config: Path) -> None:
    run = nlora.open_run(config.parent / "run")
    assert run.summary.metrics == {"colors": "exact_match", "animals": "rougeL"}
    assert answers(run.folder, "animals")[0][0] == (
        "system: Be quick\nuser: the fox thing number 0 of test\nassistant: fox\nuser: and dog?"
    )
    assert {answer for _, answer in answers(run.folder, "colors")} <= set(WORDS["colors"])


def test_a_stopped_run_ends_as_one_that_was_not(config: Path, tmp_path: Path) -> None:
    whole = nlora.open_run(config.parent / "run")
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "outputs" / "2-animals")
    assert same_outcome(learn(config, f"output_dir={tmp_path / 'run'}"), whole.summary)
    assert answers(tmp_path / "run", "animals") == answers(whole.folder, "animals")


def test_a_changed_conversation_is_not_resumed(config: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "outputs" / "2-animals")
    rows = chats("colors", "train", 12)
    rows[3]["messages"][2]["content"] = "ox"  # an earlier answer
    file = config.parent / "colors-train.jsonl"
    before = file.read_text()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        with pytest.raises(InputErrors, match="its train examples are not the ones stage 1 was trained on"):
            learn(config, f"output_dir={tmp_path / 'run'}")
    finally:
        file.write_text(before)


def test_evaluate_and_predict_give_the_answers_of_the_run(config: Path) -> None:
    with nlora.open_run(config.parent / "run") as run:
        evaluation = run.evaluate()
        assert {s.task: s.score for s in evaluation.scores} == {
            task: run.accuracy_matrix["animals", task] for task in WORDS
        }
        rows = chats("animals", "test", 6)
        expected = [answer for _, answer in answers(run.folder, "animals")]
        assert run.predict(rows, task="animals") == expected
        for row in rows:
            row["messages"].pop()  # without the answer
        assert run.predict(rows, task="animals") == expected
        alone = [{"messages": [{"role": "user", "content": "the fox"}]}]
        assert run.predict(["the fox"], task="animals") == run.predict(alone, task="animals")
        with pytest.raises(InputErrors, match="no field 'messages'"):
            run.predict([{"sentence": "the fox"}], task="animals")


def test_the_merged_export_chats_alike_in_transformers(config: Path, tmp_path: Path) -> None:
    run = nlora.open_run(config.parent / "run")
    # As published models have them. transformers would refuse to write these once they are changed.
    published = {"temperature": 0.9, "top_p": 0.6}
    settings = Path(yaml.safe_load(config.read_text())["model"]) / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | published))
    try:
        run.export(tmp_path / "out", "merged")
    finally:
        settings.write_text(before)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {key: written[key] for key in published} == published
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    # The template's end of a turn is not the model's own end token: without it, a server would write on.
    assert model.generation_config.eos_token_id == [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]
    for conversation, answer in answers(run.folder, "animals"):
        messages = [message._asdict() for message in messages_of(conversation)]
        batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            found = model.generate(**batch, max_new_tokens=12, do_sample=False)
        words = tokenizer.decode(found[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert words.strip() == answer


def test_the_page_and_check_show_the_conversation(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nlora.cli.check import check

    check(str(config))
    shown = capsys.readouterr().out
    assert "colors: its first conversation, with what is learned between « and »" in shown
    assert "<|im_start|>assistant\n«red<|im_end|>»\n<|im_start|>user\nand green?<|im_end|>" in shown
    page = (config.parent / "run" / "report.html").read_text(encoding="utf-8")
    assert "before the chat template writes it" in page
    assert "assistant: red\nuser: and green?</pre>" in page


def test_the_cache_knows_templates_apart(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlora.config.load import load_config
    from nlora.data import token_cache
    from nlora.data.load import load_tasks
    from nlora.data.tokenize import ExampleTokenizer

    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", 0)
    loaded = load_config(config)
    task = load_tasks(loaded.config)[1]
    tokenizer = AutoTokenizer.from_pretrained(loaded.config.model)

    def encode(all_turns: bool) -> list[Any]:
        encoder = ExampleTokenizer(
            tokenizer,
            encoder_decoder=False,
            max_source_tokens=200,
            max_target_tokens=12,
            cache=TokenCache(tokenizer, tmp_path),
        )
        return list(encoder.encode(task, task.train, all_turns=all_turns))

    first = encode(True)
    assert encode(True) == first
    assert len(list(tmp_path.iterdir())) == 1
    assert encode(False) != first
    tokenizer.chat_template = template("llama3")
    assert encode(True) != first
    assert len(list(tmp_path.iterdir())) == 3
