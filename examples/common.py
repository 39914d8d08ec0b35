"""What the four examples share: their arguments, the model, and the tokens of a file of prompts and completions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or folder")
    parser.add_argument(
        "--data", default=HERE / "tickets.jsonl", help="JSON lines with prompt and completion"
    )
    parser.add_argument(
        "--after", nargs="*", default=[], help="adapters or runs of nlora, in order of learning"
    )
    parser.add_argument("--out", default="adapters/tickets", help="folder for the new adapter")
    parser.add_argument("--weight", type=float, default=3e-5, help="of N-LoRA's penalty")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def load(name: str) -> tuple[Any, Any]:
    """A model in float32, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(name, dtype="float32"), tokenizer


def read(file: str) -> list[dict[str, str]]:
    """The prompts and completions."""
    lines = Path(file).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def tokenize(rows: list[dict[str, str]], tokenizer: Any) -> list[dict[str, list[int]]]:
    """input_ids, and labels that count the completion and its end token only."""
    examples = []
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        answer = [*tokenizer(row["completion"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        examples.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return examples
