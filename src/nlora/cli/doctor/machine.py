"""Processor, GPUs and memory, and what keeps nlora from using them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from nlora.cli.doctor.section import Section
from nlora.errors import with_class

_DRIVER = Path("/proc/driver/nvidia/gpus")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time and the period that they are for, or `max`, of a container on Linux."""
LEAST_MEMORY_BYTES = int(2.3 * 2**30)
"""The demo's model takes 2.3 GiB where it is trained (docs/performance.md)."""
_OPENMP = re.compile(r"lib(gomp|iomp5|omp)\b")


def devices() -> Section:
    """The GPUs, as the driver and as torch see them, and the processor's cores and threads."""
    section = Section("devices")
    torch = sys.modules.get("torch")
    _gpus(section, torch)
    _threads(section, torch)
    if torch is not None:
        from nlora.runs.time_estimate import bfloat16_gain

        section.facts["bfloat16"] = f"matrix products {bfloat16_gain():.1f} times as fast as in float32"
    runtimes = _openmp_runtimes()
    if len(runtimes) > 1:
        section.wrong(
            "OpenMP",
            f"{' and '.join(runtimes)} are loaded together, which is slow and can hang; "
            "install torch and numpy from one place, both with pip or both with conda, in a new environment",
        )
    return section


def memory() -> Section:
    """The memory that a run could use."""
    from nlora.report.formatting import memory as text
    from nlora.runs.machine_memory import free_bytes, total_bytes

    section = Section("memory")
    free = free_bytes("cpu") or 0
    section.facts["free"] = f"{text(free)} of {text(total_bytes())}"
    if free < LEAST_MEMORY_BYTES:
        section.wrong(
            "memory",
            f"{text(free)} are free, and training the default model takes {text(LEAST_MEMORY_BYTES)}; "
            "close other programs, or raise the limit of the container",
        )
    return section


def _gpus(section: Section, torch: Any) -> None:
    driver = _driver_gpus()
    seen = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(number) for number in range(seen)]
    section.facts["GPUs"] = ", ".join(names) or "none"
    if driver and not seen and torch is not None:
        section.facts["GPUs"] = f"none that torch sees; the driver lists {', '.join(driver)}"
        section.wrong("GPU", _why_unseen(torch))


def _why_unseen(torch: Any) -> str:
    """Why torch does not see the GPU that the driver has, and the remedy."""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA; pip install --force-reinstall torch, "
            "or see https://pytorch.org/get-started/locally"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not re.match(r"\d|GPU-|MIG-", hidden.strip()):
        return f"CUDA_VISIBLE_DEVICES is '{hidden}', which hides all GPUs; unset it, or set it to 0"
    reason = "it does not say why"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
        except Exception as error:
            reason = with_class(error)
    return (
        f"torch {torch.__version__} cannot use it ({reason}); "
        f"update the driver, or install a torch build for an older CUDA than {torch.version.cuda}"
    )


def _driver_gpus() -> list[str]:
    """The GPUs that NVIDIA's driver lists, by name."""
    if tool := shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True)
            return re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", done.stdout, re.MULTILINE)
    with suppress(OSError):
        texts = [file.read_text(encoding="utf-8") for file in sorted(_DRIVER.glob("*/information"))]
        return [found[1].strip() if (found := re.search(r"Model:(.+)", text)) else "a GPU" for text in texts]
    return []


def _threads(section: Section, torch: Any) -> None:
    from nlora.models.launchers import cores

    quota = _cpu_quota()
    usable = cores() if quota is None else min(cores(), max(1, round(quota)))
    limit = "" if quota is None else f", a container's limit of {quota:g}"
    section.facts["cores"] = f"{cores()} of {os.cpu_count()}{limit}"
    variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    given = ", ".join(f"{name}={value}" for name, value in variables.items() if value)
    threads = torch.get_num_threads() if torch is not None else None
    section.facts["threads"] = f"{threads or 'unknown'} ({given or 'OMP_NUM_THREADS is not set'})"
    if threads is not None and threads > usable:
        section.wrong(
            "threads",
            f"torch uses {threads} on {usable} {'core' if usable == 1 else 'cores'}, which is slow; "
            f"export OMP_NUM_THREADS={usable}",
        )


def _cpu_quota() -> float | None:
    """The cores' worth of time that a container may use; None if it is not limited."""
    with suppress(OSError, ValueError):
        quota, period = _CPU_LIMIT.read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    return None


def _openmp_runtimes() -> list[str]:
    """The kinds of OpenMP runtime that are loaded; several copies of one kind get along."""
    import psutil

    try:
        paths = [loaded.path for loaded in psutil.Process().memory_maps()]
    except (psutil.Error, NotImplementedError, AttributeError):  # macOS has no such list
        return []
    return sorted({f"lib{found[1]}" for path in paths if (found := _OPENMP.match(Path(path).name))})
