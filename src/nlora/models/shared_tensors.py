"""Tensors that the processes of a machine hold once, together.

The first process of each machine writes them into memory that has a file descriptor but no name (`memfd_create`), and
the others open it through /proc. Nothing has to be removed: the kernel frees the memory when the last process that maps
it ends, however it ends. It does not count against /dev/shm, which containers often make small.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from nlora.models import processes


def once_per_machine(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of these tensors on the CPU, the same for all processes of a machine.

    All processes have to call it, with equal tensors. The copies are to be read only: what a process writes into them,
    the others may not see. A process has copies of its own if it is alone, if it cannot see the memory of the others
    (a container of its own), and on systems other than Linux.

    >>> copies = once_per_machine({"weight": torch.ones(2, 3)})
    >>> copies["weight"].sum()
    tensor(6.)
    """
    if processes.size() == 1 or sys.platform != "linux":
        return _copies(tensors)
    machines = processes.gather(_machine())
    first = machines.index(machines[processes.rank()])
    written = _written(tensors) if first == processes.rank() else None
    names = processes.gather(f"/proc/{os.getpid()}/fd/{written.fileno()}" if written else "")
    try:
        return _mapped(names[first], tensors)
    except RuntimeError:  # torch's, where /proc hides the files of other processes
        return _copies(tensors)
    finally:
        processes.barrier()  # before the descriptor is closed
        if written:
            written.close()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _machine() -> tuple[str, str]:
    """What only processes that see one another in /proc have in common."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # unknown: none but this process
        return platform.node(), str(os.getpid())


def _written(tensors: Mapping[str, Tensor]) -> IO[bytes]:
    """Memory without a name that holds the tensors' bytes, one after another."""
    file = os.fdopen(os.memfd_create("nlora"), "wb", buffering=0)
    for tensor in tensors.values():
        rest = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        while rest:  # a write takes 2 GiB at most
            rest = rest[file.write(rest) :]
    return file


def _mapped(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of a file's bytes, of these tensors' types and shapes."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    everything = torch.from_file(name, shared=False, size=sum(sizes), dtype=torch.uint8)
    parts = torch.split(everything, sizes)
    return {
        key: part.view(tensor.dtype).view(tensor.shape)
        for part, (key, tensor) in zip(parts, tensors.items(), strict=True)
    }
