"""Where the settings lie: `nexus/conf` in a wheel, `conf` beside the package in a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from nexus.errors import NexusError

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"


def conf_dir() -> Path:
    """The folder of the YAML groups.

    Returns:
        An absolute path.

    Raises:
        NexusError: `E-MIS-04` if the installation is not whole.
    """
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise NexusError("E-MIS-04", "the settings are missing", where=str(PACKAGE / "conf"), remedy="install Nexus again")


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Options of every group, without Hydra's own."""
    return {
        folder.name: tuple(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name != "hydra" and not folder.name.startswith((".", "_"))
    }


def data_file(name: str, data_dir: str) -> Path:
    """Where a data file lies: as named, else under `paths.data_dir`.

    Args:
        name: a path, absolute or relative to the current folder.
        data_dir: root of data sets.

    Returns:
        The path under `data_dir` if only that exists, else the path as named.
    """
    path, below = Path(name).expanduser(), Path(data_dir).expanduser() / name
    return below if below.exists() and not path.exists() else path
