"""One task's trainable LoRA adapter on a frozen backbone, using PEFT.

There is always just one adapter. Earlier tasks' updates are merged into the backbone (`nlora.models.merged_updates`),
so that a step at task 15 costs as much as one at task 1.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlora.config.schema import LoraOptions
from nlora.errors import AdapterError, ModelError
from nlora.models.inspection import recompute_activations, trained_parameters
from nlora.models.lora_factors import (
    WEIGHTS_FILE,
    AdapterState,
    LoraFactors,
    check_finite,
    load_factors,
    not_plain,
)
from nlora.models.target_modules import ModuleShape, target_modules, target_names
from nlora.models.text_layers import is_linear

__all__ = ["AdapterState", "LoraAdapter", "LoraFactors", "ModuleShape", "load_factors", "target_modules"]

ADAPTER = "adapter"
"""The subfolder of a stage's folder that holds its adapter."""
NAME = "default"
"""PEFT's name for the adapter; the released layout and `PeftModel.from_pretrained` expect this one."""


class LoraAdapter:
    """A LoRA adapter on a frozen backbone, ready to train. Create one with `attach`, or take one that exists with `of`.

    model: the PeftModel to train. It wraps the given backbone, which is changed in place.
    """

    def __init__(
        self,
        model: Any,
        modules: dict[str, Any],
        trainable_before: Sequence[nn.Parameter] = (),
        name: str = NAME,
    ) -> None:
        self.model = model
        self._modules = modules
        self._trainable_before = trainable_before
        self._name = name
        self._checkpointing = False
        self._peft_hooks: Sequence[RemovableHandle] = ()

    @classmethod
    def attach(cls, model: nn.Module, lora: LoraOptions, *, seed: int) -> LoraAdapter:
        """Freeze `model` and put a fresh adapter on its target modules: A Kaiming, B zero, both float32.

        The factors depend only on the seed, and no numbers are drawn from the caller's generators. Raises ModelError as
        `target_modules` does, and if PEFT itself refuses a layer (Mamba's out_proj).
        """
        from peft import LoraConfig, get_peft_model

        if hasattr(model, "peft_config"):
            raise AdapterError("the model has an adapter already; detach it before attaching another one")
        shapes = target_modules(model, lora)
        backbone: Any = model
        transposed = any(not isinstance(model.get_submodule(s.name), nn.Linear) for s in shapes)
        alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
        config = LoraConfig(
            task_type="SEQ_2_SEQ_LM" if backbone.config.is_encoder_decoder else "CAUSAL_LM",
            r=lora.r,
            lora_alpha=alpha,
            lora_dropout=lora.dropout,
            target_modules=target_names(model, lora),
            fan_in_fan_out=transposed,  # Conv1D stores its weight as (in, out)
        )
        trainable_before = [p for p in model.parameters() if p.requires_grad]
        # PEFT draws on the CPU, whatever the model's device. It uses a property that transformers has deprecated;
        # users can do nothing about that warning.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.default_generator.manual_seed(seed)
            before = getattr(backbone, "_require_grads_hooks", None)
            try:
                peft_model = get_peft_model(backbone, config)
            except (NotImplementedError, TypeError, ValueError) as error:
                _unwrap(model, trainable_before)
                raise ModelError(f"lora.targets: PEFT cannot adapt these layers: {error}") from error
        adapter = cls(peft_model, {s.name: model.get_submodule(s.name) for s in shapes}, trainable_before)
        if (hooks := getattr(backbone, "_require_grads_hooks", None)) is not before:
            adapter._peft_hooks = hooks or ()  # on the embeddings, of a model that recomputes activations
        if left := next(
            (name for name, layer in adapter._modules.items() if not hasattr(layer, "lora_A")), None
        ):
            adapter.detach()
            raise ModelError(f"lora.targets: PEFT does not adapt {left} of this model; leave it out")
        return adapter

    @classmethod
    def of(cls, model: Any) -> LoraAdapter:
        """The only adapter of a PeftModel, whatever its name.

        Raises AdapterError if there are several, or it is not a plain LoRA adapter of linear layers that trains.
        """
        if len(model.peft_config) != 1:
            names = ", ".join(model.peft_config)
            raise AdapterError(
                f"the PeftModel has several adapters ({names}); delete all but one (delete_adapter)"
            )
        ((name, config),) = model.peft_config.items()
        if str(kind := getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            raise AdapterError(f"the PeftModel's adapter {name} is of kind {kind}; only LORA can be used")
        if used := not_plain(config.to_dict()):
            raise AdapterError(f"the PeftModel's adapter {name} is not plain LoRA, it uses {', '.join(used)}")
        layers = {n: m for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}
        for layer_name, layer in layers.items():
            if name not in layer.lora_A or not is_linear(layer.base_layer):
                raise AdapterError(
                    f"the PeftModel's adapter {name} adapts {layer_name}, a {type(layer.base_layer).__name__}; only "
                    "linear layers can be used"
                )
            if layer.merged:
                raise AdapterError(
                    f"the PeftModel's adapter {name} is merged into the weights; call unmerge_adapter() first"
                )
            if not layer.lora_A[name].weight.requires_grad:
                raise AdapterError(
                    f"the PeftModel's adapter {name} is frozen; load it with PeftModel.from_pretrained(..., "
                    "is_trainable=True)"
                )
        if other := next((n for n in trained_parameters(model) if "lora_" not in n), None):
            raise AdapterError(
                f"the PeftModel also trains {other}, which an adapter's folder does not hold; freeze it "
                "(requires_grad_(False)), so that only the adapter trains"
            )
        return cls(model, layers, name=name)

    def factors(self) -> AdapterState:
        """The live, trainable A (r, in) and B (out, r) of every module, by its name in the backbone."""
        return {
            name: LoraFactors(
                layer.lora_A[self._name].weight, layer.lora_B[self._name].weight, layer.scaling[self._name]
            )
            for name, layer in self._modules.items()
        }

    def state(self) -> AdapterState:
        """A copy of the factors on the CPU in float32, which later training does not change."""
        return {name: LoraFactors(_copy(f.A), _copy(f.B), f.scaling) for name, f in self.factors().items()}

    def load_state(self, state: AdapterState) -> None:
        """Continue from these factors. Raises AdapterError if modules, shapes or scaling differ."""
        live = self.factors()
        if state.keys() != live.keys():
            name = sorted(state.keys() ^ live.keys())[0]
            side = "the given factors lack" if name in live else "the model does not adapt"
            raise AdapterError(f"the factors do not fit the model: {side} module {name}")
        for name, f in live.items():
            given = state[name]
            if (given.A.shape, given.B.shape) != (f.A.shape, f.B.shape) or given.scaling != f.scaling:
                raise AdapterError(
                    f"the factors of {name} do not fit: they are {_described(given)}, but the model has {_described(f)}"
                )
        with torch.no_grad():
            for name, f in live.items():
                f.A.copy_(state[name].A)
                f.B.copy_(state[name].B)

    def save(self, folder: str | Path, *, base_model: str) -> None:
        """Write the adapter in stock PEFT format: `PeftModel.from_pretrained(model, folder)` loads it.

        base_model: for base_model_name_or_path in adapter_config.json; the configuration's name of the model.
        Raises AdapterError, before anything is written, if a factor is not finite.
        """
        from peft import get_peft_model_state_dict

        folder = Path(folder)
        check_finite(self.factors(), str(folder))
        # PEFT's save_pretrained would also write a README and look up the base model on the hub.
        # Given the adapter's alone, because PEFT would gather the weights of a sharded backbone from all processes.
        own = {name: tensor for name, tensor in self.model.named_parameters() if "lora_" in name}
        tensors = get_peft_model_state_dict(
            self.model, own, adapter_name=self._name, save_embedding_layers=False
        )
        config = copy.deepcopy(self.model.peft_config[self._name])
        config.base_model_name_or_path = base_model
        config.inference_mode = True
        if not isinstance(config.target_modules, str):  # a regular expression
            config.target_modules = sorted(config.target_modules)  # PEFT's set has a random order
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: _copy(tensor) for key, tensor in tensors.items()}
        # Not save_file, which makes the file readable by its owner only.
        (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
        config.save_pretrained(str(folder))

    def live_tensors(self) -> dict[str, Tensor]:
        """The parameters in training, by name; see `Trainable`."""
        return dict(trained_parameters(self.model))

    @contextmanager
    def without(self) -> Iterator[None]:
        """A block in which the model is in evaluation mode and the adapter is switched off."""
        training = self.model.training
        trains = {p: p.requires_grad for f in self.factors().values() for p in (f.A, f.B)}
        self.model.eval()
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.model.train(training)
            for parameter, flag in trains.items():  # PEFT has set all of them
                parameter.requires_grad_(flag)

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; undone by `detach`.

        In a frozen backbone, nothing before the first adapter requires a gradient. Reentrant checkpointing would not
        train the adapters in the first layer; transformers works around that with hooks on the embeddings, if it can.
        """
        recompute_activations(self.model.get_base_model(), on=True)
        self._checkpointing = True

    def commit(self, folder: Path, *, base_model: str, tokenizer: Any) -> None:
        """Write the adapter into the stage's folder; see `save`."""
        self.save(folder / ADAPTER, base_model=base_model)

    def detach(self) -> nn.Module:
        """Remove the adapter and return the backbone, with its weights and `requires_grad` as before."""
        backbone: Any = self.model.unload()
        if self._checkpointing:
            recompute_activations(backbone, on=False)
            backbone.disable_input_require_grads()  # transformers leaves its hooks on the embeddings
            self._checkpointing = False
        for hook in self._peft_hooks:
            hook.remove()
        for parameter in self._trainable_before:
            parameter.requires_grad_(True)
        return cast(nn.Module, backbone)


def _described(f: LoraFactors) -> str:
    out_features, in_features = f.shape
    return f"rank {f.A.shape[0]} for a {out_features}x{in_features} layer with scaling {f.scaling:g}"


def _unwrap(model: nn.Module, trainable: Sequence[nn.Parameter]) -> None:
    """Take off the adapters of an attempt that PEFT gave up halfway. trainable: what was so before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    for parameter in trainable:
        parameter.requires_grad_(True)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
