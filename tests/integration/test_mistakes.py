"""The commonest mistakes: one coded error each, in seconds, with the right exit status, and nothing left behind."""

from __future__ import annotations

import json
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nexus.config.compose import compose_config
from nexus.errors import EXIT_STATUS
from tests.conftest import Finished
from tests.integration.conftest import listing, run_in, write_chats

pytestmark = pytest.mark.integration

Refused = Callable[..., Finished]
TOOLS = "+capability=tools"
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}

#: Codes whose cause is a thing that is not there.
OTHER_STATUS = {code: EXIT_STATUS["MIS"] for code in ("E-DAT-01", "E-MOD-03")}


def insist(finished: Finished, code: str, *hints: str) -> None:
    """One error: its code at the start of the line, its exit status, and words that help."""
    lines = [line for line in finished.errors.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines if line.startswith("E-")] == [code], finished.errors
    assert len(lines) == 1, finished.errors
    assert finished.status == OTHER_STATUS.get(code, EXIT_STATUS[code.split("-")[1]]), finished.errors
    assert " -- " in lines[0], "no remedy"
    for hint in hints:
        assert hint in finished.errors


#: Mistakes of the command line alone: door, words, code, hints.
WORDS: list[tuple[str, list[str], str, list[str]]] = [
    ("train", ["--capability", "tools"], "E-CFG-05", ["capability=VALUE"]),
    ("train", [TOOLS, "scale=quik"], "E-CFG-01", ["did you mean quick?"]),
    ("train", [TOOLS, "method.lrr=1e-3"], "E-CFG-01", ["did you mean method.lr?"]),
    ("train", [TOOLS, "+method.lrr=1e-3"], "E-CFG-01", ["did you mean method.lr?"]),
    ("train", ["capability=tools"], "E-CFG-06", ["+capability=tools"]),
    ("train", [TOOLS, "method=lora", "adapter=none"], "E-CFG-03", ["adapter=lora"]),
    ("train", [], "E-CFG-09", ["+capability=NAME", "data.train=FILE"]),
    ("train", ["+capability=omni"], "E-CAP-01", ["planned"]),
    ("train", ["+capability=streaming"], "E-CAP-02", ["nexus.evaluate"]),
    ("train", [TOOLS, "capabilities.tools.requires=[text,image]"], "E-CAP-03", ["image", "encoder"]),
    ("train", [TOOLS, "data.max_seq_len=1000000"], "E-LEN-03", ["data.max_seq_len="]),
    ("evaluate", [TOOLS, "capabilities.tools.max_new_tokens=2040"], "E-LEN-05", ["data.long_rows=drop"]),
    ("train", ["data.train=nothing.jsonl"], "E-MIS-02", ["nothing.jsonl"]),
    ("train", ["resume=nowhere"], "E-MIS-03", ["config.yaml"]),
    ("train", [TOOLS, "base_model=custom", "base_model.path=./nowhere"], "E-MIS-01", ["no such folder"]),
    ("train", [TOOLS, "+callbacks.mine={_target_: os.system}"], "E-SEC-06", ["os.system"]),
    ("train", [TOOLS, "base_model.chat_template=hf_abcdefghijklmnopqrstuvwx"], "E-SEC-07", ["environment"]),
    ("train", [TOOLS, "hardware.accelerator=tpu"], "E-CFG-02", ["hardware.accelerator"]),
    ("train", [TOOLS, "scale=quick", "hardware.memory_gib=0.01"], "E-MEM-01", ["hardware.memory_gib"]),
    ("evaluate", ["+capability=streaming", "capabilities.streaming.max_new_tokens=3"], "E-CFG-02", ["at least 4"]),
    ("evaluate", [], "E-CFG-09", ["data.validation=FILE"]),
    ("evaluate", ["data.train=."], "E-CFG-03", ["data.validation=. scores all of them"]),
    ("evaluate", [TOOLS, "package=nowhere"], "E-MIS-01", ["no such folder"]),
    ("evaluate", [TOOLS, "scale=quick", "output=nowhere/scores.json"], "E-OUT-03", ["output"]),
    ("generate", ["package=nowhere", "prompt=Hello"], "E-MIS-01", ["no such folder"]),
    ("generate", ["promt=Hello"], "E-CFG-01", ["did you mean prompt?"]),
    ("generate", ["prompt=Hello", "max_new_tokens=0"], "E-CFG-02", ["max_new_tokens"]),
]


