"""The keys of a sweep's file that say what each run needs of a cluster: `ray` and `slurm`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field, TypeAdapter, ValidationError, field_validator

from nlora.config.frozen import Frozen

_SET_BY_NLORA = {
    "array",
    "open-mode",
    "output",
    "error",
    "signal",
    "requeue",
    "no-requeue",
    "ntasks-per-node",
}
_KEY_OF_OPTION = {
    "partition": "partition",
    "time": "time",
    "gpus-per-node": "gpus",
    "cpus-per-task": "cpus",
    "mem": "memory",
}
"""Options of sbatch that have a key of their own."""
_SMALLEST_MEMORY = 2**20
"""Slurm counts in megabytes, and takes 0 as all the memory of a node."""
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def _bytes(value: Any) -> Any:
    if value is None:
        return None
    try:
        found = int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError as error:
        raise ValueError(f"must be a number of bytes or a text such as 16G, not {value!r}") from error
    if found < _SMALLEST_MEMORY:
        raise ValueError(f"{value} is only {found:,} bytes; write a text such as 16G")
    return found


def _minutes(value: Any) -> Any:
    """Minutes, from a number of them or one of the forms that Slurm knows; seconds are rounded up."""
    if value is None:
        return None
    found = _TIME.fullmatch(str(value)) if not isinstance(value, bool) else None
    if found is None:
        what = f"must be minutes, or a text such as 4:00:00 (hours) or 2-12 (days and hours), not {value!r}"
        raise ValueError(what)
    parts = [int(part) for part in found["rest"].split(":")]
    # Without days, Slurm reads 5 as minutes and 5:30 as minutes and seconds; after days, both begin with hours.
    if found["days"] is None and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return (int(found["days"] or 0) * 24 + hours) * 60 + minutes + (seconds > 0)


Memory = Annotated[int, BeforeValidator(_bytes)]
"""Bytes; a text such as 16G is 16e9 of them, and 16GiB is 16 * 2**30."""
Minutes = Annotated[int, BeforeValidator(_minutes)]


class RayOptions(Frozen):
    """What one run needs of a Ray cluster."""

    gpus: float | None = Field(
        None, ge=0, description="GPUs of each process of a run; null: 1 if the cluster has any."
    )
    cpus: float = Field(1, gt=0, description="CPU cores of each process of a run.")
    memory: Memory | None = Field(None, description="Memory of each run, such as 16G; null: not asked for.")
    address: str | None = Field(
        None, min_length=1, description="Of the cluster, as host:port; null: RAY_ADDRESS, or this machine."
    )
    retries: int = Field(3, ge=0, description="How often a run resumes after its worker or node died.")


class SlurmOptions(Frozen):
    """What one run needs of a Slurm cluster."""

    partition: str | None = Field(None, min_length=1, description="Partition; null: the cluster's default.")
    time: Minutes = Field(1440, description="Time limit of each run: minutes, or a text such as 4:00:00.")
    gpus: int = Field(1, ge=0, description="GPUs of each process of a run.")
    cpus: int = Field(1, ge=1, description="CPU cores of each process of a run.")
    memory: Memory | None = Field(None, description="Memory of each run, such as 16G; null: the default.")
    array: int | None = Field(None, ge=1, description="Most runs at once; null: as many as Slurm allows.")
    requeue: int = Field(
        3, ge=0, description="How often a run goes back to the queue at its time limit, to resume."
    )
    sbatch: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Any other options of sbatch, such as {account: me}."
    )

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        named = {key.lstrip("-").replace("_", "-"): value for key, value in given.items()}
        for option in named:
            if option in _KEY_OF_OPTION:
                raise ValueError(f"give '{option}' as slurm: {{{_KEY_OF_OPTION[option]}: ...}}")
            if option in _SET_BY_NLORA:
                raise ValueError(f"'{option}' is set by the sweep itself; remove it")
        return named
