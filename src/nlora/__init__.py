"""nlora teaches one language model many tasks, one after another, and keeps it from forgetting.

    nlora demo                       # N-LoRA beside plain incremental LoRA on a small real model
    nlora run my.yaml seed=1         # your model, your tasks

    run = nlora.run("my.yaml")       # the same from Python: docs/api.md
    model, tokenizer = run.model()

The public names are those listed in `__all__`; everything heavy (torch, transformers) is imported
only when it is used, so that `nlora --help` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlora.api.functions import compare, interference, open_run, run
    from nlora.api.opened_run import Run
    from nlora.config.load import load_config
    from nlora.config.schema import Config
    from nlora.errors import (
        AdapterError,
        FetchError,
        InputErrors,
        MissingExtraError,
        ModelError,
        NloraError,
        Problem,
        RunError,
    )
    from nlora.evaluation.continual_metrics import summarize
    from nlora.report.accuracy_matrix import AccuracyMatrix
    from nlora.runs.events import Event

__version__ = "0.1.0"

__all__ = [
    "AccuracyMatrix",
    "AdapterError",
    "Config",
    "Event",
    "FetchError",
    "InputErrors",
    "MissingExtraError",
    "ModelError",
    "NloraError",
    "Problem",
    "Run",
    "RunError",
    "__version__",
    "compare",
    "interference",
    "load_config",
    "open_run",
    "run",
    "summarize",
]

_ROOMS = {
    "api.functions": ("compare", "interference", "open_run", "run"),
    "config.schema": ("Config",),
    "config.load": ("load_config",),
    "runs.events": ("Event",),
    "api.opened_run": ("Run",),
    "report.accuracy_matrix": ("AccuracyMatrix",),
    "evaluation.continual_metrics": ("summarize",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
