"""Python code for users of an export who have stock libraries only: how to load it, and how to ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlora.runs.export.result import Export


def loading(export: Export, base: str) -> str:
    """Code that loads `FOLDER`, where the export lies, over the backbone `base` if it needs one."""
    form = export.options.form
    auto, own_code = export.auto_class, export.checkpoint.config.trust_remote_code
    more = ", trust_remote_code=True" if own_code else ""
    imports = f"from transformers import AutoTokenizer, {auto}\n"
    if form == "merged":
        source = f'"FOLDER"{more}'
        return (
            f"{imports}\nmodel = {auto}.from_pretrained({source})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({source})"
        )
    is_gguf = base.endswith(".gguf")
    source = f'"FOLDER_OF_THE_FILE", gguf_file="{base}"' if is_gguf else f'"{base}"{more}'
    lines = (
        f'\nbase = {auto}.from_pretrained({source}, dtype="float32")\n'
        f"tokenizer = AutoTokenizer.from_pretrained({source})"
    )
    if form == "adapter":
        return (
            f'from peft import PeftModel\n{imports}{lines}\nmodel = PeftModel.from_pretrained(base, "FOLDER")'
        )
    if form == "adapters":
        first, *others = export.adapters
        lines += f'\nmodel = PeftModel.from_pretrained(base, "FOLDER/{first}", adapter_name="update_0")'
        for i, name in enumerate(others, start=1):
            lines += f'\nmodel.load_adapter("FOLDER/{name}", adapter_name="update_{i}")'
        method = export.checkpoint.method
        if method.serves_per_task and method.updates == "added":
            why = f"for texts of {export.asked}: that of the task, and all before it"
        elif method.needs_task:
            why = f"for texts of {export.asked}: that of the task"
        elif method.updates == "continued":
            why = "the last one; each contains the ones before"
        else:
            why = "their sum"
        active = ", ".join(f'"update_{i}"' for i in export.active)
        lines += f"\nmodel.base_model.set_adapter([{active}])  # {why}"
        return f"from peft import PeftModel\n{imports}{lines}"
    return (
        f"import json\n\nimport torch\nfrom safetensors.torch import load_file\n{imports}{lines}\n"
        'tensors = load_file("FOLDER/update.safetensors")\n'
        'with open("FOLDER/sparse_config.json") as file:\n'
        '    shapes = json.load(file)["shapes"]\n'
        "for name, shape in shapes.items():\n"
        "    update = torch.zeros(shape)  # (out, in)\n"
        '    update.view(-1)[tensors[f"{name}.indices"].long()] = tensors[f"{name}.values"]\n'
        "    layer = base.get_submodule(name)\n"
        "    # A Conv1D, as GPT-2 has it, keeps its weight as (in, out).\n"
        "    layer.weight.data += update if isinstance(layer, torch.nn.Linear) else update.T"
    )


def asking(export: Export) -> str:
    """Code that asks the loaded export with the prompt of its first task, and has the prompts of all."""
    prompts = "".join(f"    {name!r}: {frame!r},\n" for name, frame in export.prompts.items())
    model = "base" if export.options.form == "sparse" else "model"
    answer = "output[0]" if export.is_encoder_decoder else "output[0, inputs.input_ids.shape[1] :]"
    return (
        f"prompts = {{  # by task: what stands before and after the text\n{prompts}}}\n"
        f"before, after = prompts[{next(iter(export.prompts))!r}]\n"
        'inputs = tokenizer(before + "A new text" + after, return_tensors="pt")\n'
        f"output = {model}.generate(**inputs, max_new_tokens=50, do_sample=False)\n"
        f"print(tokenizer.decode({answer}, skip_special_tokens=True).strip())"
    )
