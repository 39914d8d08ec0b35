"""An adapter without its model: the factors A and B of every adapted module.

They can be read from any stock PEFT LoRA folder with safetensors alone, without the model and PEFT. Features that
change the meaning of B·A (DoRA, a trained bias, an initialization that changes the frozen weights, ...) are refused,
and the message names them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nlora.errors import AdapterError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# Fields of PEFT's LoraConfig that make the adapter's update something other than B·A.
_NOT_PLAIN = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
    "velora_config", "target_parameters",
)  # fmt: skip
_LARGEST = torch.finfo(torch.float32).max
# Initializations that subtract the initial B·A from the frozen weight.
_MOVES_WEIGHT = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True, eq=False)  # == of tensors is not a bool; compare with torch.equal
class LoraFactors:
    """One module's low-rank update ΔW = scaling·B·A. A: (r, in); B: (out, r).

    >>> LoraFactors(torch.ones(1, 3), torch.ones(2, 1), scaling=0.5).update()
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    """

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def entries(self) -> int:
        """Number of entries of the update, out·in."""
        return self.B.shape[0] * self.A.shape[1]

    def update(self) -> Tensor:
        """ΔW, the whole (out, in) matrix."""
        return self.scaling * (self.B @ self.A)


AdapterState = dict[str, LoraFactors]
"""The factors of one adapter by the backbone's module names, in any order."""


def stack(factors: list[LoraFactors]) -> LoraFactors:
    """One update of rank Σ r_i that equals the sum of the given ones: 1·B·A = Σ s_i·B_i·A_i."""
    return LoraFactors(
        torch.cat([f.A.float() for f in factors]),  # (Σ r_i, in)
        torch.cat([f.scaling * f.B.float() for f in factors], dim=1),  # (out, Σ r_i)
        1.0,
    )


def with_all_modules(update: AdapterState, like: AdapterState) -> AdapterState:
    """The update with zeros for the modules that only the other one has: it leaves these as they were."""
    nothing = {
        name: LoraFactors(torch.zeros(1, f.shape[1]), torch.zeros(f.shape[0], 1), 1.0)
        for name, f in like.items()
        if name not in update
    }
    return {**update, **nothing}


def check_finite(state: Mapping[str, LoraFactors], where: str) -> None:
    """Raises AdapterError with the name of the first module that has a NaN or an infinity, or an update that has."""
    for name, f in state.items():
        if not (torch.isfinite(f.A).all() and torch.isfinite(f.B).all()):
            raise AdapterError(
                f"{where}: the factors of {name} contain NaN or infinity; their training diverged, "
                "try a lower train.learning_rate"
            )
        A, B = (float(factor.detach().abs().max()) if factor.numel() else 0.0 for factor in (f.A, f.B))
        if not abs(f.scaling) * A * B * f.A.shape[0] < _LARGEST:  # no entry is larger than this bound
            raise AdapterError(
                f"{where}: the update of {name} is beyond the numbers of float32; see its lora_alpha"
            )


def load_factors(folder: str | Path) -> AdapterState:
    """The factors in a stock PEFT LoRA folder, float32 on the CPU.

    Supports rslora, rank_pattern and alpha_pattern. Raises AdapterError if the folder is not a plain LoRA adapter, a
    file is missing or damaged, or a factor is not finite.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    halves: dict[str, dict[str, Tensor]] = {}
    if key := next((key for key in tensors if ".lora_embedding_" in key), None):
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: tensor '{key}' adapts an embedding; only LoRA on linear layers can be read, so "
            "train an adapter whose target_modules do not name it"
        )
    for key, tensor in tensors.items():
        if key.endswith(".base_layer.weight"):
            raise AdapterError(
                f"{folder / WEIGHTS_FILE}: tensor '{key}' is a copy of the model's own weights, which PEFT adds for an "
                "adapted output layer; save the adapter with save_pretrained(folder, save_embedding_layers=False)"
            )
        match = _KEY.fullmatch(key)
        if match is None or tensor.dim() != 2 or tensor.is_complex():
            raise AdapterError(
                f"{folder / WEIGHTS_FILE}: tensor '{key}' of shape {list(tensor.shape)} is not a factor of a "
                "linear layer; only LoRA on linear layers can be read"
            )
        # A copy: the tensors are views of the file, and would change with it.
        halves.setdefault(match["module"], {})[match["factor"]] = tensor.to(torch.float32, copy=True)
    if not halves:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: holds no tensors")
    state = {name: _factors(folder, config, name, pair) for name, pair in halves.items()}
    check_finite(state, str(folder))
    return state


def _factors(folder: Path, config: dict[str, Any], name: str, pair: dict[str, Tensor]) -> LoraFactors:
    if len(pair) < 2:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: module {name} has only lora_{next(iter(pair))}")
    A, B = pair["A"], pair["B"]
    try:
        r = _of_pattern(config.get("rank_pattern"), name, config.get("r", 8))
        alpha = _of_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    except AdapterError as error:
        raise AdapterError(f"{folder / CONFIG_FILE}: {error}") from error
    if not isinstance(r, int) or not isinstance(alpha, int | float) or r < 1 or not abs(alpha) < _LARGEST:
        raise AdapterError(
            f"{folder / CONFIG_FILE}: r {r!r:.40} and lora_alpha {alpha!r:.40} are not numbers > 0"
        )
    if not A.shape[0] == B.shape[1] == r:
        raise AdapterError(
            f"{folder}: module {name} has rank {A.shape[0]} (lora_A) and {B.shape[1]} (lora_B) in "
            f"{WEIGHTS_FILE}, but {CONFIG_FILE} says {r}"
        )
    return LoraFactors(A, B, alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r)


def _of_pattern(pattern: Any, name: str, default: Any) -> Any:
    """The pattern's value for a module. Its keys are regular expressions for the end of the module's name.

    Raises AdapterError for what is no such pattern, and for one that might be matched forever.
    """
    if not isinstance(pattern or {}, dict):
        raise AdapterError(
            f"rank_pattern and alpha_pattern must map names to numbers, not be {pattern!r:.60}"
        )
    for key, value in (pattern or {}).items():
        if name == key or name.endswith(f".{key}"):
            return value
        if re.search(r"\)[*+{]", key) or len(re.findall(r"[*+{]", key)) > 4 or len(key) > 1000:
            raise AdapterError(
                f"the pattern {key!r:.60} may take too long to match; write the names of its layers"
            )
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise AdapterError(f"the pattern {key!r:.60} is no regular expression ({error})") from error
    return default


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = "there is no such folder" if not folder.is_dir() else f"the folder has no {CONFIG_FILE}"
        raise AdapterError(f"{folder}: not an adapter, {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: should be a JSON object, is a {type(config).__name__}")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{folder}: an adapter of kind {kind}; only LORA can be read")
    if used := not_plain(config):
        raise AdapterError(
            f"{folder}: not a plain LoRA adapter, it uses {', '.join(used)}; that cannot be read"
        )
    return config


def not_plain(config: Mapping[str, Any]) -> list[str]:
    """The fields of a LoraConfig's values that make the adapter's update something other than scaling·B·A."""
    used = [field for field in _NOT_PLAIN if config.get(field)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_MOVES_WEIGHT):
        used.append(f"init_lora_weights: {init}")
    return used


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "; adapter_model.bin is a pickle, save it again as safetensors" if pickled else ""
        raise AdapterError(f"{folder}: the folder has no {WEIGHTS_FILE}{hint}") from None
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: damaged or not a safetensors file ({error})") from error
