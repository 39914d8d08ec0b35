"""Loads the model that learns the tasks: from the hub, a folder, a GGUF file, or the built-in default.

The built-in default is SmolLM2-135M-Instruct, which is available on the package index as a 4-bit GGUF file. It is
dequantized once into the cache folder and then loaded like any other folder.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.config.paths import expanded
from nlora.data.permissions import open_to_others
from nlora.errors import FetchError, ModelError, first_line
from nlora.models import processes
from nlora.models.host_modes import require_float32
from nlora.models.hub import offline_without_hub
from nlora.models.quantization import Quantize, keep_trainable, loading_arguments
from nlora.models.quiet_bars import quiet_bars
from nlora.models.side_effects import without_side_effects

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

BUILTIN_MODEL = "smollm2"
"""The name of the built-in default model."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen model with its tokenizer.

    model: in evaluation mode, no parameter requires a gradient.
    name: as in the configuration; saved adapters name it as their base model.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    encoder_decoder: bool
    name: str


@dataclass(frozen=True, slots=True)
class _Source:
    path: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def load_backbone(
    name: str,
    *,
    dtype: str = "float32",
    quantize: Quantize | None = None,
    fsdp: bool = False,
    trust_remote_code: bool = False,
) -> Backbone:
    """Model and tokenizer, on the device that accelerate chooses (a GPU if there is one).

    name: hub id, folder, GGUF file, or "smollm2". dtype: "float32" or "bfloat16"; the latter changes how this process
    multiplies on some CPUs, see `nlora.kernels.bfloat16_products`. quantize: see `nlora.models.quantization`. fsdp:
    each process loads its part of the weights only; all have to call it.
    Raises ModelError if it cannot be found, is not a language model, cannot be quantized, its tokenizer has no
    end-of-text token, or torch's default dtype is not float32.
    """
    import torch
    from accelerate import PartialState

    from nlora.kernels.bfloat16_products import widen_products

    require_float32()
    source = _locate(name)
    config = load_config(name, trust_remote_code=trust_remote_code)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    number, device = getattr(torch, dtype), PartialState().device
    if number == torch.bfloat16:
        widen_products()
    arguments = source.arguments | (loading_arguments(quantize, number, device) if quantize else {})
    if fsdp:
        from transformers.distributed.configuration_utils import DistributedConfig

        arguments["distributed_config"] = DistributedConfig(fsdp_size=processes.size())
    with _one_clear_line(name), quiet_bars():
        model, found = auto_class(config, name).from_pretrained(
            source.path,
            dtype=number,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **arguments,
        )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise ModelError(
            f"model {name}: its files lack {missing[0]}{more}, which would be random; "
            f"they are not the files of a {type(model).__name__}"
        )
    if source.gguf_file:
        _forget_quantization(model)
    model.eval()
    model.requires_grad_(False)
    if quantize is None and not fsdp:  # otherwise they are there already
        model.to(device)
    without_side_effects(model)
    keep_trainable(model)  # a model from the hub may be quantized already
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    return Backbone(model, tokenizer, encoder_decoder, name)


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The model's configuration (transformers' PreTrainedConfig)."""
    import transformers

    source = _locate(name)
    with _one_clear_line(name), quiet_bars():
        return transformers.AutoConfig.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments
        )


def load_skeleton(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The model without its weights (on the meta device), to check a run within a second."""
    import torch

    require_float32()
    config = load_config(name, trust_remote_code=trust_remote_code)
    kind: Any = auto_class(config, name)
    with _one_clear_line(name), torch.device("meta"):
        skeleton: nn.Module = kind.from_config(config, trust_remote_code=trust_remote_code)
    return skeleton


