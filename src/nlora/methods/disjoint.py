"""Disjoint rows: each task changes only its own rows of every weight, so no two tasks ever collide.

N-LoRA (arXiv 2410.10179) argues that what keeps tasks from disturbing each other is that their updates have no entry in
common. Its penalty makes common entries rarer; this method makes them impossible, without a penalty: the output rows
of every module are split among the tasks by a seeded draw, and task t trains only its rows of B. The other rows
of B, and so of ΔW = s·B·A, stay exactly zero. It is the control experiment to the paper's claim.

Why exactly: B starts at zero, and a hook on B sets the other rows' gradients to zero before they are added to `.grad`;
so it holds with accumulated micro-batches too, and clipping does not count them. AdamW moves an entry that never had a
gradient by lr·0/(√0 + ε) = 0, and its weight decay multiplies a zero.

There is no released code for this; nothing of it is in the paper, so there is nothing to depart from.

Pitfalls:
- Without common entries, tasks still share activations: a row that another task changed feeds the same next layer.
- A task has only its share of the rows to learn with. Many tasks leave each little room.
- The split must be the same at all stages: options of single `stages` would break it.
- An optimizer that moves entries without a gradient (with noise, say) would break it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from nlora.errors import InputErrors, Problem
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable


class DisjointOptions(MethodOptions):
    """Among how many tasks the rows are split."""

    tasks: int | None = Field(
        None,
        ge=1,
        description="Number of tasks that the rows are split among; null: as many as the sequence has. More than that "
        "leaves rows for later tasks. 1: no split, exactly incremental LoRA.",
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Share of each module's rows that a task gets, in place of tasks; there is room for 1/share "
        "tasks, rounded down.",
    )
    seed: int = Field(
        0, description="What the split of the rows is drawn from, together with a module's name."
    )

    @model_validator(mode="after")
    def _one_way_to_split(self) -> DisjointOptions:
        if self.tasks is not None and self.share is not None:
            raise ValueError("tasks and share both say how the rows are split; leave one of them out")
        return self


def own_rows(module: str, out: int, share: Fraction, stage: int, seed: int) -> list[int]:
    """The rows of a module that the task of `stage` (from 1) owns, ascending; of no two stages the same.

    Their number is share·out, rounded down or up. Which stage gets a row that does not divide evenly differs from
    module to module. Depends on the arguments alone, on no library's random numbers: a resumed run splits as before.
    """
    order = sorted(range(out), key=lambda row: _draw(f"{seed}/{module}/{row}"))
    slot = (stage - 1 + _draw(f"{seed}/{module}")) % room(share)
    return sorted(order[int(slot * share * out) : int((slot + 1) * share * out)])


def room(share: Fraction) -> int:
    """The number of tasks that get such a share each."""
    return int(1 / share)


class Disjoint(Method):
    """Own rows of every update for each task."""

    Options: ClassVar[type[MethodOptions]] = DisjointOptions

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        assert isinstance(options, DisjointOptions)
        self._seed, self._tasks = options.seed, options.tasks
        self._given_share: Fraction | None = None
        if options.share is not None:
            # What was written, not the nearest binary number: 0.1 is room for ten.
            self._given_share = Fraction(options.share).limit_denominator(10**6)
        self._sequence: int | None = None
        self._narrowest: ModuleShape | None = None
        self._hooks: list[RemovableHandle] = []

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        self._narrowest = min(modules, key=lambda m: m.out_features, default=None)
        return self._too_narrow()

    def check_sequence(self, tasks: int) -> list[Problem]:
        was_known, self._sequence = self._share is not None, tasks
        too_many = [] if self._has_room(tasks) else [self._full(f"the sequence has {tasks}", tasks)]
        return too_many if was_known else too_many + self._too_narrow()

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        stage, share = len(earlier) + 1, self._share
        if share is None:
            raise InputErrors(
                [
                    Problem.at(
                        ("method", "tasks"), "the number of tasks is not known here; give it, or a share"
                    )
                ]
            )
        if not self._has_room(stage):
            raise InputErrors([self._full(f"this is task {stage}", stage)])
        if share == 1:
            return
        import torch

        for name, f in adapter.factors().items():
            others = torch.ones(f.B.shape[0], 1, dtype=torch.bool)  # (out, 1)
            others[own_rows(name, f.B.shape[0], share, stage, self._seed)] = False
            others = others.to(f.B.device)
            with torch.no_grad():
                f.B.masked_fill_(others, 0)
            hook = f.B.register_hook(_Without(others))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    @property
    def _share(self) -> Fraction | None:
        """The share of the rows that a task gets; None as long as the number of tasks is not known."""
        if self._given_share is not None:
            return self._given_share
        tasks = self._tasks or self._sequence
        return Fraction(1, tasks) if tasks else None

    def _has_room(self, tasks: int) -> bool:
        assert self._share is not None
        return self._tasks == 1 or tasks <= room(self._share)

    def _full(self, what: str, tasks: int) -> Problem:
        """More tasks than the split has room for."""
        share = self._share
        assert share is not None
        places = f"{room(share)} task" + ("s" if room(share) > 1 else "")
        if self._given_share is not None:
            return Problem.at(
                ("method", "share"),
                f"share {float(share):g} gives room for {places}, but {what}; use at most 1/{tasks}, "
                f"or tasks: {tasks} in its place",
            )
        return Problem.at(
            ("method", "tasks"),
            f"the rows are split among {places}, but {what}; use at least {tasks}, or null for as many as there are",
        )

    def _too_narrow(self) -> list[Problem]:
        """A module in which some task would get no row; none as long as modules or share are not known."""
        narrow, share = self._narrowest, self._share
        if narrow is None or share is None or share * narrow.out_features >= 1:
            return []
        return [
            Problem.at(
                ("method", "share" if self._given_share is not None else "tasks"),
                f"{narrow.name} has {narrow.out_features} output rows, of which a task's share of {share} is less than "
                "one; split among fewer tasks, or leave the layer out of lora.targets",
            )
        ]


class _Without:
    """A gradient hook: the gradient with these rows set to zero, even where it is not finite."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows  # (out, 1)

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self._rows, 0)


def _draw(what: str) -> int:
    """A number of 64 bits that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "big")
