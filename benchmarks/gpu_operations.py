"""How many operations a training step starts, by which a GPU's time is bound as long as a model is small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from gpu_checks import one_call
from gpu_material import Row, Sizes, backbone_of, examples_of
from gpu_measurements import contestants_of

_NO_WORK = ("empty", "new_empty", "_unsafe_view", "_record_function")


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A block in which operations on tensors are counted, but for views and empty tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
        is_view = bool(aliases) and not any(alias.is_write for alias in aliases)
        self.count += int(not is_view and not func.__name__.startswith(_NO_WORK))
        return func(*args, **(kwargs or {}))


def operations(sizes: Sizes) -> Iterator[Row]:
    """Of a step of each contestant, on a narrow model with as many layers as SmolLM2-135M."""
    # The fewest layers at which those of a layer count for more than those of the beginning and the end.
    backbone = backbone_of("short" if sizes.small else "narrow", sizes.device, "float32")
    examples = examples_of(sizes.batch * 4)
    # What trainings of 4 and of 2 steps have in common cancels out; one of a single step has less.
    for name, turn in contestants_of(backbone, sizes).items():
        with one_call() if "each kind" not in name else one_call(()):
            few, many = (_counted(turn, examples[: sizes.batch * steps]) for steps in (2, 4))
        yield Row("operations", name, f"{(many - few) / 2:.0f} in a step")


def _counted(turn: Callable[[Any, int], Any], examples: Any) -> int:
    with Operations() as found:
        turn(examples, 0)
    count: int = found.count
    return count