@pytest.mark.parametrize(("module", "words", "code", "hints"), WORDS, ids=[" ".join([d, *w]) for d, w, _, _ in WORDS])
def test_words(refused: Refused, module: str, words: list[str], code: str, hints: list[str]) -> None:
    insist(refused(module, *words), code, *hints)


#: What stands in a data file that cannot be used: name, content, further words, code, hints.
FILES: list[tuple[str, bytes, list[str], str, list[str]]] = [
    ("empty.jsonl", b"", [], "E-DAT-04", ["no rows"]),
    ("blank.jsonl", b"\n  \n", [], "E-DAT-04", ["no rows"]),
    ("garbage.jsonl", json.dumps(CHAT).encode() + b"\n{garbage\n", [], "E-DAT-02", ["garbage.jsonl:2"]),
    ("columns.jsonl", b'{"qestion": "a", "anwser": "b"}\n', [], "E-DAT-12", ["columns.jsonl:1", "qestion"]),
    ("nan.jsonl", b'{"prompt": "a", "response": "b", "score": NaN}\n', [], "E-DAT-07", ["NaN", "nan.jsonl:1"]),
    ("array.jsonl", b'[{"prompt": "a", "response": "b"}]', [], "E-DAT-08", [".json"]),
    ("list.jsonl", b'{"prompt": "a", "response": "b"}\n["a", "b"]\n', [], "E-DAT-05", ["list.jsonl:2"]),
    ("latin.jsonl", '{"prompt": "Gr\u00fc\u00dfe", "response": "b"}'.encode("latin-1"), [], "E-DAT-06", ["iconv"]),
    ("table.xlsx", b"PK", [], "E-DAT-08", [".xlsx", ".jsonl"]),
    ("long.jsonl", json.dumps(CHAT).encode(), ["data.max_seq_len=4"], "E-LEN-01", ["long.jsonl:1", "data.max_seq_len"]),
    ("none.jsonl", json.dumps(CHAT).encode(), ["data.max_seq_len=4", "data.long_rows=drop"], "E-DAT-13", ["0 of 1"]),
    ("mute.jsonl", b'{"messages": [{"role": "user", "content": "Hi"}]}', [], "E-DAT-15", ["mute.jsonl:1"]),
    ("role.jsonl", b'{"messages": [{"role": "robot", "content": "Hi"}]}', [], "E-DAT-05", ["role.jsonl:1", "robot"]),
]


