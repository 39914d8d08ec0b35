"""nlora_export.json: which stage of which run an export was made from, and how. It lies beside the exported files.

>>> found = run.export("exports/record", "adapter", rank=2)
>>> record = read_record(Path("exports/record"))
>>> record.run, record.stage, str(record.options)
('../../runs/support', 2, '--as adapter --rank 2')

The run's folder is recorded relative to the export, so a project can be moved as a whole. The record stays out of
uploads: it holds a path of its author's machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlora.config.messages import first_problem
from nlora.errors import RunError
from nlora.runs.atomic import write_json
from nlora.runs.checkpoint import Checkpoint, read_stage
from nlora.runs.checksums import weights_digest
from nlora.runs.export.options import ExportOptions
from nlora.runs.export.result import Export
from nlora.runs.layout import RUN_FILE, STAGE_FILE

RECORD_FILE = "nlora_export.json"
_MODEL_FILES = ("config.json", "adapter_config.json", "sparse_config.json")


class ExportRecord(BaseModel):
    """The content of nlora_export.json."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    run: str = Field(description="The run's folder, relative to the export's.")
    stage: int = Field(ge=1)
    stage_sha256: str = Field(description="Of the stage's stage.json, which has times.")
    weights: str | None = Field(
        None, description="Digest of its weights, which scoring it again leaves; null in older files."
    )
    options: ExportOptions
    adapters: tuple[str, ...] = Field(
        (), description="The folders of --as adapters, in the order of the stages."
    )


def write_record(export: Export, folder: Path) -> None:
    """Write the record of an export into the folder where its files are so far."""
    checkpoint = export.checkpoint
    record = ExportRecord(
        run=_relative(checkpoint.run.folder.resolve(), export.folder.resolve()),
        stage=checkpoint.stage,
        stage_sha256=_stage_sha256(checkpoint),
        weights=_weights(checkpoint),
        options=export.options,
        adapters=tuple(export.adapters),
    )
    write_json(folder / RECORD_FILE, record.model_dump(mode="json", by_alias=True))


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, or a model or an adapter from elsewhere, but not a run."""
    return not (folder / RUN_FILE).exists() and any(
        (folder / name).is_file() for name in (RECORD_FILE, *_MODEL_FILES)
    )


def read_record(folder: Path) -> ExportRecord:
    """The record of an export. Raises RunError if it is missing or broken."""
    path = folder / RECORD_FILE
    try:
        return ExportRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        what = f"no {RECORD_FILE} in it, so the run that it was made from is unknown"
        raise RunError(f"{folder}: {what}; write it with nlora export, or give a run") from error
    except ValidationError as error:
        raise RunError(f"{path}: broken: {first_problem(error)}; export the run again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: broken: {error}; export the run again") from error


def exported_stage(folder: Path, record: ExportRecord) -> Checkpoint:
    """The stage that an export was made from. Raises RunError if it is not there any more, or was trained again."""
    run = _shown(Path(os.path.normpath(folder.resolve() / record.run)))
    if not (run / RUN_FILE).is_file():
        raise RunError(
            f"{folder}: was made from the run {run}, which is not there; move it back, or export another run"
        )
    checkpoint = read_stage(run, record.stage)
    is_same = _stage_sha256(checkpoint) == record.stage_sha256
    if not is_same and (record.weights is None or record.weights != _weights(checkpoint)):
        raise RunError(
            f"{folder}: was made from another training of {run}, {checkpoint.name}; export the run again"
        )
    return checkpoint


def _stage_sha256(checkpoint: Checkpoint) -> str:
    return hashlib.sha256(
        (checkpoint.run.stage_folder(checkpoint.stage) / STAGE_FILE).read_bytes()
    ).hexdigest()


def _weights(checkpoint: Checkpoint) -> str | None:
    return weights_digest(checkpoint.run.stage_folder(checkpoint.stage))


def _relative(there: Path, here: Path) -> str:
    try:
        return Path(os.path.relpath(there, here)).as_posix()
    except ValueError:  # two drives of Windows have no path between them
        return str(there)


def _shown(path: Path) -> Path:
    """Relative to the current folder, if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
