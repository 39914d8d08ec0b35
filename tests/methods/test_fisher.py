"""Fisher information compared with its definition, example by example with plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.config.schema import LoraOptions
from nlora.data.task import TokenizedExample
from nlora.methods import _passes
from nlora.methods._fisher import fisher_information
from nlora.models.target_modules import target_modules
from tiny import assert_bitwise, load, weights

EXAMPLES = [
    TokenizedExample((5, 9, 17), (33, 2)),
    TokenizedExample((7, 7, 21, 3), (60, 11, 2)),
    TokenizedExample((8,), (4, 2)),
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_it_is_the_mean_squared_gradient_of_the_answer(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model = load(tiny_model(family))
    model.requires_grad_(False)
    names = [shape.name for shape in target_modules(model, LoraOptions())]
    before = weights(model)
    found = fisher_information(model, names, EXAMPLES, pad_id=0)
    assert_bitwise(model, before)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    for name in (names[0], names[-1]):
        layer = model.get_submodule(name)
        layer.weight.requires_grad_(True)
        expected = torch.zeros_like(layer.weight)
        for example in EXAMPLES:
            prompt, answer = list(example.prompt_ids), list(example.answer_ids)
            if family == "t5":
                logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).logits[0]
            else:
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            picked = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]
            (gradient,) = torch.autograd.grad(picked.sum(), layer.weight)
            expected += gradient**2 / len(EXAMPLES)
        layer.weight.requires_grad_(False)
        expected = expected.t() if family == "gpt2" else expected  # Conv1D keeps (in, out)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-10)
        assert found[name].is_contiguous()


MANY = [
    TokenizedExample(
        tuple(range(3, 4 + i % 7)), (10 + i, 11, 2)[: 1 + i % 3], earlier=((1, 2),) if i % 7 else ()
    )
    for i in range(20)
]
"""Of different lengths, and some with two answers."""


def passes(model: Any, names: list[str], examples: list[TokenizedExample]) -> tuple[dict[str, Any], int]:
    """The Fisher information, and how many passes it took."""
    calls: list[None] = []
    hook = model.get_submodule(names[0]).register_forward_hook(lambda *_: calls.append(None))
    found = fisher_information(model, names, examples, pad_id=0)
    hook.remove()
    return found, len(calls)


@pytest.mark.parametrize("flattens", [False, True])
def test_examples_that_share_a_pass_keep_gradients_of_their_own(
    flattens: bool, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's feed-forward part, too, which computes fewer tokens; and a layer that is given other rows."""
    model = load(tiny_model("llama")).requires_grad_(False)
    names = [
        shape.name for shape in target_modules(model, LoraOptions(targets=("q_proj", "up_proj", "down_proj")))
    ]
    if flattens:
        mlp = model.model.layers[0].mlp
        forward = mlp.forward
        monkeypatch.setattr(mlp, "forward", lambda x: forward(x.flatten(0, 1)).view_as(x))
    monkeypatch.setattr(_passes, "TOKENS", 40)
    found, count = passes(model, names, MANY)
    trying, groups = 3, 3
    assert count == trying + groups + (len(MANY) if flattens else 0)  # each group is tried
    alone = [fisher_information(model, names, [example], pad_id=0) for example in MANY]
    for name in names:
        expected = torch.stack([of_one[name] for of_one in alone]).mean(0)
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-9)


def test_a_layer_that_is_called_twice_has_one_gradient(tiny_model: Callable[[str], Path]) -> None:
    model = load(tiny_model("llama")).requires_grad_(False)
    first, second = model.model.layers[:2]
    second.self_attn.q_proj = first.self_attn.q_proj
    name = "model.layers.0.self_attn.q_proj"
    found = fisher_information(model, [name], MANY, pad_id=0)[name]
    weight = first.self_attn.q_proj.weight.requires_grad_(True)
    expected = torch.zeros_like(weight)
    for example in MANY:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        counted = [*range(1, 2)] * bool(example.earlier) + [*range(len(example.prompt_ids), ids.shape[1])]
        (gradient,) = torch.autograd.grad(sum(log_p[at - 1, ids[0, at]] for at in counted), weight)
        expected += gradient**2 / len(MANY)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_layers_that_share_a_weight_get_separate_fisher_information(tiny_family: Callable[..., Any]) -> None:
    """Each layer has its own update, so only the gradient through that layer counts."""
    model = tiny_family("zamba2").requires_grad_(False)
    names = [shape.name for shape in target_modules(model, LoraOptions(targets=("down_proj",)))]
    shared = model.get_submodule(names[0]).weight
    assert all(model.get_submodule(name).weight is shared for name in names[1:])
    found = fisher_information(model, names, EXAMPLES[:1], pad_id=0)
    ids = torch.tensor([[*EXAMPLES[0].prompt_ids, *EXAMPLES[0].answer_ids]])
    for name in names:
        layer = model.get_submodule(name)
        update = torch.zeros_like(layer.weight, requires_grad=True)
        hook = layer.register_forward_hook(lambda _, args, out, update=update: out + args[0] @ update.T)
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        picked = log_p[2, 33] + log_p[3, 2]  # its answer, after three tokens
        (gradient,) = torch.autograd.grad(picked, update)
        hook.remove()
        torch.testing.assert_close(found[name], gradient**2, rtol=1e-3, atol=1e-10)
    assert all(model.get_submodule(name).weight is shared for name in names)
