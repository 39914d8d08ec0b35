"""What is said of a plan before anything is trained, by `nlora check` and at the start of a run."""

from __future__ import annotations

from nlora.config.protocol import protocol_notes
from nlora.config.schema import ALL_LINEAR
from nlora.runs.held_out import held_out_note
from nlora.runs.plan import Plan
from nlora.runs.replay_plan import replay_notes
from nlora.runs.task_notes import task_notes

_OF_EXAMPLES = frozenset({"max_samples", "early_stopping", "label_weights"})
"""Keys of `train` that follow a task's examples to the stage that trains on them."""


def plan_notes(plan: Plan) -> list[str]:
    """One line each; none of them is an error."""
    config, tasks = plan.config, plan.tasks
    choosing = [task for task, method in zip(tasks, plan.methods, strict=True) if method.chooses_weight]
    return [
        *plan.limits,
        *_fused_note(plan),
        *_rounding_note(plan),
        *_cut_answers(plan),
        *_without_effect(plan),
        *replay_notes(config, tasks),
        *held_out_note(config, choosing),
        *protocol_notes(config),
        *task_notes(tasks),
    ]


def _without_effect(plan: Plan) -> list[str]:
    """The keys of single tasks that change nothing, because these tasks have no training of their own."""
    config, found = plan.config, dict[str, list[str]]()
    for stage, (task, method) in enumerate(zip(plan.tasks, plan.methods, strict=True), start=1):
        is_adopted, own = stage in plan.adopted, config.stages.get(task.name)
        if own is None or (plan.encoded[stage - 1] and not is_adopted):
            continue
        if is_adopted:
            why, counting = "an adapter from elsewhere is not trained", frozenset[str]()
        elif method.at_once:
            last = plan.tasks[-1].name
            why = f"{config.method.label} trains on all tasks at once, with the settings of the last, {last}"
            counting = _OF_EXAMPLES
        else:
            why, counting = f"{config.method.label} trains nothing at these tasks", _OF_EXAMPLES
        # A method that merges may do so with the options of this task.
        options = () if is_adopted and method.merges else own.method
        keys = [f"train.{key}" for key in own.train if key not in counting]
        keys += [f"method.{key}" for key in options]
        found.setdefault(why, []).extend(f"stages.{task.name}.{key}" for key in keys)
    return [f"{', '.join(keys)}: without effect, because {why}" for why, keys in found.items() if keys]


def _cut_answers(plan: Plan) -> list[str]:
    """The tasks of which answers are cut in training. Labels that are too long are errors."""
    most, notes = plan.encoder.max_target_tokens, []
    firsts = [given.portions[0] if given.portions else None for given in plan.examples]
    for task, first, given in zip(plan.tasks, firsts, plan.examples, strict=True):
        if first is None or first[0] is not task or task.labels is not None or task.chat:
            continue
        lengths = zip(first[1], given.own.answer_lengths, strict=True)
        full = [example.label for example, n in lengths if n == most]
        if n := sum(len(ids) >= most for ids in plan.encoder.label_ids(full)):  # without the end token
            notes.append(
                f"{task.name}: {n} of {len(first[1])} answers are longer than {most} tokens, and are cut in training; "
                "set train.max_target_tokens to the longest that matters"
            )
    return notes


def _rounding_note(plan: Plan) -> list[str]:
    """That weights which are trained themselves lose what is smaller than half of bfloat16's last digit."""
    method = plan.methods[0]
    if method.trains != "weights" or plan.config.dtype != "bfloat16":
        return []
    return [
        f"{method.name} trains the model's weights in bfloat16, which rounds most small steps away; set dtype: "
        "float32, or a larger train.learning_rate"
    ]


def _fused_note(plan: Plan) -> list[str]:
    """That `all-linear` means few of the weights of a model whose experts are no linear layers of their own."""
    if not plan.fused or plan.config.lora.targets != (ALL_LINEAR,) or plan.methods[0].trains != "adapter":
        return []
    adapted = sum(module.in_features * module.out_features for module in plan.modules)
    return [
        "lora.targets: all-linear leaves out the experts, which are one tensor in each layer here; it updates "
        f"{100 * adapted / (adapted + plan.fused):.2g} % of the weights of both"
    ]
