"""Answers are in the order of the examples, equal in batches and one by one, and say how they were decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import learn, write_config
from nlora.config.schema import Config, EvaluateOptions
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.evaluation.evaluator import Answers, Evaluator
from nlora.models.backbone import Backbone, load_backbone
from nlora.runs.stage_results import score, scores_of
from nlora.runs.task_records import task_record

TinyModel = Callable[[str], Path]
LABELS = ("World", "Sports", "Business", "Science or Technology")
TEXTS = ["the market", "a quick brown fox jumps over the lazy dog", "to sell its stock", "x", "Title: Text:"]


def task(labels: tuple[str, ...] | None = LABELS) -> Task:
    test = tuple(Example(str(i), text, (labels or TEXTS)[i % 4]) for i, text in enumerate(TEXTS))
    return Task("news", "TC", "What is the topic?", labels, test, test)


def parts(model: Path, **options: Any) -> tuple[Backbone, ExampleTokenizer, Evaluator]:
    backbone = load_backbone(str(model))
    encoder = ExampleTokenizer(
        backbone.tokenizer,
        encoder_decoder=backbone.encoder_decoder,
        max_source_tokens=128,
        max_target_tokens=16,
    )
    return backbone, encoder, Evaluator(backbone, encoder, EvaluateOptions(**options))


@pytest.mark.parametrize("decode", ["labels", "generate"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "t5"])
def test_batches_answer_like_one_at_a_time(tiny_model: TinyModel, family: str, decode: str) -> None:
    _, _, single = parts(tiny_model(family), decode=decode, batch_size=1)
    _, _, batched = parts(tiny_model(family), decode=decode, batch_size=3)
    one, many = single.answer(task()), batched.answer(task())
    assert many.texts == one.texts
    assert many.decode == decode
    assert (one.batches, many.batches) == (5, 2)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_generation_is_greedy_token_by_token(tiny_model: TinyModel, family: str) -> None:
    backbone, encoder, evaluator = parts(tiny_model(family), decode="generate")
    model: Any = backbone.model
    expected = []
    for example in task().test:
        prompt, answer = encoder.prompt_ids(task(), example), [0] if family == "t5" else []
        while len(answer) < 16 + (family == "t5"):
            with torch.no_grad():
                if family == "t5":
                    logits = model(
                        input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([answer])
                    ).logits
                else:
                    logits = model(input_ids=torch.tensor([prompt + answer])).logits
            answer.append(int(logits[0, -1].argmax()))
            if answer[-1] == encoder.end_id:
                break
        expected.append(str(backbone.tokenizer.decode(answer, skip_special_tokens=True)).strip())
    answers = evaluator.answer(task())
    assert list(answers.texts) == expected
    assert answers.answer_tokens is not None
    assert 1 <= answers.answer_tokens <= 16


@pytest.mark.parametrize("decode", ["labels", "generate"])
def test_equal_prompts_are_answered_once(tiny_model: TinyModel, decode: str) -> None:
    _, _, evaluator = parts(tiny_model("llama"), decode=decode, batch_size=2)
    once = evaluator.answer(task())
    test = tuple(Example(str(i), TEXTS[i % 3], LABELS[0]) for i in range(9))
    twice = replace(task(), name="news", test=test)
    _, _, evaluator = parts(tiny_model("llama"), decode=decode, batch_size=2)
    counts: list[int] = []
    answers = evaluator.answer(twice, counts.append)
    assert answers.texts == tuple(once.texts[i % 3] for i in range(9))
    assert answers.batches == len(counts) == 2
    assert sum(counts) == 9


def test_the_common_beginning_of_a_tasks_prompts_runs_once(tiny_model: TinyModel) -> None:
    backbone, encoder, evaluator = parts(tiny_model("llama"), decode="labels", batch_size=2)
    model: Any = backbone.model
    shapes: list[tuple[int, ...]] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, ids, output: shapes.append(tuple(ids[0].shape))
    )
    evaluator.answer(task())
    hook.remove()
    prompts = [encoder.prompt_ids(task(), example) for example in task().test]
    shared = next(i for i in range(999) if len({tuple(p[: i + 1]) for p in prompts}) > 1)
    longest = sorted((len(prompt) - shared for prompt in prompts), reverse=True)
    passes = [sum(longest[i : i + 2]) for i in range(0, len(longest), 2)]
    passes[0] += shared
    ran = iter([tokens for _, tokens in shapes])
    assert all(tokens in ran for tokens in passes)  # in this order; between them, labels' tokens
    assert sum(tokens for _, tokens in shapes) < sum(map(len, prompts)) - shared


def test_a_models_own_generation_settings_are_applied(tiny_model: TinyModel) -> None:
    backbone, encoder, plain = parts(tiny_model("llama"), decode="generate")
    model: Any = backbone.model
    without = plain.answer(task()).texts
    model.generation_config.repetition_penalty = 5.0
    found = Evaluator(backbone, encoder, EvaluateOptions(decode="generate")).answer(task()).texts
    expected = []
    for example in task().test:
        prompt = torch.tensor([encoder.prompt_ids(task(), example)])
        output = model.generate(prompt, max_new_tokens=16, do_sample=False, repetition_penalty=5.0)
        answer = output[0, prompt.shape[1] :]
        expected.append(str(backbone.tokenizer.decode(answer, skip_special_tokens=True)).strip())
    assert list(found) == expected
    assert found != without


def test_free_text_is_always_generated(tmp_path: Path, tiny_model: TinyModel) -> None:
    _, _, evaluator = parts(tiny_model("llama"), decode="labels")
    assert evaluator.answer(task(labels=None)).decode == "generate"
    entry = {"name": "free", "train": str(tmp_path / "a.jsonl"), "test": str(tmp_path / "b.jsonl")}
    (tmp_path / "a.jsonl").write_text('{"input": "the fox", "output": "the dog"}\n' * 4)
    (tmp_path / "b.jsonl").write_text('{"input": "a fox", "output": "the dog"}\n' * 4)
    summary = learn(write_config(tmp_path, tiny_model("llama"), tasks=[entry]))
    assert summary.R[0][0] is not None
    results = json.loads((tmp_path / "run/outputs/1-free/predict_results.json").read_text())
    assert results["decode"] == "generate"
    assert "predict_rougeL_for_free" in results


def test_accuracy_is_exact_match_after_the_released_normalization() -> None:
    right = Answers(("world", "Sports.", " business ", "science-or-technology", "x"), "generate", 1.0, 1)
    # Case, punctuation and spaces do not count; a hyphen joins words, so the fourth is wrong.
    assert score(task(), right, "exact_match") == pytest.approx(60.0)
    other = Task("other", "TC", "", LABELS, task().train, task().test)
    facts = {"news": task_record(task(), Config.model_validate({"tasks": ["news", "other"]}))}
    assert scores_of([task(), other], {"news": right}, facts) == {"news": pytest.approx(60.0)}
