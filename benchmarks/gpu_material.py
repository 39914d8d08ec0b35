"""What gpu.py works on: random models of known shapes, random tokens, a run's folder. Nothing is downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nlora.data.task import TokenizedExample
from nlora.models.backbone import Backbone

PAD, END, UNKNOWN = 0, 1, 2
COLORS, ANIMALS = ("red", "green", "blue"), ("fox", "dog", "ox")
WORDS = ["<pad>", "</s>", "<unk>", *COLORS, *ANIMALS, *(f"w{i}" for i in range(91))]
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "narrow": {
        "vocab_size": len(WORDS), "hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "short": {
        "vocab_size": len(WORDS), "hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "0.1B": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "1B": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""narrow has SmolLM2-135M's layers and heads, short its heads, 0.1B is its shape, 1B that of Llama-3.2-1B."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result. verdict: "ok", "failed", "measured", or "skipped: " and why."""

    section: str
    what: str
    value: str
    verdict: str = "measured"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is. batch: examples per step. steps: of a turn."""

    device: str
    small: bool
    rounds: int

    @property
    def batch(self) -> int:
        """Examples per step."""
        return 4 if self.small else 16

    @property
    def steps(self) -> int:
        """Optimizer steps of a turn."""
        return 2 if self.small else 10

    def shape(self, name: str) -> str:
        """The model to take."""
        return "tiny" if self.small else name


def attempt(section: str, what: str, check: Callable[[], tuple[str, bool]]) -> Row:
    """The row of a check that returns what it found and whether that is right; an error is a failure, too."""
    try:
        value, right = check()
    except Exception as error:  # a check that breaks must not lose the others
        first = str(error).strip().partition("\n")[0]
        return Row(section, what, f"{type(error).__name__}: {first}", "failed")
    return Row(section, what, value, "ok" if right else "failed")


def model_of(shape: str, device: str, dtype: str = "float32", *, sharp: bool = False) -> Any:
    """A random, frozen model, the same on every device. sharp: weights so large that predictions differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=8192, pad_token_id=PAD, eos_token_id=END, bos_token_id=END
    )
    # A large model is drawn where it will be; that takes a second instead of a minute.
    with torch.device("cpu" if shape == "tiny" else device):
        model: Any = LlamaForCausalLM(config)
    if sharp:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embed" not in name:
                    parameter.mul_(5)
    return model.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


def tokenizer() -> Any:
    """One token for each of WORDS."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def backbone_of(shape: str, device: str, dtype: str) -> Backbone:
    """The model with its tokenizer."""
    return Backbone(model_of(shape, device, dtype), tokenizer(), encoder_decoder=False, name=shape)


def examples_of(
    count: int, *, shared: int = 60, rests: tuple[int, int] = (20, 120), vocabulary: int = len(WORDS)
) -> list[TokenizedExample]:
    """Random tokens: a common beginning, a rest of random length, an answer of two."""
    draw = random.Random(0)
    beginning = [draw.randrange(3, vocabulary) for _ in range(shared)]

    def example() -> TokenizedExample:
        rest = [draw.randrange(3, vocabulary) for _ in range(draw.randint(*rests))]
        return TokenizedExample([*beginning, *rest], [draw.randrange(3, vocabulary), END])

    return [example() for _ in range(count)]


def write_run(folder: Path, shape: str, dtype: str, device: str, rows: int) -> Path:
    """A folder with a model, two tasks and the configuration of a run over them; returns the configuration."""
    model = folder / "model"
    model_of(shape, device, dtype, sharp=shape == "tiny").save_pretrained(model)
    tokenizer().save_pretrained(model)
    tasks = [_write_task(folder, "colors", COLORS, rows), _write_task(folder, "animals", ANIMALS, rows)]
    values = {
        "name": "gpu",
        "model": str(model),
        "dtype": dtype,
        "tasks": tasks,
        "method": {"name": "nlora"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3},
        "output_dir": str(folder / "run"),
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return config


def _write_task(folder: Path, name: str, labels: Sequence[str], rows: int) -> dict[str, Any]:
    draw = random.Random(name)
    files = {}
    for split in ("train", "test"):
        files[split] = str(folder / f"{name}-{split}.jsonl")
        Path(files[split]).write_text("".join(_lines(draw, labels, rows)), encoding="utf-8")
    return {"name": name, **files, "instruction": "w1 w2 w3 w4", "labels": list(labels)}


def _lines(draw: random.Random, labels: Sequence[str], rows: int) -> Iterator[str]:
    for i in range(rows):
        words = [f"w{draw.randrange(91)}" for _ in range(draw.randint(8, 40))]
        label = labels[i % len(labels)]
        yield json.dumps({"sentence": " ".join([*words, label]), "label": label}) + "\n"
