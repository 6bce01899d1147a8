"""A hash that tells whether stored weights are still those they were, without reading gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nexus.models.facts import resolve_model

#: Files up to this size are read whole.
_WHOLE_BYTES = 64 << 20
#: Of larger ones this many bytes are read at every `_STRIDE_BYTES`, the header and the end included.
_WINDOW_BYTES = 4 << 10
_STRIDE_BYTES = 1 << 20


def weights_sample_sha256(path: str, revision: str | None) -> str:
    """Hash over names, sizes and a sample of the bytes of a model's safetensors files.

    Training any longer changes every weight, so a sample shows it; who changes single bytes of a large file on purpose
    is not found out.

    Args:
        path: a folder or a hub id, as `resolve_model` takes it.
        revision: of a hub model.

    Returns:
        64 hexadecimal digits.

    Raises:
        NexusError: `E-MOD-01`.
    """
    found = hashlib.sha256()
    for file in sorted(resolve_model(path, revision).glob("*.safetensors")):
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        _add_bytes(found, file, size)
    return found.hexdigest()


def _add_bytes(found: hashlib._Hash, file: Path, size: int) -> None:
    with file.open("rb") as stream:
        if size <= _WHOLE_BYTES:
            found.update(stream.read())
            return
        for start in (*range(0, size, _STRIDE_BYTES), size - _WINDOW_BYTES):
            stream.seek(start)
            found.update(stream.read(_WINDOW_BYTES))
