"""Attempts to use what is bad or hostile, in this process: through a door or a part of Nexus, with what came of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nexus.train
from nexus.errors import NexusError
from tests.conftest import Finished
from tests.integration.conftest import ASSET, ROOTS, listing, write_chats

#: A conversation that is in order.
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


def jsonl(*lines: Any) -> str:
    """The text of a JSONL file."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def train_shortly(home: Path) -> Path:
    """A run of two steps and two checkpoints, `run`, on `chats.jsonl`; in this process, so that torch is loaded once.

    Args:
        home: an empty folder.

    Returns:
        The folder.
    """
    write_chats(home / "chats.jsonl", rows=6)
    given = ["data.train=chats.jsonl", "run_dir=run", "method.max_steps=2", "data.global_batch_size=2",
             "callbacks.checkpoint.every_n_steps=1", "evaluation.before=false", "evaluation.after=false",
             "package.enabled=false", "data.cache=false"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ROOTS:
            patch.delenv(name, raising=False)
        patch.setattr(sys, "argv", ["train", *given])
        assert nexus.train.main() == 0
    return home


@dataclass
class Bench:
    """Where a bad input is made and tried.

    Attributes:
        home: the current folder.
        run_door: a door in this process.
        trained: a folder with `run`, finished, and its rows `chats.jsonl`.
        patch: pytest's.
        log: pytest's.
        ends: what came of every attempt: exit status and all that was said.
    """

    home: Path
    run_door: Callable[..., Finished]
    trained: Path
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture
    ends: list[tuple[int, str]]

    def door(self, name: str, *words: str, writes: bool = False) -> str:
        """Through a door; returns all that was said."""
        before = listing(self.home)
        finished = self.run_door(name, *words)
        assert writes or listing(self.home) == before, "a refused start wrote something"
        said = "\n".join([finished.errors, finished.output, self.log.text])
        self.ends.append((finished.status, said))
        return said

    def call(self, work: Callable[[], Any]) -> None:
        """A part of Nexus without its door."""
        try:
            work()
        except NexusError as error:
            self.ends.append((error.status, str(error)))
        else:
            self.ends.append((0, self.log.text))

    def train(self, *words: str) -> str:
        """The door that trains, on the tools capability."""
        return self.door("train", "+capability=tools", *words)

    def rows(self, name: str, content: bytes | str, *words: str) -> None:
        """The door that trains, on a file of one's own."""
        (self.home / name).write_bytes(content.encode() if isinstance(content, str) else content)
        self.door("train", f"data.train={name}", *words)

    def template(self, text: str, *words: str) -> None:
        """The same on good rows, one with a system turn, with a chat template of one's own."""
        (self.home / "own.jinja").write_text(text)
        turns = [{"role": "system", "content": "Be brief."}, *CHAT["messages"]]
        self.rows("chats.jsonl", jsonl({"messages": turns}), "base_model.chat_template=own.jinja", *words)

    def model(self, *, as_packed: bool = False) -> Path:
        """A model's folder to be spoiled."""
        skipped = () if as_packed else ("manifest.json",)
        return Path(shutil.copytree(ASSET, self.home / "model", ignore=shutil.ignore_patterns(*skipped)))

    def ask(self) -> str:
        """The door that opens this model."""
        return self.door("generate", "base_model=custom", "base_model.path=model", "prompt=Hello", "max_new_tokens=1")

    def run(self, *, finished: bool = False) -> Path:
        """A run of two steps and two checkpoints, as if it had been interrupted, unless it is to be finished."""
        shutil.copytree(self.trained, self.home, dirs_exist_ok=True)
        folder = self.home / "run"
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace(str(self.trained), str(self.home)))
        if not finished:
            (folder / "report.json").unlink()
        return folder

    def resume(self) -> str:
        """Go on with it."""
        return self.door("train", "resume=run", writes=True)


@pytest.fixture(scope="module", name="trained")
def trained_shortly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    return train_shortly(tmp_path_factory.mktemp("trained"))


@pytest.fixture(name="bench")
def make_bench(
    door: Callable[..., Finished],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Bench:
    """Where one bad input is made and tried; a module that imports this and `trained_shortly` has it."""
    return Bench(tmp_path, door, trained, monkeypatch, caplog, [])
