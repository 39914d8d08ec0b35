"""What to say about the memory that a run will need, and what to change if it will not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nlora.errors import with_class
from nlora.models.backbone import load_skeleton
from nlora.models.inspection import MODEL_RAISES
from nlora.models.quantization import stored_format
from nlora.runs.memory_estimate import MemoryEstimate, estimate_memory
from nlora.runs.memory_trace import Device
from nlora.runs.quiet import silent

if TYPE_CHECKING:
    from nlora.config.schema import Config
    from nlora.runs.plan import Plan

Change = dict[str, Any]
"""Values by dotted key."""


def memory_lines(
    plan: Plan,
    size: Callable[[float], str],
    *,
    device: Device | None = None,
    processes: int = 1,
    estimate: Callable[..., MemoryEstimate] = estimate_memory,
) -> list[str]:
    """The estimate in a line or two, and a line about what to change if the run will not fit.

    size: writes a number of bytes. estimate: as `estimate_memory`.
    """
    try:
        # This logger prints the whole traceback of an error that takes one line below.
        with silent("torch._subclasses.fake_tensor"):
            found = estimate(plan, device=device, processes=processes)
    except MODEL_RAISES as error:  # code of a model that does not run without numbers
        return [f"memory: cannot be estimated for this model ({with_class(error)})"]
    lines = [_total(found, size), _parts(found, size)]
    if not found.fits:
        change, then = _sufficient(plan, found, estimate)
        lines.append(_way_out(change, then, size))
    return lines


def _total(found: MemoryEstimate, size: Callable[[float], str]) -> str:
    where = "of the GPU" if found.device == "cuda" else "of this machine"
    free = "" if found.free is None else f", {size(found.free)} {where} can be had"
    processes = f" for {found.processes} processes" if found.processes > 1 and found.device == "cpu" else ""
    line = f"memory: about {size(found.peak)}{processes} at the peak{free}"
    if found.device == "cuda":
        line += f"; {size(found.host)} of the machine's own (never compared with a GPU so far)"
    return line


def _parts(found: MemoryEstimate, size: Callable[[float], str]) -> str:
    stage = {
        "weights": found.weights,
        "adapter": found.adapter,
        "optimizer": found.optimizer,
        "the method's own": found.method,
        "activations of the longest batch": found.training,
        "or of scoring": found.scoring,
    }
    host = {
        "Python and data": found.process,
        "the model's files while they are converted": found.loading,
        "earlier stages": found.earlier,
        "original weights": found.originals,
    }
    parts = stage if found.device == "cuda" else host | stage
    return "- " + ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)


def _way_out(change: Change, then: MemoryEstimate | None, size: Callable[[float], str]) -> str:
    if then is None:
        return "it will not fit, whatever the options; take a smaller model, or a machine with more memory"
    keys = " ".join(f"{key}={str(value).lower()}" for key, value in change.items())
    return f"it will not fit; try {keys}, which needs about {size(then.peak)}"


def _sufficient(
    plan: Plan, found: MemoryEstimate, estimate: Callable[..., MemoryEstimate]
) -> tuple[Change, MemoryEstimate | None]:
    """The first change with which the run fits, and its estimate; None if no change is enough."""
    for change in _changes(plan, found):
        then = estimate(plan, changed(plan.config, change), device=found.device, processes=found.processes)
        if then.fits:
            return change, then
    return {}, None


def _changes(plan: Plan, found: MemoryEstimate) -> Iterator[Change]:
    """Changes that need less memory: first those that cost nothing, then those that cost time, then precision."""
    config = plan.config
    scoring = found.scoring > found.stage
    score: Change = {}
    if scoring:
        for size in _halves(config.evaluate.batch_size):
            score = {"evaluate.batch_size": size}
            yield score
    micro: Change = {}
    for size in _halves(config.train.micro_batch(found.processes)):
        if config.train.batch_size % size == 0:  # others are refused
            micro = {"train.micro_batch_size": size}
            yield score | micro
    slow = {} if config.train.gradient_checkpointing else {"train.gradient_checkpointing": True}
    if slow:
        yield score | slow
        yield score | micro | slow
    narrow = {"dtype": "bfloat16"} if config.dtype == "float32" else {}
    if narrow:
        yield score | micro | slow | narrow
    if _may_quantize(plan):
        yield score | micro | slow | narrow | {"quantize": "4bit"}


def _may_quantize(plan: Plan) -> bool:
    config = plan.config
    never = config.quantize is not None or config.fsdp or config.model.lower().endswith(".gguf")
    if never or any(method.needs_float_weights for method in plan.methods):
        return False
    return stored_format(load_skeleton(config.model, trust_remote_code=config.trust_remote_code)) is None


def _halves(size: int) -> Iterator[int]:
    while size > 1:
        size //= 2
        yield size


def changed(config: Config, change: Change) -> Config:
    """The configuration with other values."""
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        if section:
            part: Any = getattr(config, section)
            config = config.model_copy(update={section: part.model_copy(update={name: value})})
        else:
            config = config.model_copy(update={name: value})
    return config
