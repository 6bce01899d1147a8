"""Releases of libraries that must not even be imported, told by what is installed, not by importing it."""

from __future__ import annotations

from importlib.metadata import distributions

from nexus.errors import NexusError

#: Package -> releases -> why. Both run a stolen-credentials program when they are imported (CVE-2026-44484); the
#: advisory names one package, the maintainers the other.
_STEALER = "its import steals passwords, tokens and SSH keys (GHSA-w37p-236h-pfx3, CVE-2026-44484)"
KNOWN_BAD: dict[str, dict[str, str]] = {
    "lightning": {"2.6.2": _STEALER, "2.6.3": _STEALER},
    "pytorch-lightning": {"2.6.2": _STEALER, "2.6.3": _STEALER},
}


def refuse_known_bad() -> None:
    """Look at the metadata of what is installed, also of copies that another one hides.

    Raises:
        NexusError: `E-SUP-01` for a release of `KNOWN_BAD`.
    """
    for name, releases in KNOWN_BAD.items():
        for found in distributions(name=name):
            if found.version in releases:
                raise NexusError(
                    "E-SUP-01",
                    f"{name} {found.version} is installed, and {releases[found.version]}; nothing of it was loaded",
                    where=str(found.locate_file("")),
                    remedy=f"remove it (pip uninstall {name}), set up from requirements.lock, and if it was ever "
                    "imported change every key and token of this machine",
                )