@pytest.mark.parametrize(("name", "content", "words", "code", "hints"), FILES, ids=[name for name, *_ in FILES])
def test_files(
    refused: Refused, tmp_path: Path, name: str, content: bytes, words: list[str], code: str, hints: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    insist(refused("train", f"data.train={name}", *words), code, *hints)


@pytest.mark.parametrize("name", ["empty.jsonl", "garbage.jsonl", "long.jsonl", "none.jsonl"])
def test_files_in_a_dry_run(refused: Refused, tmp_path: Path, name: str) -> None:
    ((content, words, code, hints),) = [(c, w, e, h) for n, c, w, e, h in FILES if n == name]
    (tmp_path / name).write_bytes(content)
    # A sample of the rows, not all of them: it cannot say how many were dropped.
    insist(refused("train", f"data.train={name}", "dry_run=true", *words), code, *([] if code == "E-DAT-13" else hints))


def test_folder_as_data(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "notes.md").write_text("no rows")
    insist(refused("train", "data.train=rows"), "E-DAT-01", "rows")


def test_no_chat_template(refused: Refused, tmp_path: Path, model_copy: Path) -> None:
    (model_copy / "chat_template.jinja").unlink()
    words = ("base_model=custom", "base_model.path=model")
    insist(refused("train", TOOLS, *words), "E-TOK-05", "base_model.chat_template")
    write_chats(tmp_path / "chats.jsonl")
    insist(refused("train", "data.train=chats.jsonl", *words), "E-TOK-05", "base_model.chat_template")


def test_tokenizer_larger_than_embedding(refused: Refused, model_copy: Path) -> None:
    file = model_copy / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    rows = json.loads((model_copy / "config.json").read_text())["vocab_size"]
    extra = {**tokenizer["added_tokens"][-1], "id": rows, "content": "<|beyond|>"}
    file.write_text(json.dumps(tokenizer | {"added_tokens": [*tokenizer["added_tokens"], extra]}))
    words = ("base_model=custom", "base_model.path=model")
    insist(refused("train", TOOLS, *words), "E-TOK-02", "<|beyond|>", str(rows))


def test_truncated_weights(refused: Refused, model_copy: Path) -> None:
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    insist(refused("train", TOOLS, "base_model=custom", "base_model.path=model"), "E-MOD-08", "model.safetensors")


def test_weights_that_are_no_safetensors(refused: Refused, model_copy: Path) -> None:
    (model_copy / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    insist(refused("train", TOOLS, "base_model=custom", "base_model.path=model"), "E-MOD-08", "model.safetensors")


def test_model_folder_without_config(refused: Refused, model_copy: Path) -> None:
    (model_copy / "config.json").unlink()
    insist(refused("train", TOOLS, "base_model=custom", "base_model.path=model"), "E-MOD-03", "config.json")


def test_file_in_the_way(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    insist(refused("train", TOOLS, "run_dir=taken/run"), "E-OUT-03", "taken")
    monkeypatch.setenv("NEXUS_OUTPUT_DIR", "taken")
    insist(refused("train", TOOLS), "E-OUT-03", "paths.output_dir")


def test_unwritable_output(refused: Refused) -> None:
    # The process file system refuses everybody, root too.
    insist(refused("train", TOOLS, "run_dir=/proc/run"), "E-OUT-01", "run_dir")


def test_two_runs_in_one_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "status.json").write_text("{}")
    insist(refused("train", TOOLS, "run_dir=old"), "E-OUT-04", "resume=old")


def test_other_files_in_the_run_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    insist(refused("train", TOOLS, "run_dir=mine"), "E-OUT-06", "thesis.txt")


def test_a_path_with_a_space_can_be_resumed_as_told(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "status.json").write_text("{}")
    finished = refused("train", TOOLS, "run_dir='my run'")
    insist(finished, "E-OUT-04")
    [told] = [word for word in shlex.split(finished.errors) if word.startswith("resume=")]
    insist(refused("train", told.rstrip(",")), "E-MIS-03", "my run")


def test_dry_run_of_a_resume_is_checked_as_any_other(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    config = compose_config("train", [TOOLS])
    OmegaConf.save(config, tmp_path / "old" / "config.yaml")
    insist(refused("train", "resume=old", "dry_run=1"), "E-CFG-02", "dry_run")
    (tmp_path / "old" / "config.yaml").write_text("seed: 1\n")
    finished = refused("train", "resume=old")
    assert "E-CFG-07" in finished.errors, "a config from which settings were taken out"


def insist_on_no_run(finished: Finished, code: str, home: Path) -> None:
    """The error came when the rows were read, which the token cache may keep, and no run folder was left."""
    assert [line.split()[0] for line in finished.errors.splitlines() if line.startswith("E-")] == [code]
    assert finished.status == EXIT_STATUS[code.split("-")[1]]
    outputs = home / "outputs"
    kept = {".cache"} | {path.name for path in outputs.glob("*.csv")} | {".tables.lock"}
    assert not outputs.exists() or {path.name for path in outputs.iterdir()} <= kept


@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_to_validate_on(door: Refused, tmp_path: Path, rows: int) -> None:
    (tmp_path / "same.jsonl").write_text(rows * (json.dumps(CHAT) + "\n"))
    finished = door("train", "data.train=same.jsonl", "callbacks.validation.enabled=true")
    insist_on_no_run(finished, "E-DAT-35", tmp_path)
    assert "data.validation=FILE" in finished.errors


def test_a_full_disk_is_seen_before_the_run(door: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    insist_on_no_run(door("train", TOOLS, "scale=quick"), "E-OUT-02", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize(
    ("words", "code"),
    [(["hardware.accelerator=gpu"], "E-DEV-01"), (["optimizer=paged_adamw"], "E-DEV-05"),
     (["method=lora", "adapter.target_modules=[foo]"], "E-CFG-22")],
)  # fmt: skip
def test_what_only_machine_and_model_show(door: Refused, tmp_path: Path, words: list[str], code: str) -> None:
    write_chats(tmp_path / "chats.jsonl")
    insist_on_no_run(door("train", "data.train=chats.jsonl", *words), code, tmp_path)


@pytest.mark.parametrize("also", [(), ("dry_run=true",)])
@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["method=lora", "adapter.target_modules=[q_proj,v_porj]"], "E-CFG-22", "v_porj"),
        (["callbacks.validation.enabled=true", "data.validation_fraction=0"], "E-DAT-35", "validation_fraction"),
    ],
)
def test_what_a_dry_run_tells_as_early_as_the_run(
    refused: Refused, tmp_path: Path, words: list[str], code: str, named: str, also: tuple[str, ...]
) -> None:
    write_chats(tmp_path / "chats.jsonl")
    insist(refused("train", "data.train=chats.jsonl", *words, *also), code, named)


def test_half_a_character(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"prompt": "hi \\ud83d", "response": "b"}\n')
    insist(refused("train", "data.train=cut.jsonl"), "E-DAT-34", "cut.jsonl:1")
    insist(refused("generate", "base_model=nexus_tiny", "prompt=caf\udce9"), "E-DAT-34", "UTF-8")


def test_resume_of_a_folder_without_run(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    insist(refused("train", "resume=old"), "E-MIS-03", "config.yaml")


def test_another_modality_and_planned_are_both_said(refused: Refused) -> None:
    finished = refused("train", "+capability=vision_qa")
    assert finished.status == EXIT_STATUS["CAP"]
    assert "E-CAP-01" in finished.errors
    assert "E-CAP-03" in finished.errors


def test_a_secret_is_not_repeated(refused: Refused) -> None:
    secret = "hf_abcdefghijklmnopqrstuvwx"
    for word in (f"base_model.chat_template={secret}", f"+hf_token={secret}", f"hf_token={secret}"):
        finished = refused("train", TOOLS, word)
        assert finished.status in (EXIT_STATUS["CFG"], EXIT_STATUS["SEC"])
        assert secret not in finished.errors


def test_run_instead_of_its_package(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run" / "package").mkdir(parents=True)
    (tmp_path / "run" / "package" / "config.json").write_text("{}")
    insist(refused("generate", "package=run", "prompt=Hello"), "E-MIS-01", "run/package")


def test_there_are_enough_of_them() -> None:
    assert len(WORDS) >= 20
    assert len(FILES) >= 12


@pytest.mark.parametrize(
    ("words", "code"),
    [(["capability=tools"], "E-CFG-06"), ([TOOLS, "method.lrr=1"], "E-CFG-01"), (["data.train=bad.jsonl"], "E-DAT-02")],
)
def test_in_a_process_of_its_own(tmp_path: Path, words: list[str], code: str) -> None:
    (tmp_path / "bad.jsonl").write_text("{garbage\n")
    before = listing(tmp_path)
    finished = run_in(tmp_path, "train", *words)
    insist(finished, code)
    assert finished.output == ""
    assert listing(tmp_path) == before
