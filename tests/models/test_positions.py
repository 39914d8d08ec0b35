"""Tables of positions: their limit is where the model itself stops, and a run stays within it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import nlora
from helpers import learn, write_config
from nlora.cli.check import check
from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.models.positions import Positions, positions_of
from nlora.runs.plan import make_plan

POSITIONS = 64
IDS = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": POSITIONS}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
BERT |= {"max_position_embeddings": POSITIONS}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": POSITIONS}
BART |= {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("attention_heads", 4), ("ffn_dim", 32))
}
BART |= {"decoder_start_token_id": 1, "forced_eos_token_id": None}
LIMITED: dict[str, tuple[dict[str, Any], Positions]] = {
    "GPT2": (GPT, Positions(64, None)),
    "GPTJ": ({**GPT, "rotary_dim": 8}, Positions(64, None)),
    "CTRL": ({**GPT, "dff": 32}, Positions(64, None)),
    "OPT": ({**BERT, "ffn_dim": 32, "word_embed_proj_dim": 32}, Positions(64, None)),
    "BioGpt": (BERT, Positions(64, None)),
    # Their positions start after that of padding, which is 0 here.
    "Camembert": ({**BERT, "is_decoder": True}, Positions(63, None)),
    "Bert": ({**BERT, "is_decoder": True}, Positions(64, None)),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": POSITIONS}, Positions(64, None)),
    "Bart": (BART, Positions(64, 64)),
    "Marian": (BART, Positions(64, 64)),
}  # fmt: skip
UNLIMITED: dict[str, dict[str, Any]] = {
    "Llama": BERT,
    "GPTNeoX": BERT,
    "Bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 4},
    "M2M100": BART,
    "T5": {
        "d_model": 32,
        "d_ff": 32,
        "d_kv": 8,
        "num_heads": 4,
        "num_layers": 1,
        "decoder_start_token_id": 0,
    },
}


def model_of(family: str, options: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{family}Config")(**options, **IDS)
    kinds = transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM
    return kinds[config.is_encoder_decoder].from_config(config).eval()


def reads(model: Any, tokens: int, answer: int) -> None:
    ids = torch.full((1, max(tokens, answer)), 7)
    more = {"decoder_input_ids": ids[:, :answer]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=ids[:, :tokens], **more)


@pytest.mark.parametrize("family", LIMITED)
def test_the_limit_is_where_the_model_stops(family: str) -> None:
    options, limits = LIMITED[family]
    model = model_of(family, options)
    assert positions_of(model) == limits
    assert limits.text is not None
    reads(model, limits.text, limits.answer or 1)
    with pytest.raises((IndexError, RuntimeError)):
        reads(model, limits.text + 1, 1)
    if limits.answer is not None:
        with pytest.raises((IndexError, RuntimeError)):
            reads(model, 1, limits.answer + 1)


@pytest.mark.parametrize("family", UNLIMITED)
def test_computed_positions_are_no_limit(family: str) -> None:
    model = model_of(family, UNLIMITED[family])
    assert positions_of(model) == Positions(None, None)
    reads(model, POSITIONS + 8, POSITIONS + 8)


# In a run


def write_run(folder: Path, tokenizer: Callable[[bool], Any], family: str = "GPT2") -> Path:
    """A run of a model with 64 positions; every fourth text is longer than that."""
    model = model_of(family, LIMITED[family][0])
    model.save_pretrained(folder / "model")
    tokenizer(model.config.is_encoder_decoder).save_pretrained(folder / "model")
    config = write_config(
        folder, folder / "model", train={"epochs": 1, "batch_size": 8, "max_target_tokens": 8}
    )
    config.write_text(
        config.read_text().replace("Which word is in the text? Choose one from the option.", "Which?")
    )
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows[::4]:
            row["sentence"] += " and the market" * 30
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config


@pytest.mark.parametrize("decode", ["labels", "generate"])
def test_prompts_and_answers_stay_within_the_table(
    tmp_path: Path, tiny_tokenizer: Callable[[bool], Any], decode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, tiny_tokenizer)
    overrides = [f"evaluate.decode={decode}"]
    plan = make_plan(load_config(str(config), overrides))
    longest = [max(lengths) for lengths in (rows.lengths for rows in plan.encoded)]
    assert longest[0] <= POSITIONS
    if decode == "generate":  # an answer may take 8 tokens
        assert max(len(e.prompt_ids) for rows in plan.encoded for e in rows) == POSITIONS - 8
    else:
        assert longest[0] in (POSITIONS - 1, POSITIONS)  # a cut text may tokenize one shorter
    assert learn(config, *overrides).status == "complete"
    # A new text may be longer than any before.
    (answer,) = nlora.open_run(tmp_path / "run").predict(["the fox " * 200], task="animals", decode=decode)
    assert answer is not None


def test_an_encoder_and_its_decoder_have_separate_limits(
    tmp_path: Path, tiny_tokenizer: Callable[[bool], Any]
) -> None:
    config = write_run(tmp_path, tiny_tokenizer, "Bart")
    plan = make_plan(load_config(str(config), ["train.max_target_tokens=100", "train.max_source_tokens=500"]))
    assert max(len(e.prompt_ids) for rows in plan.encoded for e in rows) == POSITIONS
    assert plan.encoder.max_target_tokens == POSITIONS
    assert plan.limits == [
        "prompts are cut at 64 tokens: the model has 64 positions",
        "answers are cut at 64 tokens: the model's decoder has 64 positions",
    ]
    assert make_plan(load_config(str(config), ["train.max_source_tokens=60"])).limits == []


def test_check_says_where_prompts_are_cut(
    tmp_path: Path,
    tiny_tokenizer: Callable[[bool], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_run(tmp_path, tiny_tokenizer)
    monkeypatch.setenv("COLUMNS", "200")
    check(str(config))
    said = capsys.readouterr().out
    plan = make_plan(load_config(config))
    low, high = (POSITIONS - len(plan.encoder.answer_ids(word)) for word in ("green", "ox"))
    assert f"prompts are cut at {low} to {high} tokens: the model has 64 positions" in said
    # 4 of 16 texts to train on are long, and 3 of 9 to test on; the first task's instruction fills its prompts.
    assert re.search(r"animals .* 4\+3 ", said)


def test_an_instruction_that_leaves_no_position_for_a_text(
    tmp_path: Path, tiny_tokenizer: Callable[[bool], Any]
) -> None:
    config = write_run(tmp_path, tiny_tokenizer)
    overrides = ["evaluate.decode=generate", "train.max_target_tokens=40"]
    with pytest.raises(InputErrors) as caught:
        make_plan(load_config(str(config), overrides))
    assert re.fullmatch(
        r"its instruction and options alone take \d+ tokens, but the model has 64 positions, 40 of them for the "
        "answer; shorten them, or lower train.max_target_tokens",
        caught.value.problems[0].what,
    )
    assert len(caught.value.problems) == 2
