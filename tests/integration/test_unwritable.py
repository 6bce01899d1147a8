"""Folders that cannot be written end a run before anything of a model is loaded; asked as a user who may not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nexus.stages.prepare
import nexus.train
from tests import faults
from tests.integration.conftest import write_chats

pytestmark = [pytest.mark.integration, pytest.mark.faults]

NOBODY = 65534
#: How a child ends that could write after all, and one that went on to read rows.
WRITTEN, BEGUN = 9, 8


def read_only(home: Path) -> str:
    (home / "out").mkdir(mode=0o555)
    return "out/run"


def of_somebody_else(home: Path) -> str:
    (home / "out").mkdir(mode=0o700)
    return "out/run"


def read_only_run(home: Path) -> str:
    (home / "run").mkdir(mode=0o555)
    return "run"


def a_file(home: Path) -> str:
    (home / "out").write_text("")
    return "out/run"


def a_name_too_long(home: Path) -> str:
    (home / "out").mkdir(mode=0o777)
    os.chmod(home / "out", 0o777)
    return "out/" + "n" * 300


def behind_a_dangling_link(home: Path) -> str:
    (home / "out").symlink_to("/nowhere/at/all")
    return "out/run"


def in_the_kernel_s_files(home: Path) -> str:
    return "/proc/nexus/run"


def mounted_read_only(home: Path) -> str:
    (home / "out").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(home / "out")], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    return "out/run"


CASES: dict[Callable[[Path], str], str] = {
    read_only: "E-OUT-01",
    of_somebody_else: "E-OUT-01",
    read_only_run: "E-OUT-01",
    mounted_read_only: "E-OUT-01",
    in_the_kernel_s_files: "E-OUT-01",
    a_file: "E-OUT-03",
    behind_a_dangling_link: "E-OUT-03",
    a_name_too_long: "E-OUT-01",
}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that others may enter, unlike those of pytest."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load what the door loads: another user may not be able to read the interpreter's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("warm"))
        patch.setattr(sys, "argv", ["train", "data.train=nowhere.jsonl", "run_dir=/proc/nexus"])
        assert nexus.train.main() != 0


def as_nobody(home: Path, out: str, errors: Path) -> None:
    """In a child: give all rights away, try to write, then go through the door."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.chdir(home)
    sys.stderr = errors.open("a")
    target = home / out
    with contextlib.suppress(OSError):
        (target if target.is_dir() else target.parent).joinpath("probe").write_text("x")
        if len(target.name) < 256:
            os._exit(WRITTEN)
    sys.argv = ["train", "data.train=chats.jsonl", "paths.metrics_dir=tables", f"run_dir={out}"]
    nexus.stages.prepare.prepare_to_train = lambda config: os._exit(BEGUN)  # rows, then weights, would be read now
    status = nexus.train.main()
    sys.stderr.flush()
    sys.exit(status)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_refused_before_a_model_is_loaded(home: Path, case: Callable[[Path], str]) -> None:
    write_chats(home / "chats.jsonl", rows=9)
    errors = home / "errors"
    errors.touch()
    errors.chmod(0o666)
    (home / "tables").mkdir()
    (home / "tables").chmod(0o777)
    out = case(home)
    before = sorted(str(path) for path in home.rglob("*"))
    try:
        child = faults.in_a_child(lambda: as_nobody(home, out, errors))
        _, status, used = os.wait4(child, 0)
        told = errors.read_text()
        assert os.waitstatus_to_exitcode(status) == 73, told
        assert told.split()[0] == CASES[case], told
        seconds = used.ru_utime + used.ru_stime
        assert seconds < 3
        assert sorted(str(path) for path in home.rglob("*")) == before
    finally:
        if case is mounted_read_only:
            subprocess.run(["umount", str(home / "out")], check=True)
    print(f"P10: {case.__name__}: {CASES[case]}, status 73 after {seconds:.2f} s of processor time")
