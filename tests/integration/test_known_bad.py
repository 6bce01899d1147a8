"""Releases that steal when they are imported are refused by every door that would import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nexus.config.known_bad import KNOWN_BAD
from tests.integration.conftest import command

pytestmark = [pytest.mark.integration, pytest.mark.faults]

DOORS = {
    "train": ["data.train=chats.jsonl"],
    "evaluate": ["+capability=tools"],
    "generate": ["prompt=Hello"],
    "preview": ["data.train=chats.jsonl"],
}


def plant(folder: Path, name: str, version: str) -> Path:
    """A package that leaves a mark when it is imported; returns where the mark will be."""
    module = folder / name.replace("-", "_")
    module.mkdir(parents=True)
    mark = folder / "imported"
    (module / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    info = folder / f"{module.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return mark


@pytest.mark.parametrize(
    ("door", "name", "version"),
    [
        ("train", "lightning", "2.6.2"),
        ("train", "pytorch-lightning", "2.6.3"),
        ("evaluate", "lightning", "2.6.3"),
        ("generate", "lightning", "2.6.2"),
        ("preview", "pytorch-lightning", "2.6.2"),
    ],
)
def test_refused_before_it_is_imported(tmp_path: Path, door: str, name: str, version: str) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    mark = plant(site, name, version)
    words, environment = command(door, *DOORS[door], cwd=home)
    environment["PYTHONPATH"] = f"{site}:{environment['PYTHONPATH']}"
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 77, done.stderr
    assert done.stderr.startswith(f"E-SUP-01  {name} {version} is installed")
    assert not mark.exists()
    assert list(home.iterdir()) == []
    if door == "train":  # the mark works
        subprocess.run([sys.executable, "-c", f"import {name.replace('-', '_')}"], env=environment, check=True)
        assert mark.exists()


def test_every_known_one_has_a_reason() -> None:
    assert {(name, version) for name, releases in KNOWN_BAD.items() for version in releases} == {
        (name, version) for name in ("lightning", "pytorch-lightning") for version in ("2.6.2", "2.6.3")
    }
