"""A tiny random model of every family that transformers lists, made by the names of its configuration's fields.

    model = tiny_model(tiny_config("deepseek_v3"), "causal")
    model = tiny_folder("deepseek_v3", folder)       # the same from a folder with a tokenizer, as transformers loads it

A size is set by what its name says that it counts (layers, heads, experts, ...); a stack of layers gets one of each
kind that the family has. What a few families want beyond that stands in `_SPECIAL`.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

VOCABULARY = 400
"""Tokens of the tiny models."""
_MARKS = 380
"""From this one on: marks of images and sounds, which no text holds."""
_TEXT = (
    "Task:TC Dataset:agnews What is the topic? Option: market, fox, lazy dog Answer: the quick brown fox jumps over "
    "the lazy dog and runs to the market to sell its stock Science"
)
_WINDOW = 8
"""Tokens that a layer with a window sees: fewer than a prompt has."""

FAMILIES: dict[str, str] = {
    **dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "image and text"),
    **dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "causal"),
    **dict.fromkeys(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "encoder-decoder"),
}
"""Model type -> how transformers lists it. One that is listed as both (BART) is tried as an encoder-decoder model, and
as a decoder alone under the name `bart (decoder)`."""
BOTH = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys())
FAMILIES |= {f"{name} (decoder)": "causal" for name in BOTH}

_GAIN = 1.5
"""Of a random matrix: what it multiplies the size of a vector by. More, and attention looks at one token only."""

# What a field's name says that it counts, and the number for it; the first that matches.
# fmt: off
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(unpadded_)?vocab_size|n_vocab|vocab_size_per_layer_input|prompt_length", VOCABULARY),
    (r"max_.*position_embeddings|n_positions|n_ctx|max_seq_len|max_position|max_sequence_length|max_window_layers|"
     r"context_length", 512),
    (r"(num_)?(nextn|mtp).*", 0),
    (r".*sliding_window|window_size|attention_chunk_size|local_attention_window_len|attention_window", _WINDOW),
    (r"(num_)?(hidden_|encoder_|decoder_|global_)?n?_?layers?|n_layers?|depth|num_blocks", 2),
    (r"index_topk|index_n_heads", 16),  # as in the released ones, no two keys get the same score from all heads
    (r".*(num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads)", 2),
    (r".*(attention_heads|n_heads?|num_heads|num_q_heads|query_heads)", 4),
    (r".*(n_routed_experts|num_experts|num_local_experts|ffn_num_experts|zero_expert_num)", 4),
    (r".*(experts_per_tok|top_k|topk|moe_k|experts_per_token|num_selected_experts)", 2),
    (r"n_group|topk_group|num_expert_group.*|num_mem_blocks", 1),
    (r"first_k_dense_replace|num_dense_layers|first_dense.*|moe_layer_start_index", 1),
    (r".*(_lora_rank|low_rank_dim|laurel_rank|adapter_rank)|encoder_hash_byte_group_vocab", 16),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"(.*_)?(head_dim|d_kv|head_size|v_head_dim|qk_nope_head_dim|kv_channels|state_size|d_state|mamba_d_head|"
     r"chunk_size|axial.*)", 8),
    (r".*(ffn_dim|d_ff|intermediate_size|ffn_hidden_size|n_inner|d_inner|inner_dim|ff_dim|feed_forward_size|"
     r"dim_feedforward|shared_expert_.*_size)", 64),
    (r"hidden_size_per_layer_input|num_centroids", 8),
    (r".*(hidden_size|hidden_size_global|d_model|n_embd|embed_dim|word_embed_proj_dim|embedding_size|dim_model|"
     r"emb_dim|lru_width|hidden_dim|out_dim|adapter_in_dim|adapter_input_size|downsample_hidden_size|output_proj_dims|"
     r"codebook_dim)", 32),
    (r"image_size|crop_size", 32), (r"patch_size", 8), (r"num_channels|in_channels", 3),
    (r"nemo_conv_channels|ext_pw_out_channel|depthwise_separable_out_channel|base_channels", 32),
    (r"(image|audio|video|boi|eoi|boa|eoa|vision).*_token_(id|index)", _MARKS),
    (r"vocab_offset", VOCABULARY),
)
# fmt: on
_MAMBA = {"num_heads": 8, "mamba_num_heads": 8, "n_groups": 2, "mamba_n_heads": 8, "mamba_n_groups": 2}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_TURNS_THRICE = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen2_5_omni",
    "glm4v",
    "glm_ocr",
    "paddleocr_vl",
    "ernie4_5_vl_moe",
)
_SPECIAL: dict[str, dict[str, Any]] = {
    "mamba2": _MAMBA,
    "nemotron_h": {**_MAMBA, "layers_block_type": ["linear_attention", "moe", "full_attention"]},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "falcon_h1": _MAMBA,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "codegen": {"n_head": 4, "n_embd": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 50,
        "hc_lowrank": 8,
        "split_ngram_parts": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
    "marian": {"decoder_start_token_id": 0},
    "glm4v_moe_text": {
        "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    },
    "hunyuan_vl_text": {"head_dim": 8},
    "hy_v4_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0]}},
    "nemotron3_5_transcribe_word_timestamp": {"blank_token_id": _MARKS},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 64},
    "vibevoice_acoustic_tokenizer_encoder": {
        "downsampling_ratios": [2, 2],
        "num_filters": 4,
        "depths": [1, 1, 1],
    },
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": None},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "num_buckets": 2,
        "attn_layers": ["local", "lsh"],
        "num_attention_heads": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "led": {"attention_window": _WINDOW},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 32, "moe_num_experts": 4},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        }
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "dense"]},
    **{
        f"{family}_text": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}
        for family in _TURNS_THRICE
    },
}


def tiny_config(family: str) -> Any:
    """The configuration of a tiny model of a family."""
    kind = CONFIG_MAPPING[family.removesuffix(" (decoder)")]
    config = kind(**_fields(kind))
    if family == "encoder-decoder":
        config.decoder.is_decoder = config.decoder.add_cross_attention = True
    if FAMILIES[family] == "causal" and type(config) in transformers.AutoModelForCausalLM._model_mapping:
        # Of BERT and BART transformers makes encoders where nothing else is said.
        if hasattr(config, "is_decoder"):
            config.is_decoder = True
        config.is_encoder_decoder = False
    rotates_labels = family in {"mbart", "plbart"}  # their decoders start with a label's last token
    if (
        config.is_encoder_decoder
        and not rotates_labels
        and getattr(config, "decoder_start_token_id", None) is None
    ):
        config.decoder_start_token_id = 1  # not the padding token: some models hide that wherever it stands
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}.items():
            setattr(part, name, value)
    return config


def _fields(kind: Any) -> dict[str, Any]:
    """The arguments that make a tiny configuration of this class."""
    found: dict[str, Any] = {}
    usual = None
    mla = any(f.name == "kv_lora_rank" for f in dataclasses.fields(kind))
    for field in dataclasses.fields(kind):
        name, value = field.name, field.default
        sub = (kind.sub_configs or {}).get(name)
        if sub is not None:
            usual = usual or kind()
            part = getattr(usual, name, None)
            if part is not None:
                found[name] = type(part)(**_fields(type(part)))
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value)
            if mla and name == "num_key_value_heads":
                size = 4
            if size != value:
                found[name] = size
        if re.fullmatch(r".*(dropout|drop_rate|drop$|pdrop|layerdrop|jitter).*", name) and isinstance(
            field.default, float
        ):
            found[name] = 0.0
    found |= _layer_types(kind)
    return found | _SPECIAL.get(kind.model_type, {})


def _layer_types(kind: Any) -> dict[str, Any]:
    """One layer of each kind that the family's usual configuration has."""
    types = (
        getattr(kind(), "layer_types", None)
        if any(f.name == "layer_types" for f in dataclasses.fields(kind))
        else None
    )
    if not types:
        return {}
    kinds = list(dict.fromkeys(types))
    kinds = kinds * 2 if len(kinds) == 1 else kinds
    return {"layer_types": kinds, "num_hidden_layers": len(kinds)}


