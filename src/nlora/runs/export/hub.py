"""Uploads an export to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from nlora.errors import InputErrors, Problem, RunError


def check_name(repo: str) -> None:
    """Raises InputErrors for what cannot be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        what = f"'{repo}' is not the name of a repository, as user/model ({str(error).splitlines()[0]})"
        raise InputErrors([Problem("--push", what)]) from error


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
            repo_id=name, repo_type="model", folder_path=str(folder), commit_message="Export by nlora"
        )
    except Exception as error:  # those of the hub's client have no common base; the export is there anyway
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        status = getattr(getattr(error, "response", None), "status_code", None)
        needs_token = isinstance(error, LocalTokenNotFoundError) or status in (401, 403)
        way_out = "log in with `hf auth login`" if needs_token else "check the network and HF_HUB_OFFLINE"
        raise RunError(
            f"the export is in {folder}, but could not be uploaded to {repo}: {first}; {way_out}, "
            f"then upload it with `hf upload {repo} {folder}`"
        ) from error
    return str(created)
