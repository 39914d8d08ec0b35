"""What is said of a plan before anything is trained, by `nlora check` and at the start of a run."""

from __future__ import annotations

from nlora.config.protocol import protocol_notes
from nlora.runs.held_out import held_out_note
from nlora.runs.plan import Plan
from nlora.runs.replay_plan import replay_notes
from nlora.runs.task_notes import task_notes


def plan_notes(plan: Plan) -> list[str]:
    """One line each; none of them is an error."""
    config, tasks = plan.config, plan.tasks
    choosing = [task for task, method in zip(tasks, plan.methods, strict=True) if method.chooses_weight]
    return [
        *plan.limits,
        *replay_notes(config, tasks),
        *held_out_note(config, choosing),
        *protocol_notes(config),
        *task_notes(tasks),
    ]
