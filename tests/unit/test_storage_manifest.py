"""Every changed bit, missing file and stray file of a folder is found."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus.errors import NexusError
from nexus.storage import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    (package / "adapter").mkdir(parents=True)
    (package / "model.safetensors").write_bytes(random.Random(0).randbytes(500))
    (package / "config.json").write_text("{}")
    (package / "adapter" / "README.md").write_text("adapter")
    (package / "README.md").write_text("card of today")
    return package


Check = Callable[[Path], object]
both = pytest.mark.parametrize("check", [manifest.verify_manifest, manifest.insist_as_packed])


def code_of(folder: Path, check: Check = manifest.verify_manifest) -> str:
    with pytest.raises(NexusError) as caught:
        check(folder)
    assert caught.value.status in (65, 77)
    return caught.value.code


def test_hash_is_what_sha256sum_would_give(folder: Path) -> None:
    names = ["adapter/README.md", "config.json", "model.safetensors"]
    lines = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert manifest.folder_sha256(folder, exclude=["README.md"]) == expected
    assert manifest.write_manifest(folder, exclude=["README.md"], extra={"base_model": "tiny"}) == expected
    assert manifest.verify_manifest(folder) == expected
    (folder / "README.md").write_text("card of tomorrow")
    assert manifest.verify_manifest(folder) == expected
    assert manifest.read_manifest(folder)["base_model"] == "tiny"


@both
def test_every_flipped_bit_is_found(folder: Path, check: Check) -> None:
    manifest.write_manifest(folder, exclude=["README.md"], extra={})
    weights = folder / "model.safetensors"
    good, generator = weights.read_bytes(), random.Random(1)
    for _ in range(200):
        damaged = bytearray(good)
        damaged[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        weights.write_bytes(damaged)
        assert code_of(folder, check) == "E-PKG-04"
    weights.write_bytes(good)
    check(folder)


def test_missing_longer_and_stray_files(folder: Path) -> None:
    assert code_of(folder) == "E-PKG-01"
    manifest.write_manifest(folder, exclude=["README.md"], extra={})
    (folder / "adapter" / "stray.bin").write_bytes(b"x")
    assert code_of(folder) == "E-PKG-05"
    (folder / "adapter" / "stray.bin").unlink()
    (folder / "config.json").write_text("{} ")
    assert code_of(folder) == "E-PKG-04"
    (folder / "config.json").unlink()
    assert code_of(folder) == "E-PKG-06"


@both
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda content: content.update(schema=99), "E-PKG-07"),
        (lambda content: content["files"].pop("config.json"), "E-PKG-02"),
        (lambda content: content.update(sha256="0" * 64), "E-PKG-02"),
        (lambda content: content.pop("excluded"), "E-PKG-02"),
    ],
)
def test_damaged_manifest(folder: Path, change: object, code: str, check: Check) -> None:
    manifest.write_manifest(folder, exclude=["README.md"], extra={})
    path = folder / manifest.MANIFEST_NAME
    content = json.loads(path.read_text())
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    assert code_of(folder, check) == code
    path.write_text('{"schema": 1, ')
    assert code_of(folder, check) == "E-PKG-02"


@both
def test_a_name_outside_the_folder_is_refused(folder: Path, check: Check) -> None:
    manifest.write_manifest(folder, exclude=["README.md"], extra={})
    path = folder / manifest.MANIFEST_NAME
    content = json.loads(path.read_text())
    content["files"]["../outside"] = {"size": 1, "sha256": "0" * 64}
    content["sha256"] = manifest.combined_sha256({n: e["sha256"] for n, e in content["files"].items()})
    path.write_text(json.dumps(content))
    assert code_of(folder, check) == "E-SEC-10"


def test_what_came_later_is_no_damage(folder: Path) -> None:
    manifest.insist_as_packed(folder)
    manifest.write_manifest(folder, exclude=["README.md"], extra={})
    (folder / "model.gguf").write_bytes(b"x")
    (folder / "README.md").write_text("card of tomorrow")
    (folder / "config.json").unlink()  # whoever needs it says so
    manifest.insist_as_packed(folder)
    for content in ('{"version": 3, "entries": []}', "[]"):  # somebody else's, who knows other files
        (folder / manifest.MANIFEST_NAME).write_text(content)
        (folder / "model.safetensors").write_bytes(b"y")
        manifest.insist_as_packed(folder)


def test_manifest_keeps_its_own_names(folder: Path) -> None:
    with pytest.raises(ValueError, match="files"):
        manifest.write_manifest(folder, exclude=[], extra={"files": {}})
