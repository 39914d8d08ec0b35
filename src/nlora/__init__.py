"""nlora teaches one language model many tasks, one after another, and keeps it from forgetting.

    nlora demo                       # N-LoRA, no protection, and a few kept examples, on a small real model
    nlora run my.yaml seed=1         # your model, your tasks

The same from Python (docs/api.md):

>>> run = nlora.run("support.yaml")
>>> model, tokenizer = run.model()

`__all__` lists the public names. torch and transformers are imported on first use, so `import nlora` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlora.api.functions import compare, gate, interference, open_run, run
    from nlora.api.next_task import NextTask, next_task
    from nlora.api.run import Run
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
    from nlora.kernels.l1 import factor_l1, update_l1
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
    "NextTask",
    "NloraError",
    "Problem",
    "Run",
    "RunError",
    "__version__",
    "compare",
    "factor_l1",
    "gate",
    "interference",
    "load_config",
    "next_task",
    "open_run",
    "run",
    "summarize",
    "update_l1",
]

_NAMES = {
    "api.functions": ("compare", "gate", "interference", "open_run", "run"),
    "api.next_task": ("NextTask", "next_task"),
    "api.run": ("Run",),
    "config.load": ("load_config",),
    "config.schema": ("Config",),
    "evaluation.continual_metrics": ("summarize",),
    "kernels.l1": ("factor_l1", "update_l1"),
    "report.accuracy_matrix": ("AccuracyMatrix",),
    "runs.events": ("Event",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
