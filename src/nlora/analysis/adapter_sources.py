"""The interference of stock PEFT LoRA adapters: folders, or hub ids (only the two files of an adapter are fetched)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nlora.analysis.interference import compare_states
from nlora.analysis.measurements import Measurements
from nlora.analysis.of_run import looks_like_run
from nlora.errors import InputErrors, Problem
from nlora.models.adapter_source import load_adapter, locate_adapter
from nlora.models.lora_factors import CONFIG_FILE, AdapterState
from nlora.runs.interference_file import Interference

_TOO_FEW = Problem("adapters", "give two or more; an adapter is compared with others")


def compare_adapters(
    sources: Sequence[str] | Mapping[str, str | AdapterState], threshold: float | None = None
) -> Interference:
    """The interference of two or more adapters.

    sources: PEFT LoRA folders or hub ids; or a mapping of names to these or to factors in memory.
    Raises InputErrors for fewer than two adapters or for a run, AdapterError if an adapter cannot be read.
    """
    if not isinstance(sources, Mapping):
        return measure_adapters(sources, threshold).interference()
    states = {
        name: load_adapter(locate_adapter(source), source) if isinstance(source, str) else source
        for name, source in sources.items()
    }
    if len(states) < 2:
        raise InputErrors([_TOO_FEW])
    return compare_states(states, threshold).interference()


def measure_adapters(sources: Sequence[str], threshold: float | None) -> Measurements:
    """The measures by module, under the shortest names that tell the sources apart; errors as in `compare_adapters`."""
    for source in sources:
        if looks_like_run(Path(source)):
            raise InputErrors(
                [Problem(source, "is a run; give it alone, or give the adapter folders of its stages")]
            )
    folders = [locate_adapter(source) for source in sources]
    for i, source in enumerate(sources):
        if folders[i] in folders[:i]:
            raise InputErrors([Problem(source, "is given twice; give different adapters")])
    states = [load_adapter(folder, source) for folder, source in zip(folders, sources, strict=True)]
    if len(states) < 2:
        what = "is a single adapter; give two or more, or the folder of a run"
        raise InputErrors([Problem(sources[0], what)] if sources else [_TOO_FEW])
    measured = compare_states(dict(zip(_short_names(sources), states, strict=True)), threshold)
    bases = dict.fromkeys(_base_model(folder) for folder in folders)
    if len(bases) == 1:
        return measured
    note = (
        f"The adapters name different base models ({', '.join(map(str, bases))}). Comparing entries is meaningful "
        "only if these have the same weights."
    )
    return replace(measured, notes=[*measured.notes, note])


def _base_model(folder: Path) -> str | None:
    name = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return None if name is None else str(name)


def _short_names(sources: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the end that all share.

    runs/a/outputs/1-r8/adapter and runs/a/outputs/2-news/adapter become 1-r8 and 2-news.
    """
    parts = [Path(source).parts or Path(source).absolute().parts for source in sources]
    shortest = min(map(len, parts))
    shared = 0
    while shared < shortest - 1 and len({path[-1 - shared] for path in parts}) == 1:
        shared += 1
    own = [path[: len(path) - shared] for path in parts]
    for length in range(1, max(map(len, own)) + 1):
        names = ["/".join(path[-length:]) for path in own]
        if len(set(names)) == len(names):
            return names
    return list(sources)
