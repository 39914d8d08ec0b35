"""The processes that compute one run together: which one this is, and how they agree, wait and fail.

Every process runs the same program on other examples. The main one (rank 0) alone writes and prints. Decisions that
depend on the disk, and results that only one process has, go from it to the others (`from_main`). Outside of `joined`,
and with one process inside it, everything here is free and torch is not imported.

Messages between the processes take gloo, on the processor, whatever the gradients take.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from nlora.errors import NloraError, RunError
from nlora.models import launchers

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""How long a process waits for another one, which may be tokenizing or writing the report. One that has died is noticed
at once, by its closed connections or by the launcher."""


LOST = "another process of this run has ended, perhaps killed; the same command resumes the run"


@dataclass(frozen=True, slots=True)
class _Group:
    rank: int
    size: int
    messages: Any = None
    """torch's process group for messages."""


_ALONE = _Group(0, 1)
_joined: _Group | None = None  # the group of several, which a process joins once
_current = _ALONE
_common_error: BaseException | None = None  # raised here because the main process has raised it
_may_speak: bool | None = None  # whether this process was the first to fail, once that is known


@contextmanager
def joined() -> Iterator[None]:
    """A block that all processes of a run enter: in it `size` is their number. It may be nested.

    Raises RunError if the launcher's environment is incomplete, asks for a split model, or gives several processes a
    GPU.
    """
    global _current
    before = _current
    _current = _joined or _start()
    try:
        with launchers.without_rank(os.environ) if _current is _ALONE else nullcontext():
            yield
    finally:
        _current = before


@contextmanager
def _alone() -> Iterator[None]:
    """A block of one process, in which it waits for no other."""
    global _current
    before = _current
    _current = _ALONE
    try:
        yield
    finally:
        _current = before


def size() -> int:
    """The number of processes."""
    return _current.size


def rank() -> int:
    """The number of this process, from 0."""
    return _current.rank


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return _current.rank == 0


def from_main(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The main process calls; every process gets what it returns, or raises what it raises."""
    if size() == 1:
        return call(*args, **kwargs)
    if not is_main():
        value, error = _broadcast(None)
        if error is not None:
            raise _remembered(error)
        return value  # type: ignore[no-any-return]
    try:
        with _alone():
            value = call(*args, **kwargs)
    except NloraError as error:
        _broadcast((None, error))
        raise
    except Exception as error:
        _broadcast((None, RuntimeError(f"{type(error).__name__}: {error}")))
        raise
    _broadcast((value, None))
    return value


def by_main(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function that writes: `from_main` calls it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return from_main(function, *args, **kwargs)

    return call


def main_first(call: Callable[[], T]) -> T:
    """What each process's own call returns. The others call once the main one is done, and raise what it raises.

    For what leaves files that the others then read: downloads, token ids.
    """
    if size() == 1:
        return call()
    kept: list[T] = []
    from_main(lambda: kept.append(call()))
    with _alone():
        return kept[0] if kept else call()


def gather(value: T) -> list[T]:
    """The value of every process, by rank."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_current.messages)
    return values


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


def largest(*numbers: int) -> list[int]:
    """The largest of each number over the processes. Cheaper than `gather`: it may be called in every step."""
    if size() == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    found = torch.tensor(numbers)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_current.messages)
    return found.tolist()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place and on the CPU, by its sum over the processes."""
    if size() > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor, group=_current.messages)


def refuse(command: str) -> None:
    """Raise RunError if a launcher has started several processes, each of which would do all that the command does."""
    launch = launchers.launch_of(os.environ | launchers.from_slurm(os.environ))
    if launch is None:
        return
    error = RunError(
        f"{command} takes one process, but a launcher has started {launch.size}; leave the launcher out (under Slurm, "
        "srun --ntasks=1)"
    )
    raise error if launch.rank == 0 else _remembered(error)


def several() -> bool:
    """Whether this process has joined others, in a block of `joined` or before."""
    return _joined is not None


def speaks(error: BaseException) -> bool:
    """Whether this process tells the user about the error that ends it, so that one text appears.

    The first one to fail does; but nlora's own launcher tells about the loss of a process.
    """
    return is_first(error) and not (lost_process(error) and os.environ.get(launchers.BY_NLORA))


def is_first(error: BaseException) -> bool:
    """Whether no other process has failed before; an error that the main process shared is the main process's."""
    global _may_speak
    if error is _common_error:
        return False
    if not several():  # alone, or still starting, where all are stopped alike
        return isinstance(error, Exception) or launchers.rank_to_be(os.environ) == 0
    if _may_speak is None:
        _may_speak = not lost_process(error)  # if whoever keeps the count is gone, too
        with suppress(Exception):
            _may_speak = store().add("failed", 1) == 1
    return _may_speak


def store() -> Any:
    """What all processes read and write even while they fail: torch's store, with names of its own."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore("nlora", _get_default_store())


def lost_process(error: BaseException) -> bool:
    """Whether an error means that another process has gone."""
    if not several() or not isinstance(error, RuntimeError | ConnectionError):
        return False
    dist: Any = sys.modules["torch.distributed"]
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


def _remembered(error: BaseException) -> BaseException:
    global _common_error
    _common_error = error
    return error


def _broadcast(outcome: Any) -> Any:
    import torch.distributed as dist

    box = [outcome]
    dist.broadcast_object_list(box, src=0, group=_current.messages)
    return box[0]


def _start() -> _Group:
    """Join the group that the environment describes; the group of one if it describes none."""
    global _joined
    os.environ.update(launchers.from_slurm(os.environ))
    launch = launchers.launch_of(os.environ)
    try:
        launchers.refuse_other_models(os.environ)
        if launch is not None:
            _joined = _join(launch)
    except RunError as error:
        if launch is not None and launch.local_rank:  # all those of a machine find the same
            _remembered(error)
        raise
    return _joined or _ALONE


def _join(launch: launchers.Launch) -> _Group:
    # Before torch is imported, which reads them.
    os.environ.setdefault("OMP_NUM_THREADS", str(launchers.threads(os.environ, launch.local_size)))
    # Else every process warns that DistributedDataParallel looks for unused parameters, though it may find none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    has_accelerator = torch.accelerator.is_available()
    here = max(launch.local_size, launch.local_rank + 1)
    if has_accelerator and here > (count := torch.accelerator.device_count()):
        raise RunError(
            f"{here} processes were started on this machine, but only {count} GPU{'s' if count > 1 else ''} can be "
            "seen; start one process for each GPU"
        )
    if (
        not has_accelerator
    ):  # Else accelerate's device is cpu:0, to which torch copies weights that a file is mapped for.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    # Without `cpu`, accelerate leaves each process alone on a machine without a GPU.
    state = PartialState(cpu=not has_accelerator, timeout=_PATIENCE)
    if state.num_processes != launch.size:
        raise RunError(
            f"accelerate was set up for {state.num_processes} process before this run, which {launch.size} processes "
            "share; start the run first, or set accelerate up with Accelerator(cpu=True)"
        )
    atexit.register(_leave)
    messages = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _Group(launch.rank, launch.size, messages)


def _leave() -> None:
    import torch.distributed as dist

    if _may_speak is None and _common_error is None and dist.is_initialized():  # else the others may be gone
        dist.destroy_process_group()
