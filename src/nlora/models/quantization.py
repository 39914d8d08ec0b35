"""How a backbone is loaded in 4 or 8 bits.

4bit is QLoRA's format (arXiv 2305.14314): NF4 codes in blocks of 64, whose scales are quantized, too. 8bit is
LLM.int8() (arXiv 2208.07339). Both need bitsandbytes. The head and the embedding are not quantized. Updates are float32
as always, and earlier ones stay unmerged (`nlora.models.unmerged_updates`).
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Literal, cast

from nlora.errors import MissingExtraError, ModelError, missing

if TYPE_CHECKING:
    from torch import nn


Quantize = Literal["4bit", "8bit"]
_NOT_INSTALLED = missing("bitsandbytes")


def loading_arguments(quantize: Quantize, dtype: Any, device: Any) -> dict[str, Any]:
    """Further arguments for `from_pretrained`. dtype: the torch dtype that the layers compute in.

    Raises MissingExtraError if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"quantize: {_NOT_INSTALLED}")
    from transformers import BitsAndBytesConfig

    if quantize == "4bit":
        format_ = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    else:
        format_ = BitsAndBytesConfig(load_in_8bit=True)
        # At every product it warns that it computes in float16, but LLM.int8() always does.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": format_, "device_map": {"": device}}


def stored_format(model: nn.Module) -> Quantize | None:
    """The format of a model's own files if bitsandbytes quantized them; None if it did not.

    model: its skeleton, whose configuration tells.
    """
    found = getattr(getattr(model, "config", None), "quantization_config", None) or {}
    return "4bit" if found.get("load_in_4bit") else "8bit" if found.get("load_in_8bit") else None


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking a model's 4-bit weights on a CPU with AVX512-BF16.

    For speed, it does so at a layer's first pass in evaluation mode, and never undoes it. From then on the layer's
    output has no gradient, so adapters below it would silently not train (bitsandbytes 0.50.2).

    Raises ModelError if it has done so already.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        cast(Any, module).support_avx512bf16_for_cpu = False
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                f"bitsandbytes has repacked {name} for a CPU that only answers, so nothing could be trained below it; "
                "load the model again, and call nlora.next_task before it answers"
            )
