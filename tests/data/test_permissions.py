"""What is cached or exported can be read by whom the umask allows it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlora import FetchError
from nlora.data import downloads
from nlora.data.permissions import open_to_others
from nlora.models.backbone import builtin_model_folder


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_of_their_owner_alone_get_the_permissions_of_new_ones(umask: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/weights").write_bytes(b"")
    for path in (folder, folder / "inner", folder / "inner/weights"):
        path.chmod(0o700)
    open_to_others(folder)
    (tmp_path / "new").write_bytes(b"")
    (tmp_path / "new folder").mkdir()

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(folder / "inner/weights") == mode(tmp_path / "new") == 0o666 & ~umask
    assert mode(folder) == mode(folder / "inner") == mode(tmp_path / "new folder") == 0o777 & ~umask


def test_a_cache_of_someone_else_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("NLORA_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "smollm2_gguf", closed)
    with pytest.raises(
        FetchError, match="smollm2-135m-instruct: Permission denied; set NLORA_CACHE to another"
    ):
        builtin_model_folder()
