"""Fisher information compared with its definition, example by example with plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nlora.config.schema import LoraOptions
from nlora.data.task import TokenizedExample
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
