"""Work shared among threads, module by module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """work(item) of each item, in order, in torch's number of threads. Within `work` torch uses a single thread.

    Much of the work is numpy's, which is single-threaded: threads that share a matrix product would mostly wait.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) == 1:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
