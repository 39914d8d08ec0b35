"""Fisher information against the definition, taken example by example with plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nlora.config import LoraOptions
from nlora.data.encode import Encoded
from nlora.fisher import fisher_information
from nlora.targets import target_modules
from tiny import assert_bitwise, load, weights

EXAMPLES = [Encoded((5, 9, 17), (33, 2)), Encoded((7, 7, 21, 3), (60, 11, 2)), Encoded((8,), (4, 2))]


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
