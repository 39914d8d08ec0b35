"""Tries out an installed nlora, from the recipe to a merged model, on a tiny random model. Needs no network.

    /path/to/venv/bin/python tools/smoke.py

`python tools/release.py` runs it in an empty environment with nothing but the wheel. It uses no file of the checkout.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = {"tickets": ("billing", "network"), "reviews": ("positive", "negative")}
"""The tasks of the recipe `recommended` -> their labels."""
STEPS = (
    "cp recommended mine.yaml",
    "check mine.yaml model=tiny train.epochs=1",
    "run mine.yaml model=tiny train.epochs=1",
    "predict runs/mine --task tickets --file new.txt",
    "compare runs/mine",
    "report runs/mine",
    "export runs/mine --as merged exported",
)


def main() -> None:
    """Exit status 0 if everything works."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"HF_HUB_OFFLINE": "1", "NLORA_CACHE": str(Path(folder, "cache"))}
        import nlora

        if not Path(nlora.__file__).is_relative_to(sys.prefix):
            sys.exit(f"{nlora.__file__} is tried out, not what is installed in {sys.prefix}")
        script = Path(sys.executable).with_name("nlora")
        version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
        _expect(version == f"nlora {nlora.__version__}\n", f"nlora --version printed {version}")
        _check_doctor()
        _write_files()
        for step in STEPS:
            print(f"nlora {step}", flush=True)
            _expect(_nlora(step)[0] == 0, f"nlora {step} failed")
        _expect(Path("runs/mine/report.html").stat().st_size > 10_000, "the report is too short")
        _load_exported()


def _check_doctor() -> None:
    """No package may be missing, too old or broken. What else the doctor says is about the machine."""
    status, out = _nlora("doctor --json")
    told = json.loads(out)
    print(
        json.dumps(told["problems"], indent=2) if told["problems"] else "nlora doctor: nothing is wrong",
        flush=True,
    )
    _expect(status == bool(told["problems"]), f"nlora doctor ended with {status}")
    wrong = [problem for problem in told["problems"] if "pip install" in problem["what"]]
    _expect(not wrong, f"nlora doctor found wrong packages: {wrong}")


def _write_files() -> None:
    """The model, and the data files that the recipe names."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([word for labels in FILES.values() for word in labels], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained("tiny")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained("tiny")
    for name, labels in FILES.items():
        rows = [f"a text about {label} number {number},{label}" for number in range(20) for label in labels]
        Path(f"{name}.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    Path("new.txt").write_text("a text about billing\n", encoding="utf-8")


def _load_exported() -> None:
    """What was exported is a model that transformers alone loads and runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained("exported"),
        AutoTokenizer.from_pretrained("exported"),
    )
    logits = model(**tokenizer("a text", return_tensors="pt")).logits
    _expect(bool(logits.isfinite().all()), "the exported model gives no numbers")


def _nlora(line: str) -> tuple[int, str]:
    """The exit status of a command and what it printed; in this process, as importing torch takes seconds."""
    from nlora.cli.app import main as command_line

    sys.argv = ["nlora", *line.split()]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            command_line()
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"smoke test: {otherwise}")


if __name__ == "__main__":
    main()
