"""Files that try to run code: whatever runs leaves a mark, so that a test sees it."""

from __future__ import annotations

import builtins
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

MARK = "ran"


def source(home: Path) -> str:
    """A statement that leaves the mark in `home`."""
    return f"open({str(home / MARK)!r}, 'a').close()"


class Bomb:
    """Runs a statement when it is unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return builtins.exec, (self.text,)


def pickled(home: Path) -> bytes:
    """A pickle that leaves the mark when it is opened."""
    return pickle.dumps({"state_dict": Bomb(source(home)), "global_step": 1})


def torch_file(home: Path) -> bytes:
    """The same as `torch.save` writes it."""
    import torch

    stream = io.BytesIO()
    torch.save({"state_dict": Bomb(source(home))}, stream)
    return stream.getvalue()


def archive(home: Path) -> bytes:
    """A compressed tar file whose member leaves the folder that it is unpacked in."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo(f"../../../../../../..{home / MARK}")
        tar.addfile(member, io.BytesIO(b""))
    return stream.getvalue()


def header_only(length: int) -> bytes:
    """A safetensors file that claims a header of so many bytes."""
    return struct.pack("<Q", length) + b"{}"


def is_armed(home: Path) -> bool:
    """Whether the mark works: the pickle is opened on purpose, and the mark removed again."""
    pickle.loads(pickled(home))
    found = (home / MARK).exists()
    (home / MARK).unlink(missing_ok=True)
    return found
