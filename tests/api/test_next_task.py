"""A task in a training loop of one's own: which updates are active, the gradient, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

import nlora
from nlora.methods.disjoint import _Zeroed
from nlora.methods.registry import builtin_names
from nlora.models.lora_factors import AdapterState, load_factors
from nlora.models.target_modules import target_modules
from nlora.runs.plan import make_plan
from nlora.runs.stage_training import stage_seed
from nlora.runs.update_history import load_memory
from states import random_state, write_adapter
from tiny import FAMILIES, IDS, LORA, assert_bitwise, assert_same, load, logits, loss, weights

TinyModel = Callable[[str], Path]
VALUES = {"r": 4, "alpha": 8, "dropout": 0.0}
NEEDS_MORE = {
    "gorp", "inflora", "l2p", "lori", "lwf", "magmax", "mtl", "oplora", "osf", "progprompt", "replay", "seqft", "slao"
}  # fmt: skip


@pytest.fixture
def model(tiny_model: TinyModel) -> Any:
    return load(tiny_model("llama"))


def _shapes(model: Any, *targets: str) -> dict[str, tuple[int, int]]:
    lora = LORA.model_copy(update={"targets": targets or None})
    return {m.name: (m.out_features, m.in_features) for m in target_modules(model, lora)}


@pytest.fixture
def first(model: Any, tmp_path: Path) -> Path:
    """An earlier adapter of other layers and another rank than the new one's."""
    state = _small(random_state(_shapes(model, "q_proj", "o_proj"), 2, 1))
    return write_adapter(tmp_path / "first", state, target_modules=["q_proj", "o_proj"])


def _small(state: AdapterState) -> AdapterState:
    for f in state.values():
        f.B.mul_(0.05)
    return state


