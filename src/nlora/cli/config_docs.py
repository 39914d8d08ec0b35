"""Every key of a configuration with its default and its meaning, from the one place where they are declared.

`nlora ls options` prints them, and `python -m nlora.cli.config_docs` writes docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

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
    """All keys of a configuration except the methods' own options, in the order of their declaration."""
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
            if optional := _optional_section(field.annotation):
                yield from _keys(optional, f"{path}.")


def _optional_section(annotation: Any) -> type[BaseModel] | None:
    """The options that a key has unless it is null; None for any other key."""
    kinds = get_args(annotation)
    if NoneType not in kinds:
        return None
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


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
        "path, as in `nlora run my.yaml train.learning_rate=5e-4 tasks.0.name=agnews`. A mapping leaves the keys of its",
        "section that it does not name alone (`train={epochs: 3}`), but a method with its name replaces the whole",
        "method. Relative paths of data files are looked up in the current folder, then next to the YAML file;",
        "[data.md](data.md) describes them. A `~` at the beginning of a path is the home folder. This page is generated",
        "by `python -m nlora.cli.config_docs`.",
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
