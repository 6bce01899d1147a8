"""Files and folders are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nexus.errors import NexusError
from nexus.storage import atomic

WRITER = """
import sys
from pathlib import Path
from nexus.storage.atomic import write_text
count = 0
while True:
    count += 1
    write_text(Path(sys.argv[1]), f"{count} " * 200_000)
"""


def test_kill_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "state"
    interrupted = 0
    for trial in range(12):
        target.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)])
        while not target.exists() or target.read_text().startswith("1 "):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.003 * trial)
        process.send_signal(signal.SIGKILL)
        process.wait()
        numbers = target.read_text().split()
        assert len(numbers) == 200_000
        assert len(set(numbers)) == 1
        interrupted += len(atomic.remove_leftovers(tmp_path))
    assert interrupted > 0, "no trial was killed while a file was being written"
    assert os.listdir(tmp_path) == ["state"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    atomic.write_json(target, {"value": "ä"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(target, {"value": float("nan")})

    def stop_half_way() -> None:
        with atomic.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        stop_half_way()
    assert json.loads(target.read_text(encoding="utf-8")) == {"value": "ä"}
    assert os.listdir(tmp_path) == ["state.json"]


def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_text("old")
    with pytest.raises(NexusError) as caught, atomic.atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (caught.value.code, caught.value.status) == ("E-OUT-02", 73)
    with pytest.raises(PermissionError), atomic.atomic_path(target):
        raise PermissionError(errno.EACCES, "no")
    assert target.read_text() == "old"


def test_a_write_reaches_the_disk_before_it_gets_its_name(tmp_path: Path) -> None:
    order = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).startswith(str(tmp_path)):
            order.append("rename")

    sys.addaudithook(audit)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        order.append("fsync")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        atomic.write_bytes(tmp_path / "file", b"x")
    assert order == ["fsync", "rename", "fsync"]


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "package"

    def stop_half_way() -> None:
        with atomic.atomic_folder(target, replace=False) as folder:
            (folder / "weights").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []
    with atomic.atomic_folder(target, replace=False) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_text("one")
        assert not target.exists()
    assert (target / "sub" / "weights").read_text() == "one"


def test_existing_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    target = tmp_path / "package"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(NexusError) as caught, atomic.atomic_folder(target, replace=False):
        pass
    assert caught.value.code == "E-OUT-04"
    with pytest.raises(RuntimeError, match="stop"), atomic.atomic_folder(target, replace=True):
        raise RuntimeError("stop")
    assert os.listdir(target) == ["old"]
    with atomic.atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("new")
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["package"]


def test_leftovers_of_killed_writers_go_and_a_folder_put_aside_returns(tmp_path: Path) -> None:
    (tmp_path / ".tmp-state.json-123-456").write_text("half")
    (tmp_path / ".tmp-package-123-456").mkdir()
    (tmp_path / ".tmp-package-old-123-456").mkdir()
    (tmp_path / ".tmp-package-old-123-456" / "weights").write_text("whole")
    (tmp_path / "keep").write_text("mine")
    removed = atomic.remove_leftovers(tmp_path)
    assert removed == [".tmp-package-123-456", ".tmp-state.json-123-456"]
    assert sorted(os.listdir(tmp_path)) == ["keep", "package"]
    assert (tmp_path / "package" / "weights").read_text() == "whole"