def _step(task: Any, **arguments: Any) -> None:
    """One optimizer step that moves every factor."""
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        (loss(task.model) + task.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()


# Which updates are active, and what is left


def test_stock_peft_adds_up_to_the_model_that_was_trained(
    model: Any, first: Path, tmp_path: Path, tiny_model: TinyModel
) -> None:
    task = nlora.next_task(model, after=[first], lora=VALUES)
    _step(task)
    task.save(tmp_path / "second")
    stock = PeftModel.from_pretrained(load(tiny_model("llama")), tmp_path / "second", adapter_name="second")
    assert not torch.allclose(logits(stock), logits(task.model), atol=1e-3)
    stock.load_adapter(first, "first")
    stock.base_model.set_adapter(["first", "second"])
    assert torch.allclose(logits(stock), logits(task.model), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_follow_one_another_in_every_family(family: str, tmp_path: Path, tiny_model: TinyModel) -> None:
    model, folders = load(tiny_model(family)), []
    for number in (1, 2):
        task = nlora.next_task(model, after=folders, method="inclora", lora=VALUES)
        _step(task)
        folders.append(tmp_path / str(number))
        task.save(folders[-1])
        trained = logits(task.model.eval())
        task.release()
    stock = PeftModel.from_pretrained(load(tiny_model(family)), folders[0], adapter_name="1")
    stock.load_adapter(folders[1], "2")
    stock.base_model.set_adapter(["1", "2"])
    assert torch.allclose(logits(stock), trained, atol=1e-4)
    assert not torch.allclose(logits(model), trained, atol=1e-2)


def test_release_leaves_the_model_as_it_was(model: Any, first: Path) -> None:
    model.requires_grad_(True)
    before, trainable = weights(model), sum(p.requires_grad for p in model.parameters())
    with nlora.next_task(model, after=[first], lora=VALUES) as task:
        assert sum(p.requires_grad for p in model.parameters()) == 8, "A and B of q and v in two layers"
        _step(task)
    assert task.release() is model
    assert_bitwise(model, before)
    assert sum(p.requires_grad for p in model.parameters()) == trainable


def test_a_peft_model_is_used_as_it_is(model: Any, first: Path, tmp_path: Path) -> None:
    layers = _shapes(model, "v_proj", "down_proj").keys()
    config = LoraConfig(r=3, use_rslora=True, target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM")
    own = get_peft_model(model, config, adapter_name="mine")
    before = logits(own)
    task = nlora.next_task(own, after=[first])
    assert task.model is own
    assert not torch.equal(logits(own), before), "the earlier adapter is active"
    _step(task)
    task.save(tmp_path / "mine")
    assert load_factors(tmp_path / "mine").keys() == layers
    trained = logits(own)
    assert task.release() is own
    assert not torch.equal(logits(own), trained)
    nlora.next_task(own, after=[first])
    assert torch.equal(logits(own), trained), "its adapter is the trained one"


def test_a_16_bit_model_keeps_earlier_updates_unmerged(first: Path, tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"), torch.bfloat16)
    before = weights(model)
    with nlora.next_task(model, after=[first], lora=VALUES) as task:
        changed = logits(task.model)
        assert_bitwise(model.model.embed_tokens, {"weight": before["model.embed_tokens.weight"]})
    assert not torch.equal(logits(model), changed)
    assert_bitwise(model, before)


def test_a_compiled_16_bit_model_has_the_updates_of_its_own_task(
    first: Path, model: Any, tmp_path: Path, tiny_model: TinyModel
) -> None:
    """dynamo does not see that the layers have got other hooks."""
    other = write_adapter(
        tmp_path / "other", random_state(_shapes(model, "q_proj"), 2, 5), target_modules=["q_proj"]
    )
    own = load(tiny_model("llama"), torch.bfloat16)
    compiled = torch.compile(own, backend="eager")
    with torch.no_grad():
        for after in ([], [first], [other], [first, other], []):
            with nlora.next_task(own, after=after, lora=VALUES):  # whose own update is zero
                assert torch.equal(compiled(input_ids=IDS).logits, own(input_ids=IDS).logits)


def test_what_the_host_has_set_does_not_count(first: Path, tiny_model: TinyModel, here: Path) -> None:
    method = {"name": "ella", "weight": 1.0}
    config = nlora.load_config("support.yaml", {"method": method, "output_dir": "runs/plain"})
    plain = nlora.run(config)
    expected = load_factors(plain.stages[1].folder / "adapter")
    begun = []
    for number, mode in enumerate(
        (nullcontext(), torch.autocast("cpu", torch.bfloat16), torch.inference_mode())
    ):
        model = load(tiny_model("llama"))
        with mode:
            task = nlora.next_task(model, after=[first], method="ella", lora=VALUES)
            run = nlora.run(
                nlora.load_config("support.yaml", {"method": method, "output_dir": f"runs/{number}"})
            )
            assert run.predict(["it is down"], task="tickets") == plain.predict(
                ["it is down"], task="tickets"
            )
        assert_same(load_factors(run.stages[1].folder / "adapter"), expected)
        begun.append(_penalty_of_ones(task))
        task.release()
    assert begun[0] == begun[1] == begun[2] != 0


def _penalty_of_ones(task: Any) -> float:
    with torch.no_grad():
        for p in task.model.parameters():
            if p.requires_grad:
                p.fill_(0.1)
    return task.penalty().item()


@pytest.mark.parametrize("name", ["olora", "clora", "nlora", "ella", "disjoint"])
def test_a_model_in_double_precision(name: str, first: Path, tiny_model: TinyModel) -> None:
    options = {"name": name, **({"tasks": 2} if name == "disjoint" else {})}
    found = []
    for dtype in (torch.float32, torch.float64):
        with nlora.next_task(
            load(tiny_model("llama"), dtype), after=[first], method=options, lora=VALUES
        ) as task:
            found.append(_penalty_of_ones(task))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_model_that_recomputes_activations_gets_no_hooks_that_stay(model: Any) -> None:
    model.activation_checkpointing_enable({"use_reentrant": False})
    before = [len(module._forward_hooks) for module in model.modules()]
    for _ in range(2):
        with nlora.next_task(model, lora=VALUES) as task:
            _step(task)
        assert [len(module._forward_hooks) for module in model.modules()] == before


def test_a_run_counts_with_each_of_its_stages(here: Path) -> None:
    run = nlora.open_run("runs/support")
    folders = [stage.folder / "adapter" for stage in run.stages]
    plain, _ = run.model(stage=0)
    whole, _ = run.model()
    for after in (run, "runs/support", [run], folders, [load_factors(folder) for folder in folders]):
        with nlora.next_task(plain, after=after) as task:
            assert torch.allclose(logits(task.model), logits(whole), atol=1e-6)
            assert task.seed == stage_seed(42, 3)


@pytest.mark.parametrize("method", ["seqlora", "magmax"])
def test_a_run_counts_with_each_of_its_tasks_where_it_made_one_update_of_them(
    here: Path, method: str
) -> None:
    values = {"method": method, "output_dir": "runs/other", "train.epochs": 1}
    run = nlora.run(nlora.load_config("support.yaml", values))
    plain, _ = run.model(stage=0)
    with nlora.next_task(plain, after=run) as task:
        assert task.seed == stage_seed(42, 3)


def test_a_method_that_continues_starts_from_the_last_adapter(model: Any, tmp_path: Path) -> None:
    state = _small(random_state(_shapes(model), 4, 1))
    task = nlora.next_task(model, after=state, method="seqlora", lora=VALUES)
    task.save(tmp_path / "again")
    assert_same(load_factors(tmp_path / "again"), state)


# What a method remembers


def _rows(config: Path | str, index: int = 0) -> list[dict[str, list[int]]]:
    """The training examples of a run, as a data set for a trainer."""
    encoded = make_plan(nlora.load_config(config)).encoded[index]
    return [
        {"input_ids": e.prompt_ids + e.answer_ids, "labels": [-100] * len(e.prompt_ids) + e.answer_ids}
        for e in encoded
    ]


def test_what_ewc_remembers_is_what_a_run_remembers(here: Path) -> None:
    """It is saved beside the adapter, and read from there or from the run's stage."""
    tasks = yaml.safe_load(Path("support.yaml").read_text())["tasks"][:1]
    only = {"method": "ewc", "output_dir": "runs/ewc", "tasks": tasks}
    run = nlora.run(nlora.load_config("support.yaml", only))
    plain, _ = run.model(stage=0)
    stage = run.stages[0].folder
    own = PeftModel.from_pretrained(plain, stage / "adapter", is_trainable=True)
    rows = _rows("support.yaml")
    task = nlora.next_task(own, method="ewc")
    task.save("adapters/tickets", examples=rows)
    assert torch.is_grad_enabled()
    assert all(p.requires_grad == ("lora_" in name) for name, p in own.named_parameters())
    saved, wanted = load_memory(Path("adapters/tickets")), load_memory(stage)
    assert saved.keys() == wanted.keys() != set()
    for name, fisher in saved.items():
        torch.testing.assert_close(fisher, wanted[name], rtol=1e-4, atol=1e-10)
    task.release()
    plain = own.unload()
    penalties = []
    for after in ("adapters/tickets", stage / "adapter", run):
        with nlora.next_task(plain, after=after, method="ewc", lora=VALUES) as task:
            _step(task)
            penalties.append(task.penalty().item())
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-3) == pytest.approx(penalties[2], rel=1e-3)
    assert penalties[0] > 0
    with nlora.next_task(plain, after=run, method="ewc", lora=VALUES) as task:
        for name in ("adapters/once", "adapters/twice"):
            task.save(name, examples=rows)
        assert task.penalty().item() == 0  # a fresh adapter's, and still there
    once, twice = load_memory(Path("adapters/once")), load_memory(Path("adapters/twice"))
    assert all(torch.equal(once[name], twice[name]) for name in wanted)
    assert all((once[name] > wanted[name]).any() for name in wanted)  # with the earlier task's


def test_ewc_needs_the_examples_and_what_it_remembered(model: Any, first: Path, tmp_path: Path) -> None:
    with pytest.raises(nlora.AdapterError, match=r"first: holds nothing that ewc remembers; save every task"):
        nlora.next_task(model, after=[first], method="ewc")
    task = nlora.next_task(model, method="ewc")
    for examples, message in (
        (None, "examples: ewc estimates from them what to remember; give task.save"),
        ([{"input_ids": [5, 9]}], "examples: example 0 lacks input_ids or labels"),
        ([{"input_ids": [5, 9], "labels": [-100, -100]}], "examples: the labels of example 0 should be -100"),
        ([{"input_ids": [5, 9, 0], "labels": [-100, 9, -100]}], ".*, without padding"),
        ([{"input_ids": [5, 9], "labels": [-100, 9, 9]}], "examples: the labels of example 0 should be -100"),
        (
            [{"input_ids": [5], "labels": [5], "attention_mask": []}],
            "examples: .* has 0 entries for 1 input_ids",
        ),
        (
            [{"input_ids": [], "labels": []}],
            "examples: .* of example 0 must be those of one text, not of none",
        ),
        ([{"input_ids": [[5, 9]], "labels": [[5, 9]]}], "examples: .*one text, not of none or of a batch"),
        (
            {"input_ids": [[5, 9]], "labels": [[5, 9]]},
            "examples: example 0 must be a mapping .*, not 'input_ids'",
        ),
        (
            [([5, 9], [5, 9])],
            r"examples: example 0 must be a mapping with input_ids and labels, not \(\[5, 9\]",
        ),
    ):
        with pytest.raises(nlora.InputErrors, match=message):
            task.save(tmp_path / "new", examples=examples)
    assert not (tmp_path / "new").exists()


def test_what_ewc_remembers_has_to_be_of_all_earlier_tasks(model: Any, tmp_path: Path) -> None:
    def learn(name: str, *after: str) -> None:
        with nlora.next_task(
            model, after=[tmp_path / other for other in after], method="ewc", lora=VALUES
        ) as task:
            _step(task)
            task.save(tmp_path / name, examples=[{"input_ids": [5, 9, 7], "labels": [-100, 9, 7]}])

    learn("a")
    learn("alone")
    learn("b", "a")
    learn("c", "a", "b")
    for after, covered, tasks in (
        (("a", "alone"), 1, 2),
        (("b", "a"), 1, 2),
        (("b",), 2, 1),
        (("a", "c"), 3, 2),
    ):
        with pytest.raises(
            nlora.AdapterError, match=rf"remembers there is of {covered} of the {tasks} tasks in `after`"
        ):
            learn("refused", *after)
    assert "lora_A" not in str(model)
    with nlora.next_task(model, after=[tmp_path / "a", tmp_path / "alone"], method="nlora"):
        pass  # it remembers nothing


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_ewc_remembers_the_same_of_padded_examples(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    prompt, answer = [5, 6, 7, 8], [11, 12, 1]
    pad, hidden, nothing = [0] * 5, [0] * 5, [-100] * 5
    if family == "t5":
        plain = {"input_ids": prompt, "labels": answer}
        padded = [{"input_ids": prompt + pad, "attention_mask": [1] * 4 + hidden, "labels": answer + nothing}]
    else:
        ids, labels = prompt + answer, [-100] * 4 + answer
        plain = {"input_ids": ids, "labels": labels}
        padded = [
            {"input_ids": pad + ids, "attention_mask": hidden + [1] * 7, "labels": nothing + labels},
            {"input_ids": ids + pad, "attention_mask": [1] * 7 + hidden, "labels": labels + nothing},
            {"input_ids": ids + pad, "attention_mask": torch.tensor([1] * 7 + hidden), "labels": ids + pad},
        ]
    remembered = []
    for number, example in enumerate([plain, *padded]):
        with nlora.next_task(load(tiny_model(family)), method="ewc", lora=VALUES) as task:
            task.save(tmp_path / str(number), examples=[example])
        remembered.append(load_memory(tmp_path / str(number)))
    whole = remembered.pop() if family == "llama" else {}  # all of it is answer
    for memory in remembered[1:]:
        assert all(torch.equal(memory[name], fisher) for name, fisher in remembered[0].items())
    with nlora.next_task(load(tiny_model(family)), method="ewc", lora=VALUES) as task:
        every = {"input_ids": prompt + answer, "labels": prompt + answer}
        task.save(tmp_path / "every", examples=[every])
    assert all(torch.equal(fisher, load_memory(tmp_path / "every")[name]) for name, fisher in whole.items())


def test_a_memory_is_that_of_its_own_adapter(model: Any, tmp_path: Path) -> None:
    """Not of the adapter that was saved to the folder before, nor of the folder's parent."""
    examples = [{"input_ids": [5, 9, 17], "labels": [-100, 9, 17]}]
    folder = tmp_path / "one"
    with nlora.next_task(model, method="ewc", lora=VALUES) as task:
        task.save(folder, examples=examples)
    with nlora.next_task(model, method="nlora", lora=VALUES) as task:
        task.save(folder / "second")
        task.save(folder / "adapter")
    for after in (folder / "second", folder / "adapter"):
        with pytest.raises(nlora.AdapterError, match="holds nothing that ewc remembers"):
            nlora.next_task(model, method="ewc", after=after, lora=VALUES)
    nlora.next_task(model, method="ewc", after=folder, lora=VALUES).release()
    with nlora.next_task(model, method="nlora", lora=VALUES) as task:
        task.save(folder)
    with pytest.raises(nlora.AdapterError, match="holds nothing that ewc remembers"):
        nlora.next_task(model, method="ewc", after=folder, lora=VALUES)


# What the gradient is


@pytest.mark.parametrize("name", sorted({*builtin_names()} - NEEDS_MORE))
def test_backward_adds_the_gradient_of_the_penalty(name: str, model: Any, first: Path) -> None:
    """Which includes modules that the earlier adapter did not change."""
    method = {"name": name, "tasks": 4} if name == "disjoint" else name
    after = [first] if name not in {"seqlora", "ewc"} else []
    task = nlora.next_task(model, after=after, method=method, lora=VALUES)
    _step(task)
    trained = [p for p in task.model.parameters() if p.requires_grad]
    penalty = task.penalty()
    assert penalty.shape == ()
    assert (penalty > 0) == (name in {"nlora", "olora", "ella", "clora"})
    task.backward()
    wanted = torch.autograd.grad(penalty, trained, allow_unused=True) if penalty > 0 else [None] * 8
    for parameter, gradient in zip(trained, wanted, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", sorted({*builtin_names()} - NEEDS_MORE))
def test_a_released_peft_model_trains_as_before(name: str, model: Any) -> None:
    """No row of its adapter stays without a gradient, as disjoint's do while it learns its task."""
    own = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    method = {"name": name, "tasks": 4} if name == "disjoint" else name
    with nlora.next_task(own, method=method):
        pass
    own(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [p.grad for n, p in own.named_parameters() if "lora_B" in n]
    assert gradients
    for gradient in gradients:
        assert gradient.abs().sum(dim=1).gt(0).all()


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_the_penalty_counts_once_whatever_the_accumulation(model: Any, first: Path, tmp_path: Path) -> None:
    """And it is clipped with the rest: a small max_grad_norm leaves the direction of the sum."""
    data = [{"input_ids": row, "labels": row} for row in IDS.repeat(4, 1)]

    def learned(rows: int, *, callback: bool = True) -> AdapterState:
        task = nlora.next_task(model, after=[first], method={"name": "olora", "weight": 2}, lora=VALUES)
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=rows, gradient_accumulation_steps=4 // rows,
            max_grad_norm=0.01, seed=task.seed, optim="sgd", learning_rate=10, report_to="none",
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        callbacks = [task.callback] if callback else []
        Trainer(task.model, arguments, train_dataset=data, callbacks=callbacks).train()
        task.save(tmp_path / "adapter")
        task.release()
        return load_factors(tmp_path / "adapter")

    whole, halves, none = learned(4), learned(2), learned(4, callback=False)
    for name, f in whole.items():
        assert torch.allclose(f.A, halves[name].A, atol=1e-6)
        assert torch.allclose(f.B, halves[name].B, atol=1e-6)
    assert any(not torch.allclose(f.A, none[name].A, atol=1e-4) for name, f in whole.items())


@pytest.mark.parametrize("targets", [r".*\.(q|v)_proj", "all-linear", ["q_proj"]])
def test_what_a_peft_model_saves_is_loaded_by_peft(
    targets: Any, tiny_model: TinyModel, model: Any, tmp_path: Path
) -> None:
    own = get_peft_model(model, LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))
    with nlora.next_task(own) as task:
        _step(task)
        task.save(tmp_path / "own")
        trained = logits(own)
    again = PeftModel.from_pretrained(load(tiny_model("llama")), tmp_path / "own")
    torch.testing.assert_close(logits(again), trained)


def test_ewc_takes_no_memory_of_nothing_and_none_of_another_method(
    model: Any, first: Path, tmp_path: Path
) -> None:
    task = nlora.next_task(model, method="ewc")
    with pytest.raises(nlora.InputErrors, match="examples: there are none"):
        task.save(tmp_path / "new", examples=iter([]))
    assert not (tmp_path / "new").exists()
    task.release()
    rows = {name: torch.ones(2, f.shape[1]) for name, f in load_factors(first).items()}
    save_file(rows, first / "memory.safetensors")
    with pytest.raises(nlora.NloraError, match="is of another method or model"):
        nlora.next_task(model, after=[first], method="ewc", lora={**VALUES, "targets": ["q_proj", "o_proj"]})


@pytest.mark.parametrize("name", sorted({*builtin_names()} - NEEDS_MORE))
def test_the_model_may_be_moved_once_the_task_has_begun(
    name: str, model: Any, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' Trainer and accelerate do with a model on the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda device_type, **options: nullcontext())  # not for "meta"
    method = {"name": name, "tasks": 4} if name == "disjoint" else name
    after = [first] if name not in {"seqlora", "ewc"} else []
    task = nlora.next_task(model, after=after, method=method, lora=VALUES)
    own: Any = task._method
    if name == "ewc":
        own._here = {n: torch.ones(f.shape) for n, f in task._adapter.factors().items()}
    held = next(
        (vars(own)[key] for key in ("_old", "_squares", "_directions", "_here") if key in vars(own)), {}
    )
    assert bool(held) == (name in {"olora", "ella", "clora", "ewc"})
    task.model.to("meta")
    assert task.penalty().device.type == "meta"
    assert all(tensor.device.type == "meta" for tensor in held.values())


def test_the_rows_that_disjoint_keeps_from_training_move_with_the_gradient() -> None:
    hook = _Zeroed(torch.tensor([[True], [False]]))
    assert torch.equal(hook(torch.ones(2, 3)), torch.tensor([[0.0] * 3, [1.0] * 3]))
    assert hook(torch.ones(2, 3, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", sorted({*builtin_names()} - NEEDS_MORE))
def test_after_release_there_is_no_penalty_of_what_was_held(name: str, model: Any) -> None:
    method = {"name": name, "tasks": 4} if name == "disjoint" else name
    with nlora.next_task(model, method=method, lora=VALUES) as task:
        _step(task)
    penalty = task._method.penalty(task._adapter)
    assert (penalty is not None and float(penalty.detach()) > 0) == (name == "nlora")
