"""Layers and kinds from the names of modules."""

from __future__ import annotations

import pytest

from nlora.analysis.module_names import in_order, kinds_of, layer_of


def test_layers_are_sorted_by_number() -> None:
    names = [f"model.layers.{i}.q_proj" for i in (10, 9, 2, 0)]
    assert in_order(names) == [f"model.layers.{i}.q_proj" for i in (0, 2, 9, 10)]
    assert in_order(["b", "a.1", "a.b", "a"]) == ["a", "a.1", "a.b", "b"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.7.self_attn.q_proj", 7),
        ("encoder.block.11.layer.0.SelfAttention.q", 11),
        ("transformer.h.3.attn.c_attn", 3),
        ("lm_head", None),
        ("model.fc1", None),
    ],
)
def test_the_layer_is_the_first_number(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_a_kind_is_the_last_part_if_that_is_unambiguous() -> None:
    names = [f"model.layers.{i}.self_attn.{kind}" for i in range(3) for kind in ("q_proj", "v_proj")]
    assert kinds_of(names) == ["q_proj", "v_proj"] * 3
    assert kinds_of(["lm_head"]) == ["lm_head"]


def test_kinds_of_t5_name_the_attention() -> None:
    names = [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.q",
        "decoder.block.0.layer.2.DenseReluDense.wi",
    ]
    assert kinds_of(names) == [
        "encoder.SelfAttention.q",
        "decoder.SelfAttention.q",
        "decoder.EncDecAttention.q",
        "decoder.EncDecAttention.q",
        "wi",
    ]
