"""What a launcher (torchrun, accelerate launch, srun, `nlora run --processes`) says about a run's processes.

Launchers speak through environment variables. torchrun's are RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT. Without RANK and WORLD_SIZE it is one process. Slurm's are translated into these. Nothing
here imports torch.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from nlora.errors import RunError

Environment = Mapping[str, str]

BY_NLORA = "NLORA_LAUNCHED"
"""Set by `nlora run --processes`, which itself tells about a process that was killed."""

_SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
             "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
             "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism of its own"}  # fmt: skip
_FIRST_PORT, _PORTS = 12_000, 20_000  # below the ports that Linux gives to outgoing connections


@dataclass(frozen=True, slots=True)
class Launch:
    """One process of a group: its number, the number of all, and the same on its own machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def launch_of(environment: Environment) -> Launch | None:
    """What torchrun's variables say; None if this process is alone.

    Raises RunError if they are incomplete.
    """
    size, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
    if size is None or rank is None or size < 2:
        return None
    if missing := [
        name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)
    ]:
        raise RunError(
            f"RANK and WORLD_SIZE are set, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not; "
            "start the processes with torchrun, or unset RANK and WORLD_SIZE"
        )
    local = _number(environment, "LOCAL_RANK") or 0
    return Launch(rank, size, local, _number(environment, "LOCAL_WORLD_SIZE") or 1)


def rank_to_be(environment: Environment) -> int:
    """The number that a process will have once it joins others; 0 if it never will."""
    with suppress(RunError):
        launch = launch_of({**environment, **from_slurm(environment)})
        return 0 if launch is None else launch.rank
    return 0


def refuse_other_models(environment: Environment) -> None:
    """Raise RunError if accelerate is set up to split the model over the processes, or to compile it."""
    for variable, name in _SHARDING.items():
        if environment.get(variable, "").lower() in ("true", "1", "yes"):
            raise RunError(
                f"{variable}: accelerate is configured for {name}, which would split the adapters as well; start plain "
                "data parallelism (nlora run --processes N, or accelerate launch --multi_gpu), with fsdp=true if one "
                "GPU cannot hold the backbone"
            )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise RunError(
            "ACCELERATE_DYNAMO_BACKEND: accelerate is configured to compile the model, which nlora's faster ways do "
            "not allow; give accelerate launch --dynamo_backend no"
        )


@contextmanager
def without_rank(environment: MutableMapping[str, str]) -> Iterator[None]:
    """A block without LOCAL_RANK, which a launch of one process leaves behind: accelerate would wait for others."""
    rank = environment.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if rank is not None:
            environment["LOCAL_RANK"] = rank


def lone_note(environment: Environment) -> str | None:
    """Why only one process runs where several seem to be wanted; None if nothing looks like it."""
    if environment.get("RANK"):
        return None
    if "ACCELERATE_USE_CPU" in environment and environment.get("MASTER_ADDR"):
        return (
            "accelerate launch started a single process, as it does without a GPU, whatever --num_processes says; "
            "nlora run --processes N starts several"
        )
    if (_number(environment, "WORLD_SIZE") or 1) > 1:
        return (
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but no launcher has started this process (RANK is not set), "
            "so it runs alone; nlora run --processes N starts several"
        )
    return None


def from_slurm(environment: Environment) -> dict[str, str]:
    """torchrun's variables for a task of an srun step with several tasks; empty if this is none.

    A batch script is no task of a step: it has SLURM_NTASKS, but not SLURM_STEP_NUM_TASKS. Raises RunError if the
    machine of the first task cannot be found out.
    """
    size, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
    if environment.get("RANK") or environment.get("WORLD_SIZE") or size is None or rank is None or size < 2:
        return {}
    job = _number(environment, "SLURM_JOB_ID") or 0
    step = _number(environment, "SLURM_STEP_ID") or 0
    here = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": here[0] if here else "1",
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_machine(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + (job + step) % _PORTS),
    }


def threads(environment: Environment, processes_here: int) -> int:
    """How many threads a process should use: its share of the cores, or what Slurm gave it."""
    given = _number(environment, "SLURM_CPUS_PER_TASK")
    return given or max(1, cores() // max(processes_here, 1))


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_machine(environment: Environment) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if _number(environment, "SLURM_STEP_NUM_NODES") == 1:
        return "127.0.0.1"
    if nodes and not set(nodes) & set("[,"):
        return nodes
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise RunError(
            f"SLURM_STEP_NODELIST: scontrol cannot list the machines of {nodes or 'this step'}; set MASTER_ADDR to the "
            "first one's name"
        ) from error


def _number(environment: Environment, name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else None
