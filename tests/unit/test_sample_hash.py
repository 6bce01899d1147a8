"""What the hash over stored weights sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexus.models import sample_hash
from nexus.models.sample_hash import weights_sample_sha256


def flipped(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path


def test_every_byte_of_a_small_file_counts(folder: Path) -> None:
    before = weights_sample_sha256(str(folder), None)
    (folder / "config.json").write_text("{}")  # settings are compared by name
    assert weights_sample_sha256(str(folder), None) == before
    for at in (0, 5000, 256 * 40 - 1):
        flipped(folder / "model.safetensors", at)
        assert weights_sample_sha256(str(folder), None) != before
        flipped(folder / "model.safetensors", at)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert weights_sample_sha256(str(folder), None) != before


def test_of_a_large_file_windows_and_both_ends_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_hash, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(sample_hash, "_WINDOW_BYTES", 16)
    monkeypatch.setattr(sample_hash, "_STRIDE_BYTES", 4096)
    before = weights_sample_sha256(str(folder), None)
    for at, seen in ((0, True), (15, True), (16, False), (4100, True), (256 * 40 - 1, True)):
        flipped(folder / "model.safetensors", at)
        assert (weights_sample_sha256(str(folder), None) != before) is seen
        flipped(folder / "model.safetensors", at)
