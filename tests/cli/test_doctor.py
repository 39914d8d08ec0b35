"""`nlora doctor` finds what is wrong with a machine, and says one line for each."""

from __future__ import annotations

import importlib.metadata
import json
import locale
import os
import subprocess
import sys
import tomllib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from huggingface_hub import constants

from nlora.cli.doctor import machine, software, storage
from nlora.runs import machine_memory, time_estimate

Nlora = Callable[..., Any]
Patch = pytest.MonkeyPatch
GIB = 1 << 30


@pytest.fixture
def machine_is_well(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A machine on which nothing is wrong; the folder with its caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(machine_memory, "_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(time_estimate, "bfloat16_gain", lambda: 0.5)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB, total=16 * GIB))
    _disk(monkeypatch, 20 * GIB)
    _loaded(
        monkeypatch,
        "/env/torch.libs/libgomp-a34b3233.so.1",
        "/env/scikit_learn.libs/libgomp-e985bcbb.so.1.0.0",
    )
    return tmp_path


def _disk(monkeypatch: Patch, free: int) -> None:
    usage = namedtuple("usage", "total used free")(free, 0, free)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)


def _loaded(monkeypatch: Patch, *paths: str) -> None:
    maps = [SimpleNamespace(path=path) for path in paths]
    monkeypatch.setattr(psutil.Process, "memory_maps", lambda self: maps)


def _installed(monkeypatch: Patch, package: str, version: str | None) -> None:
    """As if the package had this version, or were missing."""
    real = importlib.metadata.version

    def fake(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


def _driver_has_a_gpu(folder: Path) -> None:
    tool = folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5ca1ab1e)'\n")
    tool.chmod(0o755)


def old_peft(folder: Path, monkeypatch: Patch) -> None:
    _installed(monkeypatch, "peft", "0.15.2")


def no_accelerate(folder: Path, monkeypatch: Patch) -> None:
    _installed(monkeypatch, "accelerate", None)


def broken_peft(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)


def old_extra(folder: Path, monkeypatch: Patch) -> None:
    _installed(monkeypatch, "tensorboard", "1.15")


def cache_is_no_folder(folder: Path, monkeypatch: Patch) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("NLORA_CACHE", str(folder / "file/cache"))


def hub_cannot_be_written(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/hub")


def cpu_build(folder: Path, monkeypatch: Patch) -> None:
    _driver_has_a_gpu(folder)
    monkeypatch.setattr(torch.version, "cuda", None)


def cpu_build_without_the_tool(folder: Path, monkeypatch: Patch) -> None:
    (folder / "driver/0000:01:00.0").mkdir(parents=True)
    (folder / "driver/0000:01:00.0/information").write_text("Model: \t\t NVIDIA A100\nIRQ: 44\n")
    monkeypatch.setattr(torch.version, "cuda", None)


def hidden_gpu(folder: Path, monkeypatch: Patch) -> None:
    _driver_has_a_gpu(folder)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def old_driver(folder: Path, monkeypatch: Patch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    _driver_has_a_gpu(folder)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)


def too_many_threads(folder: Path, monkeypatch: Patch) -> None:
    (folder / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)


def two_openmp(folder: Path, monkeypatch: Patch) -> None:
    _loaded(monkeypatch, "/conda/lib/libiomp5.so", "/env/torch.libs/libgomp-a34b3233.so.1")


def offline(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def little_memory(folder: Path, monkeypatch: Patch) -> None:
    (folder / "memory.max").write_text(str(GIB))


def little_disk(folder: Path, monkeypatch: Patch) -> None:
    _disk(monkeypatch, GIB // 2)


def latin_locale(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale=True: "ISO-8859-1")


def test_a_machine_on_which_nothing_is_wrong(machine_is_well: Path, nlora: Nlora) -> None:
    (machine_is_well / "cache/tokens").mkdir(parents=True)
    (machine_is_well / "cache/tokens/a.npz").write_bytes(b"x" * (3 << 20))
    told = nlora("doctor")
    assert told.status == 0, told.out
    for said in (torch.__version__, "8.", "of 16.00 GiB", "20.00 GiB free", "Nothing is wrong."):
        assert said in told.out
    assert ["tokens", "3", "MiB"] in [line.split() for line in told.out.splitlines()]


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (old_peft, 'peft: is 0.15.2, but nlora needs >=0.21; pip install "peft>=0.21"'),
        (no_accelerate, 'accelerate: is not installed; pip install "accelerate>=1.10"'),
        (broken_peft, "peft: cannot be imported (ModuleNotFoundError: import of peft halted"),
        (old_extra, 'tensorboard: is 1.15, but nlora needs >=2.18; pip install "tensorboard>=2.18"'),
        (cache_is_no_folder, "file/cache cannot be written (Not a directory); set NLORA_CACHE to a folder"),
        (
            hub_cannot_be_written,
            "hub cache: /proc/hub cannot be written (No such file or directory); set HF_HOME",
        ),
        (cpu_build, "is a build without CUDA; pip install --force-reinstall torch"),
        (cpu_build_without_the_tool, "is a build without CUDA; pip install --force-reinstall torch"),
        (hidden_gpu, "GPU: CUDA_VISIBLE_DEVICES is '', which hides all GPUs; unset it"),
        (
            old_driver,
            "cannot use it (RuntimeError: The NVIDIA driver on your system is too old); update the driver",
        ),
        (too_many_threads, "threads: torch uses 64 on 1 core, which is slow; export OMP_NUM_THREADS=1"),
        (two_openmp, "OpenMP: libgomp and libiomp5 are loaded together"),
        (offline, "HF_HUB_OFFLINE: is set, and no model of the hub is in"),
        (little_memory, "memory: 1.00 GiB are free, and training the default model takes 2.30 GiB"),
        (little_disk, "current folder: only 512 MiB are free in"),
        (latin_locale, "locale: texts are ISO-8859-1, not UTF-8; export PYTHONUTF8=1"),
    ],
)
def test_each_fault_is_one_line_with_its_remedy(
    machine_is_well: Path, nlora: Nlora, monkeypatch: Patch, fault: Callable[..., None], line: str
) -> None:
    fault(machine_is_well, monkeypatch)
    told = nlora("doctor")
    assert told.status == 1
    heading, *problems = told.out[told.out.rindex("problem") :].splitlines()
    assert heading in ("problem:", "problems:")
    assert len(problems) == (2 if fault is little_disk else 1)  # the two folders lie on one disk
    assert line in problems[-1]
    assert "Traceback" not in told.err


def test_a_missing_extra_is_no_problem_and_has_its_command(
    machine_is_well: Path, nlora: Nlora, monkeypatch: Patch
) -> None:
    _installed(monkeypatch, "tensorboard", None)
    told = nlora("doctor")
    assert told.status == 0
    assert 'missing: pip install "tensorboard>=2.18"' in told.out


def test_the_json_has_what_the_screen_has_and_not_the_name_of_the_user(
    machine_is_well: Path, nlora: Nlora, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("HOME", str(machine_is_well))
    old_peft(machine_is_well, monkeypatch)
    told = nlora("doctor", "--json")
    values = json.loads(told.out)
    assert told.status == 1
    assert values["problems"] == [
        {"where": "peft", "what": 'is 0.15.2, but nlora needs >=0.21; pip install "peft>=0.21"'}
    ]
    assert values["packages"]["torch"] == torch.__version__
    assert values["caches"]["nlora"] == "~/cache (not made yet)"
    assert str(machine_is_well) not in told.out


def test_a_hub_model_in_the_cache_is_listed_and_enough_to_be_offline(
    machine_is_well: Path, nlora: Nlora, monkeypatch: Patch
) -> None:
    snapshot = machine_is_well / "hub/models--Qwen--Qwen3-0.6B/snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b" " * (2 << 20))
    (machine_is_well / "hub/models--Qwen--Qwen3-0.6B/refs").mkdir()
    (machine_is_well / "hub/models--Qwen--Qwen3-0.6B/refs/main").write_text("0123abc")
    offline(machine_is_well, monkeypatch)
    told = nlora("doctor")
    assert told.status == 0, told.out
    assert ["Qwen/Qwen3-0.6B", "2", "MiB"] in [line.split() for line in told.out.splitlines()]


def test_it_starts_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(
        "raise OSError('libcudart.so.13: cannot open shared object file')"
    )
    source = str(Path(software.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])}
    environment |= {"NLORA_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "nlora", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "torch: cannot be imported (OSError: libcudart.so.13: cannot open shared object file); pip"
        in done.stdout
    )
    assert done.stderr == ""


def test_every_extra_says_what_it_is_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - software._NOT_FOR_USERS == set(software.EXTRAS)
