"""`method.weight: auto`: the weight that it chooses, that nothing else changes, and that a stopped search goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_sequence import assert_same_files

from helpers import ANIMALS, COLORS, learn, same_outcome, write_config, write_task
from nlora.api.learn import learn as learn_run
from nlora.api.run import Run
from nlora.config.auto_weight_options import AutoWeightOptions
from nlora.config.load import load_config
from nlora.data.task import Task
from nlora.errors import InputErrors
from nlora.methods.registry import build, default_weight
from nlora.runs import auto_weight
from nlora.runs.auto_weight import strongest
from nlora.runs.events import Event, Progress
from nlora.runs.held_out import held_out, held_out_memory
from nlora.runs.plan import Plan, make_plan
from nlora.runs.plan_notes import plan_notes
from nlora.runs.resume_points import StageResumePoints
from nlora.runs.summary import Summary
from nlora.runs.weights_tried import Tried

TinyModel = Callable[[str], Path]
TRAIN = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "save_every": 2}


def searching(folder: Path, model: Path, **changes: Any) -> Path:
    tasks = [
        write_task(folder / "data", name, labels, train=24)
        for name, labels in (("colors", COLORS), ("animals", ANIMALS))
    ]
    values: dict[str, Any] = {
        "tasks": tasks,
        "method": {"name": "nlora", "weight": "auto"},
        "auto_weight": {"tries": 2, "margin": 0.5, "max_drop": 100},
        "train": TRAIN,
        "evaluate": {"batch_size": 8, "validation_share": 0.5},
    }
    return write_config(folder, model, **values | changes)


def tried_in(stage: Path) -> Tried:
    return Tried.model_validate_json((stage / "weights_tried.json").read_text())


@pytest.fixture(scope="module")
def searched(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("auto")
    return folder, learn(searching(folder, tiny_model("llama")))


def test_the_run_is_the_one_with_the_chosen_weights(
    searched: tuple[Path, Summary], tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder, summary = searched
    tried = {name: tried_in(folder / "run/outputs" / name) for name in ("1-colors", "2-animals")}
    weights = {name[2:]: {"method": {"weight": found.weight}} for name, found in tried.items()}
    given = learn(searching(tmp_path, tiny_model("llama"), method="nlora", stages=weights))
    assert same_outcome(summary, given)
    assert_same_files(folder / "run", tmp_path / "run")


def test_the_strongest_weight_within_the_margin_is_chosen_and_told(searched: tuple[Path, Summary]) -> None:
    folder, summary = searched
    for stage, name in enumerate(("1-colors", "2-animals")):
        found = tried_in(folder / "run/outputs" / name)
        assert found.examples == 12
        without = found.scores.pop(0.0)
        share = (without * 12 / 100 + 1) / 14
        assert found.margin == pytest.approx(0.5 * 100 * (share * (1 - share) / 12) ** 0.5)
        allowed = [weight for weight, score in found.scores.items() if score >= without - found.margin]
        assert found.weight == max(allowed, default=0.0)
        assert len(found.scores) == 2
        assert (
            f"weight {found.weight:.3g} was chosen by the probability of the right label"
            in summary.notes[stage]
        )


def test_the_probability_is_that_of_a_run_on_the_other_examples(
    searched: tuple[Path, Summary], tiny_model: TinyModel, tmp_path: Path
) -> None:
    """Trained without a penalty on what is not held out, and asked for what is."""
    plan = make_plan(load_config(searched[0] / "config.yaml"))
    task = held_out(plan.config, plan.tasks[0])
    entry = write_task(tmp_path / "own", "colors", COLORS)
    for split, examples in (("train", task.train), ("test", task.test)):
        rows = [{"sentence": e.sentence, "label": e.label} for e in examples]
        Path(entry[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = write_task(tmp_path / "own", "animals", ANIMALS)
    method = {"name": "nlora", "weight": 0.0}
    learn(searching(tmp_path, tiny_model("llama"), tasks=[entry, other], method=method))
    found = Run(tmp_path / "run").predict(
        [e.sentence for e in task.test], task="colors", stage=1, probabilities=True
    )
    right = [of_labels[e.label] for of_labels, e in zip(found, task.test, strict=True)]
    expected = 100 * sum(right) / len(right)
    assert tried_in(searched[0] / "run/outputs/1-colors").scores[0.0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{"decode": "generate"}, {"metric": "macro_f1"}])
def test_what_has_no_probability_is_judged_by_its_score(
    tiny_model: TinyModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = {"batch_size": 8, "validation_share": 0.5} | changes
    tasks = [write_task(tmp_path / "data", "colors", COLORS, train=24)]
    if "metric" in changes:
        tasks[0]["metric"] = options.pop("metric")
    config = searching(
        tmp_path, tiny_model("llama"),
        tasks=tasks,
        evaluate=options,
        auto_weight={"tries": 1, "max_drop": 100},
        train=TRAIN | {"max_target_tokens": 6},
    )  # fmt: skip
    summary = learn(config)
    assert tried_in(tmp_path / "run/outputs/1-colors").by == "score"
    assert "was chosen by the score: " in summary.notes[0]


@pytest.mark.parametrize(("max_drop", "is_chosen"), [(12.4, False), (12.5, True), (100.0, True)])
def test_a_few_held_out_examples_allow_no_more_than_the_largest_drop(
    max_drop: float,
    is_chosen: bool,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve examples have a standard error of 10.6 points; 12.5 points less are within two of them."""

    def made_up(plan: Plan, backbone: Any, task: Task, *_: Any) -> Callable[[], float]:
        return lambda: 75.0 if plan.methods[1].options.weight else 87.5

    monkeypatch.setattr(auto_weight, "held_out_score", made_up)
    options = {"by": "score", "tries": 1, "margin": 2.0, "max_drop": max_drop}
    changes = {"auto_weight": options, "stages": {"colors": {"method": {"weight": 0.0}}}}
    learn(searching(tmp_path, tiny_model("llama"), **changes))
    found = tried_in(tmp_path / "run/outputs/2-animals")
    share = (0.875 * 12 + 1) / 14
    assert found.margin == pytest.approx(min(200 * (share * (1 - share) / 12) ** 0.5, max_drop))
    assert found.weight == (default_weight(build("nlora", {})) if is_chosen else 0.0)


