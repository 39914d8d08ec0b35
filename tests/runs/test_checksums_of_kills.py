"""A process that is killed while it writes a file leaves a temporary one, which is no part of the stage."""

from __future__ import annotations

from pathlib import Path

from nlora.runs.checksums import CHECKSUM_FILE, damage, read_checksums, write_checksums


def test_a_half_written_file_has_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/weights").write_text("1")
    leftover = tmp_path / f".tmp-{CHECKSUM_FILE}"
    leftover.write_text("{")
    write_checksums(tmp_path)
    found = read_checksums(tmp_path)
    assert found is not None
    assert list(found.files) == ["adapter/weights"]
    leftover.unlink(missing_ok=True)
    assert damage(tmp_path, is_last=True) == []
