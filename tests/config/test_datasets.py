"""Dataset cards: every one composes and is listed; one for evaluation only is refused where it would be learned."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexus.capabilities import dataset_table
from nexus.config.check import check
from nexus.config.datasets import read_datasets
from nexus.config.folders import groups
from tests.config.conftest import Outcome

Door = Callable[..., Outcome]
MINE = "data.sources.mine"
HUB = [name for name, info in read_datasets().items() if info.is_hub]


def test_every_card_is_read() -> None:
    assert set(read_datasets()) == set(groups()["dataset"])
    assert len(HUB) >= 17
    for name in HUB:
        info = read_datasets()[name]
        assert info.repository.count("/") == 1
        assert info.split
        assert info.about
        assert info.revision is None or len(info.revision) == 40
    gsm8k = read_datasets()["gsm8k"]
    assert (gsm8k.repository, gsm8k.config, gsm8k.split, gsm8k.license, gsm8k.gated, gsm8k.roles, gsm8k.size) == (
        "openai/gsm8k", "main", "train", "MIT", False, ("train",), 7473,
    )  # fmt: skip
    assert read_datasets()["hub"].repository == ""


@pytest.mark.parametrize("root", ["train", "evaluate"])
def test_cards_compose_and_pass(cfg: Callable[..., Any], root: str) -> None:
    words = [
        f"+dataset@{place}.{name}={name}" for name in HUB for place in ("data.sources", "capabilities.cot.sources")
    ]
    composed = cfg("+capability=cot", *words, root=root)
    for name in HUB:
        info = read_datasets()[name]
        for card in (composed.data.sources[name], composed.capabilities.cot.sources[name]):
            assert (card.name, card.kind, card.path, card.config) == (name, "hub", info.repository, info.config)
            assert (card.split, tuple(card.roles), card.weight) == (info.split, info.roles, 1)
    # A benchmark beside sources that are trained on only measures. Own rows beside a capability are refused elsewhere.
    assert {problem.code for problem in check(composed, root=root)} <= {"E-CFG-03"}


@pytest.mark.parametrize(
    ("words", "code", "status", "hints"),
    [
        ([f"+dataset@{MINE}=gsm8k_test"], "E-DAT-18", 65, ["nothing is left to train on", "datasets=true"]),
        ([f"+dataset@{MINE}=gsm8k_test", f"{MINE}.roles=[train]"], "E-DAT-18", 65, ["kept for evaluation"]),
        ([f"+dataset@{MINE}=gsm8k", f"{MINE}.split=test"], "E-DAT-18", 65, ["(dataset gsm8k_test)"]),
        ([f"+dataset@{MINE}=gsm8k", f"{MINE}.split='train+test[:5%]'"], "E-DAT-18", 65, ["gsm8k_test"]),
        (
            [f"+dataset@{MINE}=hub", f"{MINE}.path=OpenAI/GSM8K", f"{MINE}.split=test"],
            "E-DAT-18", 65, ["gsm8k_test"],
        ),
        (
            ["+capability=cot", "+dataset@capabilities.cot.sources.x=gsm8k", "capabilities.cot.sources.x.split=test"],
            "E-DAT-18", 65, ["capabilities.cot.sources.x"],
        ),
        (["+capability=cot", "capabilities.cot.sources.embedded.roles=[eval]"], "E-DAT-18", 65, ["nexus_cot"]),
        ([f"+dataset@{MINE}=hub"], "E-CFG-07", 64, [f"{MINE}.path=VALUE", f"{MINE}.split=VALUE"]),
        ([f"+dataset@{MINE}=gsm8k", f"{MINE}.split=null"], "E-CFG-07", 64, [f"{MINE}.split"]),
        ([f"+dataset@{MINE}=files", f"{MINE}.path=nowhere.jsonl"], "E-MIS-02", 66, [f"{MINE}.path", "no such file"]),
        ([f"+dataset@{MINE}=xlam_60k", f"{MINE}.eval_rows=null"], "E-CFG-07", 64, ["eval_rows"]),
        ([f"+dataset@{MINE}=gsm8k", f"{MINE}.path=[a/b,c/d]"], "E-CFG-02", 64, ["one repository a card"]),
        ([f"+dataset@{MINE}=gsm8k", f"{MINE}.weight=0"], "E-CFG-02", 64, ["weight"]),
    ],
)  # fmt: skip
def test_sources_that_are_refused(door: Door, words: list[str], code: str, status: int, hints: list[str]) -> None:
    outcome = door(*words)
    assert outcome.jobs == []
    assert (outcome.status, code in outcome.errors) == (status, True), outcome.errors
    for hint in hints:
        assert hint in outcome.errors


def test_other_splits_and_configurations_of_a_benchmark_may_be_learned(door: Door) -> None:
    assert door(f"+dataset@{MINE}=gsm8k").status == 0
    assert door(f"+dataset@{MINE}=gsm8k", f"{MINE}.config=socratic", f"{MINE}.split=test").status == 0
    assert door(f"+dataset@{MINE}=gsm8k", "+dataset@data.sources.exam=gsm8k_test").status == 0


def test_the_table_shows_every_card() -> None:
    lines = dataset_table().splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) == len(HUB) + 10
    assert lines[0].startswith(f"{len(rows)} dataset cards")
    assert all(row.count("|") == 8 for row in rows)
    [row] = [row for row in rows if row.startswith("| gsm8k_test ")]
    assert "| openai/gsm8k (main, test) @740312ad | 1,319 | MIT | no | eval |" in row
    for name in HUB:
        assert any(row.startswith(f"| {name} ") for row in rows)


def test_the_door_prints_it(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nexus.capabilities", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("datasets=true")
    assert (done.returncode, done.stdout.strip()) == (0, dataset_table())
    assert "capabilities" in run("datasets=false").stdout.splitlines()[0]
    wrong = run("dataset=true")
    assert (wrong.returncode, wrong.stdout) == (64, "")
    assert "E-CFG-05" in wrong.stderr