def test_a_task_that_gets_no_weight_does_not_cost_the_memory_of_the_tasks(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(plan: Plan, backbone: Any, task: Task, *_: Any) -> Callable[[], float]:
        return lambda: 0.0 if task.name == "animals" and plan.methods[1].options.weight else 100.0

    monkeypatch.setattr(auto_weight, "held_out_score", made_up)
    tasks = [
        write_task(tmp_path / "data", name, labels, train=24)
        for name, labels in (("colors", COLORS), ("animals", ANIMALS), ("drinks", ("tea", "rum", "gin")))
    ]
    options = {"by": "score", "tries": 1, "margin": 0.5, "max_drop": 5}
    method = {"name": "ewc", "weight": "auto"}
    learn(searching(tmp_path, tiny_model("llama"), tasks=tasks, method=method, auto_weight=options))
    stages = [tmp_path / "run/outputs" / name for name in ("2-animals", "3-drinks")]
    assert [tried_in(stage).weight for stage in stages] == [0.0, default_weight(build("ewc", {}))]


def test_a_stopped_search_goes_on(
    searched: tuple[Path, Summary], tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = searching(tmp_path, tiny_model("llama"))
    said: list[str] = []
    steps: list[Event] = []
    real = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() + 1000 * len(steps))

    def stop_in_the_second_try(event: Event) -> None:
        if event.kind == "training":
            steps.append(event)
        if event.kind == "note" and "trying" in event.text:
            said.append(event.text)
        if len(said) == 2 and event.kind == "training" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_run(load_config(config), Progress(stop_in_the_second_try))
    said.append("stopped")
    summary = learn_run(load_config(config), Progress(stop_in_the_second_try))
    assert said[1] == said[3]  # only the second one is begun again, from its saved step
    assert len(said) == 2 + 1 + 2 + 3
    # By a clock that jumps 1,000 s a step, the first stage took as long as the second, which was not stopped, but for
    # the step that came right after the save.
    for seconds in (summary.train_seconds, summary.prepare_seconds):
        assert seconds[0] == pytest.approx(seconds[1], abs=1500)
    assert same_outcome(summary, searched[1])
    assert_same_files(searched[0] / "run", tmp_path / "run")
    assert not (tmp_path / "run/resume").exists()


def test_a_stop_after_a_try_keeps_its_score(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that was asked for while the held-out examples were scored comes at the end of the try."""
    config = searching(tmp_path, tiny_model("llama"))

    def stopped(self: StageResumePoints) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageResumePoints, "clear", stopped)
        with pytest.raises(KeyboardInterrupt):
            learn(config)
    (file,) = (tmp_path / "run/resume").rglob("weights_tried.json")
    assert list(json.loads(file.read_text())["scores"]) == ["0.0"]


def test_a_task_without_a_penalty_is_trained_at_once(tiny_model: TinyModel, tmp_path: Path) -> None:
    changes = {"method": {"name": "lwf", "weight": "auto"}, "auto_weight": {"tries": 1}, "train": TRAIN}
    summary = learn(searching(tmp_path, tiny_model("llama"), **changes))
    outputs = tmp_path / "run/outputs"
    assert not (outputs / "1-colors/weights_tried.json").exists()
    assert len(tried_in(outputs / "2-animals").scores) == 2
    assert [note[:16] for note in summary.notes] == ["stage 2, animals"]


def test_a_penalty_that_the_weight_does_not_change_needs_no_search(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """At the first task, olora's penalty is the norms of the factors alone."""
    method = {"name": "olora", "weight": "auto", "norm_weight": 0.1}
    learn(searching(tmp_path, tiny_model("llama"), method=method, auto_weight={"tries": 1}))
    outputs = tmp_path / "run/outputs"
    assert not (outputs / "1-colors/weights_tried.json").exists()
    assert len(tried_in(outputs / "2-animals").scores) == 2


def test_what_is_held_out_is_not_trained_on(tiny_model: TinyModel, tmp_path: Path) -> None:
    plan = make_plan(load_config(searching(tmp_path, tiny_model("llama"))))
    task = held_out(plan.config, plan.tasks[0])
    assert not set(task.train) & set(task.test)
    assert set(task.train) | set(task.test) == set(plan.tasks[0].train)
    stopping = {"train": {**TRAIN, "early_stopping": {"patience": 2}}}
    plan = make_plan(load_config(searching(tmp_path, tiny_model("llama"), **stopping)))
    task = held_out(plan.config, plan.tasks[0])
    assert (task.test, task.train) == (plan.tasks[0].validation, plan.tasks[0].train)


@pytest.mark.parametrize("most", [0.0, *(0.5 * 10 ** (i / 2) for i in range(-3, 4))])
def test_halving_finds_every_weight(most: float) -> None:
    asked: list[float] = []

    def is_allowed(weight: float) -> bool:
        asked.append(weight)
        return weight <= most * 1.001

    weights = AutoWeightOptions(tries=3).weights(0.5)
    assert strongest(weights, is_allowed) == pytest.approx(most)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"evaluate": {"validation_share": 0.2}},
            "needs 10, but of task colors's 24 that is 5; raise the share, or give a number",
        ),
        ({"method": {"name": "inclora", "weight": "auto"}}, "method.weight"),
        ({"auto_weight": {"tries": 0}}, "auto_weight.tries"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    tiny_model: TinyModel, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputErrors) as refused:
        make_plan(load_config(searching(tmp_path, tiny_model("llama"), **changes)))
    assert line in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "stages", "few"),
    [
        (24, {}, "(12 of colors, 12 of animals)"),
        (24, {"colors": {"method": {"weight": 0.1}}}, "(12 of animals)"),
        (200, {}, None),
    ],
)
def test_that_chance_may_choose_is_said(
    train: int, stages: dict[str, Any], few: str | None, tiny_model: TinyModel, tmp_path: Path
) -> None:
    tasks = [
        write_task(tmp_path / "own", name, labels, train=train)
        for name, labels in (("colors", COLORS), ("animals", ANIMALS))
    ]
    config = searching(tmp_path, tiny_model("llama"), tasks=tasks, stages=stages)
    notes = [note for note in plan_notes(make_plan(load_config(config))) if "held-out examples" in note]
    assert notes == (
        []
        if few is None
        else [
            f"weight: auto looks at few held-out examples {few}, so chance may choose a weight that harms; "
            "100 tell more"
        ]
    )


