"""What the fuzzer runs: functions of bytes, in which any error but those that nlora means to raise is a finding.

    TARGETS["readers"](b"...", folder)      # writes into the folder only

All is well with an input if it is read, or refused with `Problem`s: each one line that can be printed, with its place.
Nothing may be written outside of the folder, which an audit hook watches (`only_in`).
"""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlora.config.load import dump, load_config
from nlora.config.schema import Config
from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.readers import FORMATS, READERS
from nlora.data.rows import as_line
from nlora.data.texts import read_texts
from nlora.errors import InputErrors, Problem

OVERRIDES = b"\n#=\n"
"""Ends the YAML of an input for `config`; each further line is an override, as the shell gives it."""
FIELDS = (
    Fields(),
    Fields(text=("question",), label=("answer",)),
    Fields(template="{text} ({lang})"),
    Fields(label_names={"0": "no", "1": "yes", "true": "yes"}),
    Fields(messages=("turns",), chat=True),
)
LABELS: tuple[tuple[str, ...] | None, ...] = (None, ("billing", "network"), ("no", "yes"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def readers(data: bytes, folder: Path) -> None:
    """A file of examples. The first byte chooses its suffix, the second one fields, labels and quoting."""
    if len(data) < 2:
        return
    kind, choice, content = data[0], data[1], data[2:]
    suffixes = [*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS)]
    suffix = suffixes[kind % len(suffixes)]
    path = folder / f"rows{suffix}"
    is_packed = suffix.endswith(".gz") and kind < 128  # the others are most likely no gzip files
    path.write_bytes(gzip.compress(content, 1, mtime=0) if is_packed else content)
    labels = LABELS[choice % len(LABELS)]
    examples, problems = read_examples(
        str(path),
        labels=labels,
        quoting=(None, True, False)[choice // 3 % 3],
        fields=FIELDS[choice // 9 % len(FIELDS)],
    )
    check_problems(problems, str(path))
    assert examples or problems, "a file without examples is a mistake"
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        for text in (example.sentence, example.label, *example.others):
            assert text.strip() or example.chat, "an empty text"
            text.encode()
        assert labels is None or {example.label, *example.others} <= set(labels)


def texts(data: bytes, folder: Path) -> None:
    """The input of `nlora predict`. The first byte chooses its format or none, and its fields."""
    if not data:
        return
    kinds = [None, *READERS]
    kind = kinds[data[0] % len(kinds)]
    fields = FIELDS[data[0] // len(kinds) % len(FIELDS)]
    try:
        rows = list(read_texts(None, io.BytesIO(data[1:]), kind=kind, fields=fields))
    except InputErrors as error:
        check_problems(error.problems)
        return
    for row in rows:
        fields.text_of(row).encode()
        as_line(row).encode()


def config(data: bytes, folder: Path) -> None:
    """A YAML file and overrides. What is accepted is the same after it is written and read again."""
    text, _, rest = data.partition(OVERRIDES)
    path = folder / "run.yaml"
    path.write_bytes(text)
    overrides = [line.decode("utf-8", "surrogateescape") for line in rest.split(b"\n") if line]
    try:
        loaded = load_config(path, overrides)
    except InputErrors as error:
        check_problems(error.problems)
        return
    path.write_text(dump(loaded.config), encoding="utf-8")
    again = load_config(path).config
    assert again == loaded.config, "another configuration after it is written and read"
    for task in loaded.config.tasks:
        loaded.config.train_options(task.name)
    _read_files(loaded.config, folder)


TARGETS: dict[str, Callable[[bytes, Path], None]] = {"readers": readers, "texts": texts, "config": config}


def check_problems(problems: Sequence[Problem], file: str = "") -> None:
    """Raises AssertionError for a problem that is not one printable line with its place."""
    for problem in problems:
        shown = str(problem)
        assert len(shown.splitlines()) == 1, f"not one line: {shown!r}"
        assert problem.where.startswith(file), f"without its file: {shown}"
        assert problem.where, f"without a place: {shown}"
        assert problem.what.strip(), f"says nothing: {shown}"
        shown.encode()


def _read_files(config: Config, folder: Path) -> None:
    """The files that tasks name, if they are to be looked for in the folder."""
    for source in (file for task in config.tasks for file in (task.train, task.test) if file):
        if not source.startswith(("hub:", "/", "~/", "~root")) and ".." not in source:
            check_problems(read_examples(source, labels=None, folders=[folder])[1])


@contextmanager
def only_in(folder: Path) -> Iterator[None]:
    """Raises AssertionError if anything is written, removed, started or sent outside of the folder."""
    watch = _Watch(str(folder.resolve()))
    _watches.append(watch)
    if len(_watches) == 1 and not _is_hooked:
        sys.addaudithook(_audit)  # cannot be removed again
        _is_hooked.append(True)
    try:
        yield
    finally:
        _watches.remove(watch)
    assert not watch.found, f"outside of the folder: {watch.found}"


class _Watch:
    """What happened outside of a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.found: list[str] = []

    def see(self, event: str, paths: Iterable[Any]) -> None:
        for path in paths:
            place = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
            if place and not f"{place}/".startswith(f"{self.folder}/"):
                self.found.append(f"{event} {place}")


_watches: list[_Watch] = []
_is_hooked: list[bool] = []
_CHANGES = {
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
}
"""Audit events -> how many of their first arguments are paths that change."""
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watches or ():  # None while Python ends
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITING:
                watch.see(event, arguments[:1])
        elif event in _CHANGES:
            watch.see(event, arguments[: _CHANGES[event]])
        elif event in _NEVER:
            watch.found.append(event)
