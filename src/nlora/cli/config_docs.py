"""Every key of a configuration, with its default and its meaning, from the one place where they are written.

    for key in configuration_keys():
        print(key.path, key.default, key.help)

`nlora ls options` prints it, and docs/configuration.md is it (`python -m nlora.cli.config_docs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from nlora.config.schema import Config, StageOptions
from nlora.config.task_source import TaskSource
from nlora.methods.registry import builtin_names, describe

_LIST_OF = {"tasks": TaskSource}
_PER_TASK = {"stages": StageOptions}


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its dotted path, its default as YAML ("required" without one), its meaning."""

    path: str
    default: str
    help: str


def configuration_keys() -> Iterator[Key]:
    """All keys of a configuration but the methods' own options, in the order in which they are declared."""
    yield from _keys(Config, "")


def _keys(kind: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in kind.model_fields.items():
        path = prefix + name
        inner = field.annotation if isinstance(field.annotation, type) else None
        if name in _LIST_OF:
            yield Key(path, "required", field.description or "")
            yield from _keys(_LIST_OF[name], f"{path}.N.")
        elif name in _PER_TASK:
            yield Key(path, "{}", field.description or "")
            yield from _keys(_PER_TASK[name], f"{path}.TASK.")
        elif inner is not None and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{path}.")
        else:
            default = _yaml(field.get_default(call_default_factory=True))
            yield Key(path, "runs/<name>" if path == "output_dir" else default, field.description or "")


def _yaml(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True)).removesuffix("...\n").strip()


def markdown() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "One YAML file describes a run. On the command line, `key=value` overrides any of these keys by its dotted",
        "path, as in `nlora run my.yaml train.learning_rate=5e-4 tasks.0.name=agnews`. Relative paths of data files",
        "are looked for in the current folder, then beside the YAML file; [data.md](data.md) says what they hold. This",
        "page is made from the program (`python -m nlora.cli.config_docs`).",
        "",
        *_table(configuration_keys()),
    ]
    for name in builtin_names():
        info = describe(name)
        lines += ["", f"## method: {name}", "", info.summary]
        if info.options:
            options = [Key(f"method.{o.name}", o.default, o.help) for o in info.options]
            lines += ["", *_table(options)]
    return "\n".join(lines) + "\n"


def _table(keys: Iterator[Key] | list[Key]) -> list[str]:
    rows = [f"| `{k.path}` | `{k.default}` | {k.help.replace('|', chr(92) + '|')} |" for k in keys]
    return ["| key | default | meaning |", "| --- | --- | --- |", *rows]


if __name__ == "__main__":
    print(markdown(), end="")