@pytest.mark.parametrize("option", ["float = 0.0", "float | None = None", "str = 'strong'"])
def test_without_a_default_there_is_nothing_to_try(
    option: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    file = tmp_path / "gentle.py"
    file.write_text(
        '"""A method whose penalty is off unless a weight is given."""\n'
        "from nlora.methods.base import Method, MethodOptions\n"
        f"class GentleOptions(MethodOptions):\n    weight: {option}\n"
        "class Gentle(Method[GentleOptions]):\n    pass\n"
    )
    with pytest.raises(InputErrors, match="the default weight, and gentle has none, or 0; give a number"):
        make_plan(
            load_config(
                searching(tmp_path, tiny_model("llama"), method={"name": str(file), "weight": "auto"})
            )
        )


def test_the_file_in_the_stage_has_only_the_outcome(searched: tuple[Path, Summary]) -> None:
    file = searched[0] / "run/outputs/1-colors/weights_tried.json"
    assert set(json.loads(file.read_text())) == {"by", "examples", "margin", "scores", "weight"}


# With replay

MEMORY: dict[str, Any] = {
    "replay": {"memory": 16, "share": 0.5},
    "auto_weight": {"by": "score", "tries": 1, "max_drop": 100},
    "train": TRAIN | {"epochs": 1},
    "stages": {"colors": {"method": {"weight": 0.1}}},
}


@pytest.mark.parametrize(("remembered", "is_chosen"), [(90.0, True), (50.0, False)])
def test_with_replay_the_memory_counts_as_much_as_the_new_task(
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    remembered: float,
    is_chosen: bool,
) -> None:
    """Scores are made up: a weight costs the new task nothing, and the first task something."""
    asked: list[str] = []

    def made_up(plan: Plan, backbone: Any, task: Task, *_: Any) -> Callable[[], float]:
        trained = {e for _, some in plan.examples[1].portions for e in some}
        assert task.test
        assert not trained & set(task.test)
        asked.append(task.name)
        weight = plan.methods[1].options.weight
        return lambda: {"animals": 75.0, "colors": remembered if weight else 100.0}[task.name]

    monkeypatch.setattr(auto_weight, "held_out_score", made_up)
    summary = learn(searching(tmp_path, tiny_model("llama"), **MEMORY))
    assert asked == ["animals", "colors"] * 2
    found = tried_in(tmp_path / "run/outputs/2-animals")
    assert (found.examples, found.remembered) == (12, {"colors": 8})
    default = default_weight(build("nlora", {}))
    assert found.scores == {0.0: 87.5, default: (75.0 + remembered) / 2}
    assert found.of_tasks[default] == {"animals": 75.0, "colors": remembered}
    # The variance of a mean over the tasks is that of their scores, divided by the square of how many they are.
    new, old = (12 * 0.75 + 1) / 14, (8 * 1.0 + 1) / 10
    assert found.margin == pytest.approx(50 * (new * (1 - new) / 12 + old * (1 - old) / 8) ** 0.5)
    assert found.weight == (default if is_chosen else 0.0)
    assert (
        "on 12 held-out examples and on remembered ones (8 of colors), each task counting" in summary.notes[0]
    )
    assert summary.replayed_examples == (0, 16)  # with the weight it trains on all that is kept


def test_what_is_remembered_is_divided_like_the_task(tiny_model: TinyModel, tmp_path: Path) -> None:
    plan = make_plan(load_config(searching(tmp_path, tiny_model("llama"), **MEMORY)))
    ((task, kept),) = plan.examples[1].portions[1:]
    (divided,) = held_out_memory(plan.config, [(task, kept)])
    assert set(divided.train) | set(divided.test) == set(kept)
    assert not set(divided.train) & set(divided.test)
    # Of so few, nothing is held out.
    (whole,) = held_out_memory(plan.config, [(task, kept[:8])])
    assert (whole.train, whole.test) == (tuple(kept[:8]), ())
    (single,) = held_out_memory(plan.config, [(task, kept[:1])])
    assert (single.train, single.test) == (tuple(kept[:1]), ())


def test_a_task_that_its_own_model_answers_does_not_count(tiny_model: TinyModel, tmp_path: Path) -> None:
    for serve, expected in ((None, ["colors"]), ("pertask", [])):
        config = searching(tmp_path, tiny_model("llama"), **MEMORY, serve=serve)
        plan = make_plan(load_config(config))
        divided, memory = auto_weight._without_held_out(plan, 2)
        assert [task.name for task in memory] == expected
        held = {e for task in memory for e in task.test}
        kept = set(plan.examples[1].portions[1][1])
        assert set(divided.examples[1].portions[1][1]) == kept - held


@pytest.mark.parametrize(
    ("option", "refused"),
    [("float = Field(0.5, le=1)", "1.58114"), ("float = Field(0.5, gt=0)", "0"), ("int = 1", "0.316228")],
)
def test_weights_that_the_method_does_not_allow_are_told_before(
    option: str, refused: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    file = tmp_path / "mix.py"
    file.write_text(
        '"""A method whose weight has bounds."""\n'
        "from pydantic import Field\n"
        "from nlora.methods.base import Method, MethodOptions\n"
        f"class MixOptions(MethodOptions):\n    weight: {option}\n"
        "class Mix(Method[MixOptions]):\n    pass\n"
    )
    changes = {"method": {"name": str(file), "weight": "auto"}, "auto_weight": {"tries": 2}}
    config = searching(tmp_path, tiny_model("llama"), **changes)
    with pytest.raises(InputErrors, match=rf"auto would also try {refused}, which mix does not allow"):
        make_plan(load_config(config))


def test_a_penalty_of_the_update_by_a_method_of_ones_own_is_searched(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """Of a fresh update, which is 0, it is 0 with any weight."""
    file = tmp_path / "decay.py"
    file.write_text(
        '"""Shrinks each update."""\n'
        "from nlora.methods.base import Method, MethodOptions\n"
        "class DecayOptions(MethodOptions):\n    weight: float = 0.1\n"
        "class Decay(Method[DecayOptions]):\n"
        "    def penalty(self, adapter):\n"
        "        squares = sum((f.update() ** 2).sum() for f in adapter.factors().values())\n"
        "        return self.options.weight * squares\n"
    )
    changes = {"method": {"name": str(file), "weight": "auto"}, "auto_weight": {"tries": 1}}
    summary = learn(searching(tmp_path, tiny_model("llama"), **changes))
    assert [note[:16] for note in summary.notes] == ["stage 1, colors:", "stage 2, animals"]
    assert not any("()" in note for note in summary.notes)
    outputs = tmp_path / "run/outputs"
    assert all(len(tried_in(outputs / stage).scores) == 2 for stage in ("1-colors", "2-animals"))
