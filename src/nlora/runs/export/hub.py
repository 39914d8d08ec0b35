"""Uploads an export to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from nlora.errors import InputErrors, Problem, RunError, first_line
from nlora.runs.export import sparse
from nlora.runs.export.record import RECORD_FILE

_LEFT_OVER = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "*adapter_config.json",
    "*adapter_model.safetensors",
    sparse.CONFIG_FILE,
    sparse.WEIGHTS_FILE,
)
"""What an earlier export of another form may have left: beside an adapter_config.json, transformers would load its base
model and this adapter instead of a new model.safetensors. The hub does not delete what the same upload brings."""


def check(repo: str) -> None:
    """Raises InputErrors for what cannot be the name of a repository, or if nobody is logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        what = f"'{repo}' is not the name of a repository, as user/model ({first_line(error)})"
        raise InputErrors([Problem("--push", what)]) from error
    try:
        reason = "" if get_token() else "nobody is logged in to the hub"
    except Exception as error:  # a login of a CI service, which needs the network
        reason = first_line(error)
    if reason:
        raise InputErrors([Problem("--push", f"{reason}; run `hf auth login` first")])


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a model repository, which is created if it does not exist. Returns its address.

    Raises RunError if that fails: no network, no token, no permission. The folder stays as it is.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        api = huggingface_hub.HfApi(library_name="nlora")
        created = api.create_repo(repo, repo_type="model", exist_ok=True)
        name = str(getattr(created, "repo_id", repo))  # with the user's name, if that was left out
        api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=str(folder),
            ignore_patterns=[RECORD_FILE],
            delete_patterns=list(_LEFT_OVER),
            commit_message="Export by nlora",
        )
    except Exception as error:  # those of the hub's client have no common base; the export is there anyway
        first = first_line(error)
        status = getattr(getattr(error, "response", None), "status_code", None)
        needs_token = isinstance(error, LocalTokenNotFoundError) or status in (401, 403)
        way_out = "log in with `hf auth login`" if needs_token else "check the network and HF_HUB_OFFLINE"
        raise RunError(
            f"the export is in {folder}, but could not be uploaded to {repo}: {first}; {way_out}, "
            f"then upload it with `hf upload {repo} {folder} --exclude {RECORD_FILE}`"
        ) from error
    return str(created)
