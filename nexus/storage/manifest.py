"""What a folder holds, file by file, with hashes; bit rot and edits are found before a file is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nexus.errors import NexusError
from nexus.storage.atomic import TEMPORARY_PREFIX, write_json

MANIFEST_NAME = "manifest.json"

#: The form of the manifest; a reader refuses a newer one.
SCHEMA = 1

#: Code of a manifest of a newer form.
NEWER = "E-PKG-07"


def file_sha256(path: Path) -> str:
    """Hash of one file.

    Args:
        path: an existing file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_files(folder: Path, *, exclude: Iterable[str]) -> dict[str, Path]:
    """Every file of a folder and below, without the manifest and without unfinished writes.

    Args:
        folder: an existing folder.
        exclude: paths relative to `folder`, with forward slashes, to leave out besides the manifest.

    Returns:
        Relative path with forward slashes to file, sorted by that path.
    """
    skipped = {MANIFEST_NAME, *exclude}
    found: dict[str, Path] = {}
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(TEMPORARY_PREFIX) for part in relative.parts):
            continue
        if relative.as_posix() not in skipped:
            found[relative.as_posix()] = path
    return dict(sorted(found.items()))


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """One hash over names and hashes, whatever their order.

    Args:
        hashes: relative path to sha256 of the file.

    Returns:
        64 hexadecimal digits over the lines `<sha256>  <name>`, sorted by name, as `sha256sum` would print them.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def folder_sha256(folder: Path, *, exclude: Iterable[str]) -> str:
    """One hash over every file of a folder, without its manifest and the files named in `exclude`.

    Args:
        folder: an existing folder.
        exclude: relative paths to leave out, for example the card, which may name dates.

    Returns:
        64 hexadecimal digits.
    """
    return combined_sha256({name: file_sha256(path) for name, path in folder_files(folder, exclude=exclude).items()})


def write_manifest(folder: Path, *, exclude: Iterable[str], extra: Mapping[str, Any]) -> str:
    """Write `manifest.json` with size and hash of every file.

    Args:
        folder: an existing folder.
        exclude: relative paths that the manifest and the combined hash leave out.
        extra: more plain entries for the manifest; `schema`, `sha256` and `files` are its own.

    Returns:
        The combined hash.

    Raises:
        ValueError: `extra` uses a name that the manifest owns.
    """
    owned = {"schema", "sha256", "files", "excluded"} & set(extra)
    if owned:
        raise ValueError(f"the manifest owns {sorted(owned)}")
    excluded = sorted(exclude)
    files = folder_files(folder, exclude=excluded)
    entries = {name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for name, path in files.items()}
    total = combined_sha256({name: str(entry["sha256"]) for name, entry in entries.items()})
    content = {"schema": SCHEMA, "sha256": total, **extra, "excluded": excluded, "files": entries}
    write_json(folder / MANIFEST_NAME, content)
    return total


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `manifest.json` and check its form.

    Args:
        folder: a folder that should have one.

    Returns:
        The manifest's content.

    Raises:
        NexusError: E-PKG-01 when there is none; E-PKG-02 when it is damaged; E-PKG-07 when it is of a newer form.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise NexusError(
            "E-PKG-01", "the folder has no manifest", where=str(path), remedy="name a package folder, or pack it again"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if content["schema"] > SCHEMA:
            raise NexusError(
                NEWER,
                f"the manifest has form {content['schema']}, this Nexus reads up to {SCHEMA}",
                where=str(path),
                remedy="update Nexus",
            )
        hashes = {name: entry["sha256"] for name, entry in content["files"].items()}
        if combined_sha256(hashes) != content["sha256"]:
            raise ValueError("its own hash does not fit its list of files")
        if not all(isinstance(entry["size"], int) for entry in content["files"].values()):
            raise ValueError("a size is not a number")
        if not isinstance(content["excluded"], list):
            raise ValueError("'excluded' is not a list")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NexusError(
            "E-PKG-02", f"the manifest is damaged: {error}", where=str(path), remedy="copy or pack the folder again"
        ) from error
    return content


def verify_manifest(folder: Path) -> str:
    """Compare every file with the manifest.

    Args:
        folder: a folder with a manifest.

    Returns:
        The combined hash.

    Raises:
        NexusError: E-PKG-01, E-PKG-02, E-PKG-07 as `read_manifest`; E-PKG-04 a file differs; E-PKG-05 a file that the
            manifest does not name; E-PKG-06 a file is missing; E-SEC-10 a name that leaves the folder.
    """
    content = read_manifest(folder)
    for name, entry in content["files"].items():
        path = _inside(folder, name)
        if not path.is_file():
            raise _damaged("E-PKG-06", "a file of the package is missing", path)
        _insist_on_hash(path, entry)
    unknown = folder_files(folder, exclude=content["excluded"]).keys() - content["files"].keys()
    if unknown:
        raise _damaged("E-PKG-05", "the manifest does not name this file", folder / min(unknown))
    return str(content["sha256"])


def insist_as_packed(folder: Path) -> None:
    """Refuse a package of which a file has changed since it was packed; formats like safetensors hold no checksum.

    Files that came later, and the card, may be anything; whether one that is gone is needed is its reader's to say.

    Args:
        folder: of a model; without a manifest of ours it is no package, and nothing is read.

    Raises:
        NexusError: E-PKG-02 when the manifest is damaged, E-PKG-07 when it is of a newer form, E-PKG-04 when a file
            differs, E-SEC-10 for a name that leaves the folder.
    """
    if not (folder / MANIFEST_NAME).is_file() or _is_foreign(folder / MANIFEST_NAME):
        return
    for name, entry in read_manifest(folder)["files"].items():
        path = _inside(folder, name)
        if path.is_file():
            _insist_on_hash(path, entry)


def _is_foreign(manifest: Path) -> bool:
    """True if other software wrote the file: none of our entries stands in it."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return not isinstance(content, dict) or not {"schema", "sha256", "files"} & content.keys()


def _inside(folder: Path, name: str) -> Path:
    """The file of that name; E-SEC-10 if it would lie elsewhere."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise NexusError(
            "E-SEC-10",
            f"the manifest names {name!r}, outside its folder",
            where=str(folder),
            remedy="do not use this folder; copy or download it again",
        )
    return folder / name


def _insist_on_hash(path: Path, entry: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != entry["size"]:
        raise _damaged("E-PKG-04", f"the file has {size} bytes, the manifest says {entry['size']}", path)
    digest = file_sha256(path)
    if digest != entry["sha256"]:
        raise _damaged("E-PKG-04", f"the file has sha256 {digest}, the manifest says {entry['sha256']}", path)


def _damaged(code: str, message: str, path: Path) -> NexusError:
    return NexusError(code, message, where=str(path), remedy="copy or download the package again")
