"""The packages that nlora's own metadata ask for: installed, new enough, importable."""

from __future__ import annotations

import importlib
import importlib.metadata
import locale
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nlora.cli.doctor.section import Section, short
from nlora.errors import with_class

if TYPE_CHECKING:
    from packaging.requirements import Requirement

IMPORTED = ("torch", "transformers", "accelerate", "peft")
"""What everything else needs, each after what it imports itself."""

EXTRAS = {
    "tensorboard": "training curves, train.report_to: [tensorboard]",
    "wandb": "training curves, train.report_to: [wandb]",
    "trackio": "training curves, train.report_to: [trackio]",
    "hub": "data sets of the Hugging Face hub, hub:<data set>",
    "ray": "a sweep on a Ray cluster, runner: ray",
    "slurm": "a sweep on a Slurm cluster, runner: slurm",
    "figures": "figures as PDF, nlora report --figures",
    "quant": "backbones in 4 or 8 bits, quantize",
    "harness": "tasks of lm-evaluation-harness, evaluate.general.harness",
    "router": "answers without a task's name, serve: routed",
}
"""The extras of the package -> what they are for."""
_NOT_FOR_USERS = {"docs", "test"}


def packages() -> Section:
    """Python, and the packages that nlora cannot do without."""
    section = Section("packages")
    section.facts["python"] = f"{platform.python_version()} ({short(Path(sys.executable))})"
    section.facts["system"] = platform.platform()
    section.facts["text encoding"] = encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") != "utf8":
        section.wrong("locale", f"texts are {encoding}, not UTF-8; export PYTHONUTF8=1")
    broken = _import_errors()
    for requirement in _requirements(""):
        name, version = requirement.name, _version(requirement.name)
        if name in IMPORTED:
            # The module says more: torch's has the build, such as 2.13.0+cpu, and its metadata may not.
            section.facts[name] = str(getattr(sys.modules.get(name), "__version__", version or "missing"))
        _compare(section, requirement, version)
        if version is not None and name in broken:
            again = f'pip install --force-reinstall "{requirement.name}{requirement.specifier}"'
            section.wrong(name, f"cannot be imported ({broken[name]}); {again}")
    if not section.facts.keys() & set(IMPORTED):
        section.wrong("nlora", "is not installed, so what it needs is not known; pip install nlora")
    return section


def extras() -> Section:
    """What is optional. A missing package is a fact with its remedy; one that is too old is a problem."""
    section = Section("extras")
    for extra in _extras():
        for requirement in _requirements(extra):
            version = _version(requirement.name)
            found = version or f'missing: pip install "{requirement.name}{requirement.specifier}"'
            section.facts[requirement.name] = f"{found}  ({EXTRAS.get(extra, extra)})"
            if version is not None:
                _compare(section, requirement, version)
    return section


def _compare(section: Section, requirement: Requirement, version: str | None) -> None:
    """A problem if a package is missing, or not of the versions that nlora needs."""
    install = f'pip install "{requirement.name}{requirement.specifier}"'
    if version is None:
        section.wrong(requirement.name, f"is not installed; {install}")
    elif not requirement.specifier.contains(version, prereleases=True):
        section.wrong(requirement.name, f"is {version}, but nlora needs {requirement.specifier}; {install}")


def _requirements(extra: str) -> Iterator[Requirement]:
    """What the metadata of nlora ask for on this machine: of an extra alone, or, with "", without any."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, _metadata("Requires-Dist")):
        if _applies(requirement, extra) and (not extra or not _applies(requirement, "")):
            yield requirement


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement holds on this machine when the extra is asked for."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _extras() -> list[str]:
    return [name for name in _metadata("Provides-Extra") if name not in _NOT_FOR_USERS]


def _metadata(field: str) -> list[str]:
    try:
        return importlib.metadata.metadata("nlora").get_all(field) or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return []


def _version(name: str) -> str | None:
    """None if the package is not installed, or so damaged that its version is not known."""
    try:
        return importlib.metadata.version(name) or None
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_errors() -> dict[str, str]:
    """The first of the packages that cannot be imported -> why; those after it would only fail with it."""
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a damaged package may raise anything
            return {name: with_class(error)}
    return {}
