"""Models that exist, models that do not, and tokenizers that lack what training needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlora.errors import ModelError
from nlora.models.backbone import load_backbone, load_skeleton, load_tokenizer

TinyModel = Callable[[str], Path]


@pytest.mark.parametrize(("family", "encoder_decoder"), [("llama", False), ("t5", True)])
def test_a_backbone_is_frozen_and_knows_its_kind(
    tiny_model: TinyModel, family: str, encoder_decoder: bool
) -> None:
    backbone = load_backbone(str(tiny_model(family)), dtype="bfloat16")
    assert backbone.encoder_decoder is encoder_decoder
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}


def test_a_skeleton_has_the_shapes_and_no_weights(tiny_model: TinyModel) -> None:
    skeleton = load_skeleton(str(tiny_model("llama")))
    whole = load_backbone(str(tiny_model("llama"))).model
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {
        n: p.shape for n, p in whole.named_parameters()
    }
    assert all(p.is_meta for p in skeleton.parameters())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "no such folder"),
        ("model.gguf", "no such GGUF file"),
        ("someone/some-model", "neither a folder nor available on the hub"),
    ],
)
def test_a_model_that_does_not_exist(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_backbone(name)


def test_a_model_that_asks_for_consent_says_where_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own message has three lines, the first of which says nothing to do."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(
            "You are trying to access a gated repo.\nMake sure to have access to it at ...\n401 Client Error"
        )

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(ModelError) as error:
        load_skeleton("meta-llama/Llama-3.1-8B")
    assert str(error.value) == (
        "model meta-llama/Llama-3.1-8B: its owners ask for consent; give it on "
        "https://huggingface.co/meta-llama/Llama-3.1-8B, then run: hf auth login"
    )


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_skeleton(str(tmp_path))
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(ModelError, match=r"name the file in it: .*weights\.gguf"):
        load_skeleton(str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ModelError) as error:
        load_skeleton(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_a_broken_weight_file_is_one_clear_line(tmp_path: Path, tiny_model: TinyModel) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model("llama"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError) as error:
        load_backbone(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path, tiny_model: TinyModel) -> None:
    tokenizer = load_tokenizer(str(tiny_model("llama")))
    tokenizer.pad_token = None
    shutil.copytree(tiny_model("llama"), tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    again = load_tokenizer(str(tmp_path / "a"))
    assert again.pad_token_id == again.eos_token_id == 1


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_padding_token_that_the_model_has_no_row_for_is_not_used(
    tmp_path: Path, tiny_model: TinyModel, family: str
) -> None:
    """A padding token was added to the tokenizer, and the embedding was not resized."""
    shutil.copytree(tiny_model(family), tmp_path / "a")
    tokenizer = load_tokenizer(str(tmp_path / "a"))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == len(tokenizer) - 1 == 400
    tokenizer.save_pretrained(tmp_path / "a")
    backbone = load_backbone(str(tmp_path / "a"))
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id == 1


def test_an_end_token_that_the_model_has_no_row_for_is_refused(tmp_path: Path, tiny_model: TinyModel) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / "a")
    tokenizer = load_tokenizer(str(tmp_path / "a"))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(
        ModelError, match=r"end token <\|im_end\|> is number 400, but its embedding ends with 399"
    ):
        load_tokenizer(str(tmp_path / "a"))


def test_a_model_that_does_not_read_text_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match=r"transformers has no language model for vit"):
        load_skeleton(str(tmp_path))


def test_weights_that_would_be_random_are_refused(tmp_path: Path, tiny_model: TinyModel) -> None:
    """transformers initializes what a file lacks, such as a head, or everything in another model's file."""
    shutil.copytree(tiny_model("llama"), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(kept, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight and 2 more weights, which"
    ):
        load_backbone(str(tmp_path / "a"))
