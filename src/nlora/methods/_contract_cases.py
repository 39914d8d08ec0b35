"""What the contract's checks run on: a random model with two layers, its adapters, and a few tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nlora.config.schema import LoraOptions
from nlora.data.task import Example, Task, TokenizedExample
from nlora.methods.base import Method
from nlora.models.lora_adapter import AdapterState, target_modules
from nlora.models.trainable import Trainable

Make = Callable[..., Method]
"""Makes a new object of the method; keywords change its options."""

LORA = LoraOptions(r=4, alpha=8, dropout=0.0)
TASKS = tuple(
    Task(
        name,
        name,
        "Which?",
        ("x", "y"),
        tuple(Example(str(i), f"{name} {i}", "xy"[i % 2]) for i in range(40)),
        (),
    )
    for name in ("first", "second")
)
EXAMPLES = [TokenizedExample([5, 9, 17], [33, 2]), TokenizedExample([7, 7], [21, 2])]


def tiny_model() -> nn.Module:
    """A random LLaMA with two layers, always the same; v_proj maps 32 inputs to 16 outputs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model: nn.Module = LlamaForCausalLM(config)
    return model.eval()


def attached(make: Make, stage: int) -> tuple[Method, Trainable]:
    method, model = make(), tiny_model()
    assert method.check_sequence(3) == []
    method.see_examples(model, [module.name for module in target_modules(model, LORA)], EXAMPLES, pad_id=0)
    return method, method.attach(model, LORA, stage=stage, seed=1)


def begun(make: Make) -> tuple[Method, Trainable, Sequence[AdapterState]]:
    """The method at the third stage, with what it remembers of the second, and an adapter whose B is not zero."""
    method, adapter = attached(make, stage=3)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.copy_(torch.randn(f.B.shape, generator=draw) * 0.1)
    earlier = earlier_states(adapter)
    model = tiny_model()
    names = [module.name for module in target_modules(model, LORA)]
    memory = method.end_task(model, names, EXAMPLES, pad_id=0)
    assert all(isinstance(tensor, Tensor) for tensor in memory.values()), (
        "end_task must return tensors by name"
    )
    method.restore(memory)
    method.begin_task(adapter, earlier)
    return method, adapter, earlier


def after_steps(make: Make, resumed_after: int | None) -> AdapterState:
    """The factors after four optimizer steps with the same gradients each time, resumed after one of them or not."""
    method, adapter, _ = begun(make)
    if not adapter.factors():
        return {}
    optimizer = _optimizer(adapter)
    draw = torch.Generator().manual_seed(4)
    for step in range(1, 5):
        optimizer.zero_grad()
        for p in (p for f in adapter.factors().values() for p in (f.A, f.B)):
            gradient = torch.randn(p.shape, generator=draw)
            if p.requires_grad:
                p.backward(gradient)  # type: ignore[no-untyped-call]
        optimizer.step()
        grads, random = _gradients(adapter), torch.get_rng_state()
        method.after_step(adapter, step=step, steps=4, learning_rate=1e-2, optimizer=optimizer)
        assert torch.equal(torch.get_rng_state(), random), "after_step draws random numbers"
        for one, other in zip(grads, _gradients(adapter), strict=True):
            assert torch.equal(one, other), "after_step changes .grad"
        if step == resumed_after:
            states = adapter.state(), method.state_dict(), optimizer.state_dict()
            method, adapter, _ = begun(make)
            adapter.load_state(states[0])
            method.load_state_dict(states[1])
            optimizer = _optimizer(adapter)
            optimizer.load_state_dict(states[2])
    return adapter.state()


def _optimizer(adapter: Trainable) -> torch.optim.Optimizer:
    parameters = [p for f in adapter.factors().values() for p in (f.A, f.B) if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-2)


def _gradients(adapter: Trainable) -> list[Tensor]:
    grads = [p.grad for f in adapter.factors().values() for p in (f.A, f.B)]
    return [grad.clone() for grad in grads if grad is not None]


def earlier_states(adapter: Trainable) -> list[AdapterState]:
    """The factors of two earlier stages; they do not depend on the adapter's own."""
    states = [adapter.state(), adapter.state()]
    draw = torch.Generator().manual_seed(3)
    for f in (f for state in states for f in state.values()):
        f.A.copy_(torch.randn(f.A.shape, generator=draw) * 0.3)
        f.B.copy_(torch.randn(f.B.shape, generator=draw) * 0.1)
    return states