def _auto(kind: str) -> Any:
    return {
        "causal": transformers.AutoModelForCausalLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        "image and text": transformers.AutoModelForImageTextToText,
    }[kind]


def tiny_model(config: Any, kind: str) -> Any:
    """A random model in evaluation mode whose predictions differ; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = _auto(kind).from_config(config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() > 1 and "embed" not in name and float(p.std()) > 0:
                    p.mul_(_GAIN / (float(p.std()) * p.shape[-1] ** 0.5))
                elif p.dim() <= 1:  # norms of fresh models have weights of 1, which would hide a lost weight
                    p.add_(torch.rand_like(p) * 0.3)
    return model.eval()


def tiny_folder(family: str, folder: Path) -> Any:
    """Writes a family's tiny model and a tokenizer; returns the model as transformers alone loads it."""
    config = tiny_config(family)
    model = tiny_model(config, FAMILIES[family])
    model.save_pretrained(folder)
    config.save_pretrained(folder)  # as released: with the parts that this class leaves out
    tokenizer(bool(model.config.is_encoder_decoder)).save_pretrained(folder)
    kind = _auto(FAMILIES[family])
    model, said = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if said["missing_keys"]:
        raise RuntimeError(
            f"transformers does not find {sorted(said['missing_keys'])[0]} in what it has saved"
        )
    return model.eval()


def tokenizer(encoder_decoder: bool) -> Any:
    """A byte-level BPE: pad 0, end 1; an encoder's inputs end with the end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MARKS,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_TEXT] * 4, trainer)
    if encoder_decoder:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
