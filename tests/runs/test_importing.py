"""Imports without garbage collection, which goes on after them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from nlora.runs.importing import importing


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.enable()


def test_garbage_is_collected_again_after_the_imports_also_if_one_fails() -> None:
    found = []

    def imports() -> None:
        with importing():
            found.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        imports()
    assert found == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_what_the_host_has_frozen_stays_frozen() -> None:
    gc.freeze()
    with importing():
        pass
    assert gc.get_freeze_count() > 0
