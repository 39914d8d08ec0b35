"""Fixtures that every test may use: random tiny models with a tokenizer of their own, and the shared folder."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

# pytest --hypothesis-profile=thorough draws at random, and many more.
settings.register_profile("quick", derandomize=True, deadline=None, database=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("quick")
gc.disable()  # see pytest_collection_finish
# Nothing in the tests may reach a hub; the one fetch of the built-in default goes to the package index.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny runs would wait for the disk much of their time. Only a power cut would tell the difference.
os.fsync = lambda descriptor: None

TEXT = (
    "Task:TC Dataset:agnews What is the topic of the following paragraph? Choose one from the option. "
    "Option: World, Sports, Business, Science or Technology Title: Text: Answer: very negative, negative, neutral, "
    "positive, very positive the quick brown fox jumps over the lazy dog and runs to the market to sell its stock"
)
TINY = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """nohup ignores SIGHUP, and a shell ignores SIGINT for what it starts with &. The tests of signals send both."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    """A test that leaves a handler of a signal behind would stop the process of one that sends that signal."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    if after != before:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert after == before


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, files with slow ones come first, so that none is left over at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_this_module_only() -> Iterator[None]:
    """torch, transformers and the tests are half a million objects that stay: a search among them takes a second."""
    gc.freeze()
    yield
    gc.unfreeze()


def shared_folder() -> Path:
    """Where the reference data lie: NLORA_SHARED, else the folder `shared` beside the checkout."""
    return Path(os.environ.get("NLORA_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data and golden numbers, which are not part of the repository."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"the reference data is not part of the repository and {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[[bool], Any]:
    """make(encoder_decoder) -> a byte-level BPE of 400 pieces: pad 0, eos 1; an encoder's inputs end with eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(encoder_decoder: bool) -> Any:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=TINY["vocab_size"],
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator([TEXT] * 4, trainer)
        if encoder_decoder:
            backend.post_processor = processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", 1)]
            )
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")

    return make


def _config(family: str) -> Any:
    import transformers

    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    if family in {"llama", "qwen2", "gemma", "mistral"}:
        make = getattr(
            transformers,
            {
                "llama": "LlamaConfig",
                "qwen2": "Qwen2Config",
                "gemma": "GemmaConfig",
                "mistral": "MistralConfig",
            }[family],
        )
        # Two key-value heads for four query heads: v is not square.
        return make(
            **TINY,
            intermediate_size=64,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
            **ids,
        )
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=1024, **ids
        )
    if family == "opt":
        return transformers.OPTConfig(
            vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
            word_embed_proj_dim=32, max_position_embeddings=1024, **ids,
        )  # fmt: skip
    if family == "t5":
        return transformers.T5Config(
            vocab_size=400, d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
    raise KeyError(family)


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[bool], Any]
) -> Callable[[str], Path]:
    """make(family) -> folder of a random tiny model with its tokenizer, always the same weights.

    Families: llama, qwen2, gemma, mistral (grouped-query attention, v is 16 x 32), gpt2, opt, t5.
    """
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            import torch
            from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
            from transformers.utils import logging

            logging.disable_progress_bar()  # it would stand in the output that tests look at
            config = _config(family)
            with torch.random.fork_rng():
                torch.manual_seed(7)
                kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
                model = kind.from_config(config)
                # Random initializations are so small that every prediction is the same: spread them.
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if parameter.dim() > 1 and "embed" not in name:
                            parameter.mul_(5)
            folder = tmp_path_factory.mktemp(f"tiny-{family}")
            model.save_pretrained(folder)
            tiny_tokenizer(config.is_encoder_decoder).save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


class Told:
    """Exit status and what was printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def nlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """nlora("run", file, ...) -> Told; wide enough that no message is wrapped."""
    from nlora.cli import app

    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Told:
        monkeypatch.setattr("sys.argv", ["nlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        return Told(int(stop.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def tiny_family(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """make(model type, **changes of its config) -> a random tiny model of any family that transformers lists."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from tiny_families import FAMILIES, tiny_config, tiny_model

    def make(family: str, **changes: Any) -> Any:
        config = tiny_config(family)
        for name, value in changes.items():
            setattr(config, name, value)
        return tiny_model(config, FAMILIES[family])

    return make


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A folder with support.yaml, its data, and the run that `nlora run` made of it; screen.txt has its output."""
    from helpers import desk_values

    folder = tmp_path_factory.mktemp("desk")
    (folder / "support.yaml").write_text(yaml.safe_dump(desk_values(folder, tiny_model("llama"))))
    command = [sys.executable, "-m", "nlora", "run", "support.yaml"]
    with (folder / "screen.txt").open("w") as screen:
        subprocess.run(command, cwd=folder, check=True, stdout=screen, stderr=subprocess.STDOUT)
    return folder


@pytest.fixture
def here(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    copy = tmp_path / "desk"
    shutil.copytree(desk, copy)
    monkeypatch.chdir(copy)
    return copy
