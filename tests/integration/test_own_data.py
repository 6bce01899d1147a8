"""A person with only the README: own rows, a look at them, a run, a conversation; the commands are the README's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished
from tests.integration.conftest import listing, write_chats, write_pairs
from tests.integration.readme import commands

pytestmark = pytest.mark.integration

Door = Callable[..., Finished]


def test_readme_commands_for_own_data(door: Door, tmp_path: Path) -> None:
    texts = [command.text for command in commands() if command.section == "Your own data"]
    write, dry_run, train, ask, chat, evaluate, resume, prompts, reward, rewarded = texts
    subprocess.run(["bash", "-c", write], cwd=tmp_path, check=True)
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"messages"}] * 2 + [{"prompt", "response"}] * 2

    def run(text: str, typed: str = "") -> Finished:
        _, _, module, *words = shlex.split(text, comments=True)
        finished = door(module.removeprefix("nexus."), *words, text=typed)
        assert finished.status == 0, finished.errors
        return finished

    before = listing(tmp_path)
    shown = run(dry_run).output
    assert listing(tmp_path) == before, "a dry run wrote something"
    assert "chats.jsonl:" in shown
    assert re.search(r"\d+ tokens, \d+ learned", shown)
    assert "<|im_start|>user" in shown

    assert "held_out" in run(train).output
    report = json.loads((tmp_path / "outputs/parrot/report.json").read_text())
    assert report["train"]["global_step"] == 60
    assert (report["data"]["rows"], report["data"]["held_out_rows"]) == (3, 1)
    loss = {when: report["scores"][when]["held_out"]["loss"]["value"] for when in ("before", "after")}
    assert loss["before"] != loss["after"]
    assert report["train"]["final_loss"] < 0.5, "three rows in 60 epochs are learned by heart"

    # Whatever row is held out, the others have been learned by heart.
    questions = {row["prompt"]: row["response"] for row in rows[2:]}
    questions |= {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows[:2]}
    assert run(ask).output.strip()
    answers = [run(chat, f"{question}\n\n").output for question in questions]
    right = [a.strip() == expected for a, expected in zip(answers, questions.values(), strict=True)]
    assert sum(right) >= 3, answers

    scores = run(evaluate).output
    assert "held-out loss on 4 rows" in scores
    assert "perplexity" in scores
    before = listing(tmp_path)
    assert "the run is finished" in run(resume).output
    assert listing(tmp_path) == before

    for text in (prompts, reward):
        subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True)
    shown = run(rewarded).output
    assert "rewards.py:short" in shown
    assert "prompts.jsonl:1" in shown


def test_dry_run_colors_what_is_learned(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    write_pairs(tmp_path / "pairs.jsonl")
    shown = door("train", "data.train=pairs.jsonl", "dry_run=true").output
    green = "".join(re.findall(r"\x1b\[(?:\d+;)*32m([^\x1b]*)", shown.split("one row as the model sees it")[1]))
    assert green.replace("\n", "") == "2 learned0<|im_end|>"


def test_text_lora_and_what_can_be_switched_off(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_OUTPUT_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "book.txt").write_text("\n\n".join(f"The fox met hen number {i}." for i in range(12)))
    off = ("callbacks.samples=null", "package.enabled=false", "evaluation.before=false")
    done = door("train", "method=cpt", "adapter=lora", "data.train=book.txt", *off)
    assert done.status == 0, done.errors
    (folder,) = (path for path in (tmp_path / "elsewhere").iterdir() if path.is_dir() and path.name[0] != ".")
    assert folder.name.endswith("_own-data_cpt")
    assert {path.name for path in tmp_path.iterdir()} == {"book.txt", "elsewhere"}
    report = json.loads((folder / "report.json").read_text())
    assert report["package"] is None
    assert report["scores"]["before"] == {}
    assert set(report["scores"]["after"]) == {"held_out"}
    assert not (folder / "package").exists()
    assert not (folder / "samples.jsonl").exists()
    assert report["train"]["trainable_parameters"] < report["train"]["parameters"] / 4
    assert report["data"]["rows"] == 11


def test_own_validation_file(door: Door, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", rows=6)
    write_pairs(tmp_path / "pairs.jsonl", rows=5)
    files = ("data.train=chats.jsonl", "data.validation=pairs.jsonl")
    done = door("train", *files, "run_dir=run", "package.enabled=false", "method.max_steps=1")
    assert done.status == 0, done.errors
    data = json.loads((tmp_path / "run" / "report.json").read_text())["data"]
    assert (data["rows"], data["held_out_rows"]) == (6, 5)
