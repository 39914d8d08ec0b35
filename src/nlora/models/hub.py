"""The Hugging Face hub when it cannot be reached."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator

_PROBE_SECONDS = 2.0
_REMEMBERED_SECONDS = 60.0


@contextlib.contextmanager
def offline_without_hub() -> Iterator[None]:
    """In this block the hub's client uses its cache only, as with HF_HUB_OFFLINE=1, if the hub does not answer.

    Otherwise it would repeat each request for 23 seconds before it fails.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _hub_answers(int(time.monotonic() / _REMEMBERED_SECONDS)):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@functools.lru_cache(maxsize=1)
def _hub_answers(period: int) -> bool:
    """Whether the hub answers at all. period: the answer is remembered for one."""
    from huggingface_hub import constants, get_session

    answered = False

    def ask() -> None:
        nonlocal answered
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
            answered = True

    # The time limit of a request does not cover the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answered
