"""The method and the adapter of a task in somebody else's training loop, which can do less than a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nlora.config.messages import problems_in
from nlora.config.penalty_use import IN_LOSS
from nlora.config.places import SourceMap
from nlora.config.schema import LoraOptions
from nlora.errors import InputErrors, Problem
from nlora.methods.base import Method, MethodOptions
from nlora.methods.registry import build, builtin_names, find

# What a training loop of someone else's does not do for a method -> what the method would need it for.
_NEEDS: dict[str, str] = {
    "after_step": "changes the adapter after each optimizer step",
    "attach": "trains something other than a LoRA adapter",
    "extra_loss": "adds to the loss of each micro-batch",
    "examples": "decides which examples are trained on",
    "see_examples": "looks at the examples before it trains",
}


def method_of(method: str | Mapping[str, Any]) -> Method:
    """The method. Raises InputErrors if it is unknown, has no such option, or needs more than an adapter's penalty."""
    if not isinstance(method, str | Mapping):
        raise InputErrors(
            [Problem("method", f"must be a name or a mapping with the method's options, not {method!r}")]
        )
    options = {"name": method} if isinstance(method, str) else dict(method)
    name = options.pop("name", "nlora")
    if not isinstance(name, str):
        raise InputErrors([Problem("method.name", f"must be a text, not {name!r}")])
    if reason := _needs(kind := find(name)):
        able = ", ".join(other for other in builtin_names() if not _needs(find(other)))
        raise InputErrors(
            [
                Problem(
                    "method",
                    f"{kind.name} {reason}, so it works in nlora run only; in other trainers: {able}",
                )
            ]
        )
    made = build(name, options)
    if made.chooses_weight:
        what = "auto tries weights with trainings of its own, so it works in nlora run only; give a number"
        raise InputErrors([Problem("method.weight", what)])
    if made.penalty_use != IN_LOSS:
        what = f"other trainers add {name}'s penalty to the loss of every step; other ways work in nlora run only"
        raise InputErrors([Problem("method", what)])
    if made.rescale != 1:
        what = "other trainers save what they have trained; it works in nlora run only"
        raise InputErrors([Problem("method.rescale", what)])
    return made


def _needs(kind: type[Method[MethodOptions]]) -> str | None:
    """What the method needs apart from a penalty on the adapter; None if nothing."""
    if kind.merges:
        return "answers with a merge of all tasks' updates"
    return next(
        (what for name, what in _NEEDS.items() if getattr(kind, name) is not getattr(Method, name)), None
    )


def lora_of(lora: Mapping[str, Any] | LoraOptions | None, peft: bool) -> LoraOptions:
    """The adapter's options. Raises InputErrors for wrong ones, and for any if a PeftModel has its adapter already."""
    if isinstance(lora, LoraOptions):
        lora = lora.model_dump(exclude_unset=True)
    if peft and lora:
        raise InputErrors(
            [Problem("lora", "the PeftModel has an adapter already, which is used as it is; leave lora out")]
        )
    values = dict(lora) if isinstance(lora, Mapping) else {} if lora is None else lora
    if problems := problems_in(values, LoraOptions, SourceMap(""), ("lora",)):
        raise InputErrors(problems)
    return LoraOptions.model_validate(values)
