"""Chat templates as models have them, on a small tokenizer, and a tiny model that chats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl

FOLDER = Path(trl.__file__).parent / "chat_templates"
"""The templates of many families, as TRL ships them."""

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for message in messages %}### {{ message.role }}: {{ message.content | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)
"""A template without special tokens."""
_SPECIAL = re.compile(r"<\|[^|>\s']{1,40}\|>|</?(?:start|end)_of_turn>|<\|?turn\|?>")


def template(name: str) -> str:
    """mistral, plain, or the name of one of TRL's files."""
    own = {"mistral": MISTRAL, "plain": PLAIN}
    return own[name] if name in own else (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def with_template(tokenizer: Any, text: str) -> Any:
    """The tokenizer with a chat template, whose special tokens it gets, too."""
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "extra_special_tokens": sorted(set(_SPECIAL.findall(text)))}
    )
    tokenizer.chat_template = text
    return tokenizer


def save_model(folder: Path, base: Path, tokenizer: Any) -> Path:
    """A model of `tiny_model` with an embedding as large as the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
