"""The log file of a run: the messages of nlora and transformers while the run is open."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from nlora.errors import NloraError
from nlora.runs.atomic import disk_errors

_LOGGERS = ("nlora", "transformers")


class _Handler(logging.FileHandler):
    """Stops at the first line that cannot be written, with one line on the screen: a full disk ends no run here."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        print(f"{self.baseFilename}: {error.strerror}; the run goes on without a log", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is still in the buffer
            super().close()


class RunLog:
    """Appends log messages from `level` up to `path` until closed. Raises RunError if it cannot be written."""

    def __init__(self, path: Path, level: int = logging.INFO) -> None:
        with disk_errors(path):
            path.parent.mkdir(exist_ok=True)
            self._handler = _Handler(path, encoding="utf-8")
        self._handler.setLevel(level)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._handler)
        ours = logging.getLogger(_LOGGERS[0])
        self._level_before = ours.level
        # Python drops INFO unless told otherwise; transformers has its own setting, which stays the user's.
        if ours.getEffectiveLevel() > level:
            ours.setLevel(level)

    def write_failure(self, error: Exception) -> None:
        """The error that ends the run, with its traceback if it is not for the user to correct."""
        trace = None if isinstance(error, NloraError) else error
        logging.getLogger(_LOGGERS[0]).error("%s: %s", type(error).__name__, error, exc_info=trace)

    def close(self) -> None:
        """Detach the file and restore the loggers."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._handler)
        logging.getLogger(_LOGGERS[0]).setLevel(self._level_before)
        self._handler.close()
