"""Disjoint rows: each task changes only its own rows of every weight, so no two tasks ever collide.

N-LoRA (arXiv 2410.10179) argues that tasks do not disturb each other if their updates have no entries in common. Its
penalty makes common entries rarer; this method rules them out, without a penalty. A seeded draw splits the output rows
of every module among the tasks, and task t trains only its rows of B. The other rows of B, and so of ΔW = s·B·A, stay
exactly zero. It is the control experiment for the paper's claim.

Why exactly zero: B starts at zero, and a hook on B zeroes the other rows' gradients before they are added to `.grad`,
so accumulated micro-batches and gradient clipping never see them. AdamW moves an entry that never had a gradient by
lr·0/(√0 + ε) = 0, and its weight decay multiplies a zero.

Departures: none. Neither the paper nor the released code has this method.

Pitfalls:
- Even without common entries, tasks share activations: a row changed by another task feeds the same next layer.
- A task can use only its share of the rows. The more tasks, the less capacity each has.
- An optimizer that moves entries without a gradient (by adding noise, for example) would break it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from nlora.errors import InputErrors, Problem
from nlora.methods._seeds import drawn
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from nlora.config.schema import LoraOptions
    from nlora.models.lora_adapter import AdapterState, ModuleShape
    from nlora.models.trainable import Trainable

_TAKEN = (
    "disjoint would train rows that an earlier update has changed; each earlier task must be an adapter of its own "
    "that disjoint learned with the same split"
)


class DisjointOptions(MethodOptions):
    """How the rows are split among the tasks."""

    tasks: int | None = Field(
        None,
        ge=1,
        description="Number of tasks to split the rows among; null: the number of tasks in the sequence. A larger "
        "number leaves rows for later tasks. 1: no split, exactly incremental LoRA.",
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Share of each module's rows that a task gets, instead of tasks; there is room for 1/share "
        "tasks, rounded down.",
    )
    seed: int = Field(0, description="Seed of the split, which also depends on the module's name.")

    @model_validator(mode="after")
    def _one_way_to_split(self) -> DisjointOptions:
        if self.tasks is not None and self.share is not None:
            raise ValueError("tasks and share both set the split; leave one of them out")
        return self


def own_rows(module: str, out: int, share: Fraction, stage: int, seed: int) -> list[int]:
    """The rows of a module that the task of `stage` (from 1) owns, ascending; no two stages own the same row.

    There are share·out of them, rounded down or up. Which stage gets a leftover row differs from module to module.
    Depends only on the arguments and on no library's random numbers, so a resumed run gets the same split.

    >>> [own_rows("q_proj", 6, Fraction(1, 3), stage, seed=0) for stage in (1, 2, 3)]
    [[1, 4], [2, 5], [0, 3]]
    """
    order = sorted(range(out), key=lambda row: drawn(f"{seed}/{module}/{row}"))
    slot = (stage - 1 + drawn(f"{seed}/{module}")) % room(share)
    return sorted(order[int(slot * share * out) : int((slot + 1) * share * out)])


def room(share: Fraction) -> int:
    """How many tasks can each get this share."""
    return int(1 / share)


class Disjoint(Method[DisjointOptions]):
    """Gives each task its own rows of every update."""

    shared_options = ("tasks", "share", "seed")

    def __init__(self, options: DisjointOptions) -> None:
        super().__init__(options)
        self._given_share: Fraction | None = None
        if options.share is not None:
            # The decimal number that was written, not the nearest binary one: 0.1 has room for ten tasks.
            # A tinier one stays as it is, to be refused with the layer that has too few rows for it.
            written = Fraction(repr(options.share))
            self._given_share = written.limit_denominator(10**6) or written
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

    def check_adopted(self, update: AdapterState, lora: LoraOptions) -> str | None:
        return "disjoint gives each task rows of its own, but an adapter from elsewhere changes all of them"

    def check_extension(self, before: int, after: int) -> list[Problem]:
        if self._given_share is not None or self.options.tasks is not None:
            return []
        what = f"the rows were split among {before} tasks, so nothing is left for task {before + 1}; start such a run "
        return [Problem("method.tasks", what + "with method.tasks set to the number of tasks that may come")]

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def begin_task(self, adapter: Trainable, earlier: Sequence[AdapterState]) -> None:
        self.release()
        stage, share = len(earlier) + 1, self._share
        if share is None:
            raise InputErrors(
                [
                    Problem.at(
                        ("method", "tasks"), "the number of tasks is not known here; set it, or set a share"
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
            own = own_rows(name, f.B.shape[0], share, stage, self.options.seed)
            changed = [update[name].B.any(dim=1) for update in earlier if name in update]
            # One that changes all rows is of another method, and was never to be disjoint.
            if any(rows[own].any() and not rows.all() for rows in changed):
                raise InputErrors([Problem.at(("method", "name"), _TAKEN)])
            others[own] = False
            others = others.to(f.B.device)
            with torch.no_grad():
                f.B.masked_fill_(others, 0)
            hook = f.B.register_hook(_Zeroed(others))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    @property
    def _share(self) -> Fraction | None:
        """The share of the rows that a task gets; None while the number of tasks is not known."""
        if self._given_share is not None:
            return self._given_share
        tasks = self.options.tasks or self._sequence
        return Fraction(1, tasks) if tasks else None

    def _has_room(self, tasks: int) -> bool:
        assert self._share is not None
        return self.options.tasks == 1 or tasks <= room(self._share)

    def _full(self, what: str, tasks: int) -> Problem:
        """The complaint that there are more tasks than the split has room for."""
        share = self._share
        assert share is not None
        places = f"{room(share)} task" + ("s" if room(share) > 1 else "")
        if self._given_share is not None:
            return Problem.at(
                ("method", "share"),
                f"share {float(share):g} gives room for {places}, but {what}; use at most 1/{tasks}, "
                f"or tasks: {tasks} instead",
            )
        return Problem.at(
            ("method", "tasks"),
            f"the rows are split among {places}, but {what}; use at least {tasks}, or null for the number of tasks",
        )

    def _too_narrow(self) -> list[Problem]:
        """The complaint that some task would get no row of a module; empty while modules or share are not known."""
        narrow, share = self._narrowest, self._share
        if narrow is None or share is None or share * narrow.out_features >= 1:
            return []
        return [
            Problem.at(
                ("method", "share" if self._given_share is not None else "tasks"),
                f"{narrow.name} has {narrow.out_features} output rows, and a share of {share} of them is less than one "
                "row; split among fewer tasks, or leave the layer out of lora.targets",
            )
        ]


class _Zeroed:
    """A gradient hook that sets these rows to zero, even if they are not finite."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows  # (out, 1)

    def __call__(self, gradient: Tensor) -> Tensor:
        self._rows = self._rows.to(gradient.device)  # someone may move the model after the task has begun
        return gradient.masked_fill(self._rows, 0)
