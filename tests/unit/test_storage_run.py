"""Locks, run folders and redaction."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from nexus.errors import NexusError
from nexus.storage import redaction, run_folder
from nexus.storage.locks import LOCK_NAME, RunLock, read_holder

HOLDER = """
import sys, time
from pathlib import Path
from nexus.storage.locks import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(NexusError) as caught, RunLock(tmp_path):
        pass
    assert (caught.value.code, caught.value.status) == ("E-RUN-01", 75)
    assert str(process.pid) in caught.value.message
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with RunLock(tmp_path) as lock:
        assert lock.abandoned is not None
        assert lock.abandoned.pid == process.pid
        assert lock.abandoned.is_dead()
        with pytest.raises(NexusError), RunLock(tmp_path):
            pass
    assert read_holder(tmp_path) is None
    lock.__exit__(None, None, None)  # twice without harm
    with RunLock(tmp_path) as lock:
        assert lock.abandoned is None


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NexusError) as caught, RunLock(Path("/proc/nexus")):
        pass
    assert (caught.value.code, caught.value.status) == ("E-OUT-01", 73)

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(NexusError, match="No locks available") as caught, RunLock(tmp_path):
        pass
    assert (caught.value.code, caught.value.status) == ("E-OUT-07", 73)
    problem = run_folder.output_problem(tmp_path / "run", key="run_dir")
    assert problem is not None
    assert problem.code == "E-OUT-07"
    assert list(tmp_path.iterdir()) == [tmp_path / LOCK_NAME]