def auto_class(config: Any, name: str) -> Any:
    """The transformers class that loads this model."""
    import transformers

    causal, seq2seq = transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM
    # Language models that also take images or sounds are listed elsewhere, some of them with the seq2seq models.
    kinds: tuple[Any, ...] = (causal, seq2seq, transformers.AutoModelForImageTextToText)
    if getattr(config, "is_encoder_decoder", False):
        kinds = (seq2seq,)
    if "auto_map" in vars(config):  # it comes with its own code
        return kinds[0]
    if found := [kind for kind in kinds if type(config) in kind._model_mapping]:
        return found[0]
    raise ModelError(f"model {name}: transformers has no language model for {config.model_type}")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    If it has no padding token, or one beyond the model's embedding, it pads with its end token, which the mask hides.
    Raises ModelError if it has no end token, or one beyond the embedding.
    """
    import transformers

    source = _locate(name)
    with _one_clear_line(name), quiet_bars():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {name}: its tokenizer has no end token; answers could not end")
    rows = embedding_rows(load_config(name, trust_remote_code=trust_remote_code))
    if tokenizer.eos_token_id >= rows:
        raise ModelError(
            f"model {name}: its tokenizer's end token {tokenizer.eos_token} is number {tokenizer.eos_token_id}, but "
            f"its embedding ends with {rows - 1:.0f}; use the model's own tokenizer, or resize the embedding"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def embedding_rows(config: Any) -> float:
    """How many tokens the model knows; infinity if its configuration does not say."""
    try:
        return float(getattr(config.get_text_config(), "vocab_size", math.inf))
    except ValueError:  # it consists of several parts, none of which is the text's
        return math.inf


def _locate(name: str) -> _Source:
    """Where the files of a model are."""
    if name == BUILTIN_MODEL:
        return _Source(str(builtin_model_folder()))
    path = expanded(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {name}: no such GGUF file")
        return _Source(str(path.parent), path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = next((f"; name the file in it: {f}" for f in path.glob("*.gguf")), "")
            raise ModelError(f"model {name}: the folder has no config.json{hint}")
        return _Source(str(path))
    if path.exists():
        raise ModelError(
            f"model {name}: is a file, but not a GGUF file; give a folder, a GGUF file, or a hub id"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        here = "" if path.is_absolute() else f" in {Path.cwd()}, from where a model's path counts"
        raise ModelError(f"model {name}: there is no such folder{here}")
    return _Source(name)


@contextmanager
def _one_clear_line(name: str) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be loaded into one line."""
    from safetensors import SafetensorError

    is_local = name == BUILTIN_MODEL or expanded(name).exists()
    try:
        with nullcontext() if is_local else offline_without_hub():
            yield
    except SafetensorError as error:
        raise ModelError(f"model {name}: a weight file is damaged ({error}); download it again") from error
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        text = str(error)
        first = first_line(error)
        if "trust_remote_code" in text:
            first = "it comes with its own Python code; set trust_remote_code: true if you trust it"
        elif "gated repo" in text:
            first = f"its owners ask for consent; give it on https://huggingface.co/{name}, then run: hf auth login"
        elif isinstance(error, OSError) and not Path(name).exists():
            first = (
                "neither a folder nor available on the hub; "
                "give a folder, a GGUF file, a hub id, or smollm2 (the built-in default)"
            )
        raise ModelError(f"model {name}: {first}") from error


def builtin_model_folder() -> Path:
    """Folder of the built-in default as safetensors, created on first use (about half a minute)."""
    from filelock import FileLock

    from nlora.data.downloads import cache_folder, smollm2_gguf

    folder = cache_folder() / "smollm2-135m-instruct"
    try:
        if (folder / "config.json").is_file():
            return folder
        gguf = smollm2_gguf()
        with FileLock(str(folder) + ".lock"):
            if not (folder / "config.json").is_file():
                _convert(gguf, folder)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"{folder}: {error.strerror or error}; set NLORA_CACHE to another") from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize the GGUF file into a folder, which appears complete or not at all."""
    import torch
    import transformers

    temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        # The conversion draws its own progress bar on stderr, which no setting turns off, and NumPy warns.
        with quiet_bars(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            _forget_quantization(model)
            model.config._name_or_path = BUILTIN_MODEL
            model.save_pretrained(temporary)
            transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(temporary)
        # The configuration marks the folder as complete, so it must be readable before the rename.
        json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        open_to_others(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _forget_quantization(model: Any) -> None:
    """Remove the mark of quantization from a dequantized GGUF model, which could otherwise not be saved or trained."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
