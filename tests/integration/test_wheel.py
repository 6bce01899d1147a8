"""Nexus works from a wheel, in any directory, away from its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture.readme_tree import REPOSITORY

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: setuptools leaves a build folder beside the sources.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("nexus", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_wheel_carries_settings_and_assets(wheel: Path) -> None:
    carried = set(zipfile.ZipFile(wheel).namelist())
    settings = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "conf").rglob("*.yaml")]
    assets = [p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "nexus" / "assets").rglob("*") if p.is_file()]
    modules = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "nexus").rglob("*.py")]
    assert len(settings) >= 30
    assert len(assets) >= 4
    assert len(modules) >= 40
    assert {f"nexus/{name}" for name in settings} | set(assets) | set(modules) <= carried


def test_installed_wheel_composes_in_any_directory(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    away = tmp_path / "away"
    away.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "nexus", "train", "+capability=tools", "scale=quick", "--cfg", "job"]
    finished = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "name: nexus_tiny" in finished.stdout
    where = [sys.executable, "-P", "-c", "import nexus; print(nexus.__file__)"]
    found = subprocess.run(where, cwd=away, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(site), "the sources were imported instead of the wheel"
    assert list(away.iterdir()) == []
