"""What a disk may hold after a power cut, as strictly as POSIX lets it forget.

A file's content is safe once the file was flushed, a name once its folder was flushed; anything else may be there, be
missing or be half there. The calls that matter are recorded while real code writes to a real folder.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

#: What the disk did with names that were not flushed, and with content that was not.
LOSSES = ("names are early, content is lost", "nothing came through", "anything came through")
_CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir")


@dataclass
class Disk:
    """Records what is written below a folder, and makes folders as a power cut would leave them.

    Args:
        root: an existing folder.
        cut: called before and after each recorded call.
    """

    root: Path
    cut: Callable[[], None]
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    _ids: dict[int, int] = field(default_factory=dict)
    _next: int = 0
    _busy: bool = False

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Stand before the calls of `os`."""
        self.names[self._id(self.root)] = {}
        for name in _CALLS:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return real(*args, **kwargs)
            self._cut()
            doomed = self._doomed(name, args, kwargs)
            result = real(*args, **kwargs)
            if doomed is not None:
                self._ids.pop(doomed, None)  # the system gives its number to another file
            if name == "fsync":
                self._flushed(Path(os.readlink(f"/proc/self/fd/{args[0]}")))
            self._cut()
            return result

        return called

    def _cut(self) -> None:
        self._busy = True
        try:
            self.cut()
        finally:
            self._busy = False

    def _doomed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        if name in ("unlink", "remove", "rmdir"):
            target, folder = args[0], kwargs.get("dir_fd")
        elif name in ("rename", "replace"):
            target, folder = args[1], None
        else:
            return None
        try:
            return os.stat(target, dir_fd=folder, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return None

    def _id(self, path: Path) -> int:
        number = path.stat().st_ino
        if number not in self._ids:
            self._ids[number] = self._next
            self._next += 1
        return self._ids[number]

    def _live(self, folder: Path) -> dict[str, int]:
        return {entry.name: self._id(entry) for entry in folder.iterdir()}

    def _flushed(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self.names[self._id(path)] = self._live(path)
        else:
            self.contents[self._id(path)] = path.read_bytes()

    def image(self, target: Path, loss: str, rng: random.Random) -> None:
        """Make the folder that is found when the power is back.

        Args:
            target: a folder to be.
            loss: one of `LOSSES`.
            rng: draws what came through.
        """
        live: dict[int, dict[str, int]] = {}
        now: dict[int, bytes] = {}
        for folder, _, files in os.walk(self.root):
            live[self._id(Path(folder))] = self._live(Path(folder))
            now |= {self._id(Path(folder, name)): Path(folder, name).read_bytes() for name in files}
        folders = live.keys() | self.names.keys()

        def build(which: int, path: Path) -> None:
            path.mkdir()
            early = loss == LOSSES[0] or (loss == LOSSES[2] and rng.random() < 0.5)
            entries = live.get(which, self.names.get(which, {})) if early else self.names.get(which, {})
            for name, entry in entries.items():
                if entry in folders:
                    build(entry, path / name)
                    continue
                content = self.contents.get(entry, b"")
                if loss == LOSSES[2] and entry in now and now[entry] != content:
                    content = now[entry][: rng.randint(0, len(now[entry]))]
                (path / name).write_bytes(content)

        build(self._id(self.root), target)