def test_lock_file_cut_short_by_a_kill(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text('{"pid": 12')
    assert read_holder(tmp_path) is None
    with RunLock(tmp_path) as lock:
        assert lock.abandoned is None


def test_run_name() -> None:
    when = datetime(2026, 1, 17, 9, 30, 5)
    assert (
        run_folder.run_name(capabilities=["tools", "cot"], method="sft", when=when) == "20260117-093005_cot-tools_sft"
    )
    assert run_folder.run_name(capabilities=[], method="cpt", when=when) == "20260117-093005_own-data_cpt"


def test_new_run_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er"
    assert run_folder.create_run_folder(path, key="run_dir") == path.resolve()
    assert list(path.iterdir()) == []
    run_folder.create_run_folder(path, key="run_dir")  # empty still
    (path / "status.json").write_text("{}")
    with pytest.raises(NexusError) as caught:
        run_folder.create_run_folder(path, key="run_dir")
    assert (caught.value.code, caught.value.status) == ("E-OUT-04", 73)
    assert f"resume={path}" in caught.value.remedy


@pytest.mark.parametrize(("parent", "code"), [("/proc", "E-OUT-01"), ("file", "E-OUT-03")])
def test_unwritable_output_is_found_before_work(tmp_path: Path, parent: str, code: str) -> None:
    (tmp_path / "file").write_text("")
    path = (Path(parent) if parent.startswith("/") else tmp_path / parent) / "nexus" / "run"
    with pytest.raises(NexusError) as caught:
        run_folder.create_run_folder(path, key="paths.output_dir")
    assert (caught.value.code, caught.value.status) == (code, 73)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_probe_leaves_nothing_and_makes_no_folder(tmp_path: Path) -> None:
    assert run_folder.output_problem(tmp_path / "a" / "b", key="run_dir") is None
    assert list(tmp_path.iterdir()) == []


def test_free_space(tmp_path: Path) -> None:
    assert run_folder.free_space_problem(tmp_path / "new", needed_bytes=1, key="run_dir") is None
    problem = run_folder.free_space_problem(tmp_path, needed_bytes=2**60, key="run_dir")
    assert problem is not None
    assert problem.code == "E-OUT-02"


def test_discard_empty(tmp_path: Path) -> None:
    path = run_folder.create_run_folder(tmp_path / "run", key="run_dir")
    (path / LOCK_NAME).write_text("")
    run_folder.discard_empty(path)
    assert not path.exists()
    path.mkdir()
    (path / "mine").write_text("")
    run_folder.discard_empty(path)
    assert path.exists()


# Made up here, in pieces, so that no scanner takes them for real ones.
HF = "hf_" + "aB3" * 11
OPENAI = "sk-" + "proj-" + "x9Y" * 12
AWS = "AKIA" + "ABCDEFGH12345678"
GITHUB = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize("secret", [HF, OPENAI, AWS, GITHUB])
def test_secrets_are_found_by_shape(secret: str) -> None:
    redacted = redaction.redact({"args": [f"run --with {secret} now"], "deep": ({"text": secret},)})
    assert secret not in str(redacted)
    assert redacted["args"] == [f"run --with {redaction.REDACTED} now"]


def test_secrets_are_found_by_key() -> None:
    given = {
        "logger": {"wandb": {"api_key": "short", "project": "nexus"}},
        "hf_token": "x",
        "awsSecretKey": "y",
        "password": 1234,
        "from_environment": {"hf_token": "${oc.env:HF_TOKEN}"},
    }
    assert redaction.redact(given) == {
        "logger": {"wandb": {"api_key": "<redacted>", "project": "nexus"}},
        "hf_token": "<redacted>",
        "awsSecretKey": "<redacted>",
        "password": "<redacted>",
        "from_environment": {"hf_token": "${oc.env:HF_TOKEN}"},
    }
    assert given["hf_token"] == "x"


def test_ordinary_settings_stay() -> None:
    given = {
        "max_new_tokens": 64,
        "tokenizer": "asset:nexus_tiny",
        "count_tokens": "completion",
        "pad_token": "<|pad|>",
        "special_tokens": ["<think>"],
        "image_token": "<|image|>",
        "micro_batch_tokens": 1024,
        "hf_token": None,
        "use_auth_token": False,
        "sha256": "0123456789abcdef" * 4,
        "url": "https://example.org/a:b@c",
        "task": "sk-learn and hf_hub are not secrets",
        "key": "method.lr",
    }
    assert redaction.redact(given) == given


def test_text_with_userinfo_and_assignments() -> None:
    assert redaction.redact_text("https://me:pass@host/x") == "https://<redacted>@host/x"
    assert redaction.redact_text("logger.wandb.api_key=0123456789abcdef") == "logger.wandb.api_key=<redacted>"
    assert redaction.redact_text("hf_token=${oc.env:HF_TOKEN}") == "hf_token=${oc.env:HF_TOKEN}"
    assert redaction.redact_text("Authorization: Bearer abcdefghijkl") == "Authorization: Bearer <redacted>"


def test_values_of_secret_variables_are_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain words only")
    monkeypatch.setenv("MY_AUTH", "basic")  # too short to be one: it may stand anywhere by chance
    monkeypatch.setenv("NEXUS_OUTPUT_DIR", "some/long/folder")
    text = "url?q=plain words only; basic; some/long/folder"
    assert redaction.redact_text(text) == "url?q=<redacted>; basic; some/long/folder"
    assert redaction.redact({"project": ["plain words only"]}) == {"project": ["<redacted>"]}


def test_messages_lose_the_secrets_of_the_command_line() -> None:
    words = ["+a.hf_token=open sesame", "--password", "swordfish", "--api-key=1-2-3-4", "method.lr=0.001", "token=no"]
    text = f"cannot read {' | '.join(words)}"
    shown = redaction.redact_message(text, words)
    assert shown == text.replace("open sesame", "<redacted>").replace("swordfish", "<redacted>").replace(
        "1-2-3-4", "<redacted>"
    )
    assert redaction.redact_message("nothing", []) == "nothing"
    assert redaction.redact_message("token=${oc.env:HF}", ["token=${oc.env:HF}"]) == "token=${oc.env:HF}"
