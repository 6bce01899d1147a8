"""The report's parts: scores, table, plot, provenance."""

from __future__ import annotations

import io
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nexus.packaging.card import model_card
from nexus.stages.report import format_score, git_commit, plain_scores, plot_loss, print_scores, provenance
from nexus.types import Score
from tests.conftest import REPOSITORY

BEFORE = {"tools": {"exact_match": {"value": 0.031, "n": 200, "ci95": [0.01, 0.06]}}}
AFTER = {
    "tools": {
        "exact_match": {"value": 0.91, "n": 200, "ci95": [0.8615, 0.943]},
        "name": {"value": 1.0, "n": 200, "ci95": [0.98, 1.0]},
    },
    "held_out": {"loss": {"value": 1.25, "n": 5120, "ci95": [1.2, 1.3]}},
}


def test_plain_scores() -> None:
    scores = {"tools": {"exact_match": Score(0.5, 8, (0.25, 0.75))}}
    assert plain_scores(scores) == {"tools": {"exact_match": {"value": 0.5, "n": 8, "ci95": [0.25, 0.75]}}}


def test_format_score() -> None:
    assert format_score(AFTER["tools"]["exact_match"]) == "0.910 [0.862, 0.943]"
    assert format_score(None) == "-"


def table(before, after) -> list[list[str]]:
    console = Console(width=160, record=True, file=io.StringIO())
    print_scores(console, before, after)
    cells = [re.split(r"\s*[│┃|]\s*", line)[1:-1] for line in console.export_text().splitlines()]
    return [row for row in cells if row]


def test_the_table_names_every_metric_before_and_after() -> None:
    rows = table(BEFORE, AFTER)
    assert [cell.strip() for cell in rows[0]] == ["group", "metric", "before", "after", "n"]
    assert rows[1:] == [
        ["tools", "exact_match", "0.031 [0.010, 0.060]", "0.910 [0.862, 0.943]", "200"],
        ["tools", "name", "-", "1.000 [0.980, 1.000]", "200"],
        ["held_out", "loss", "-", "1.250 [1.200, 1.300]", "5120"],
    ]
    assert len(table({}, AFTER)) == 4


@pytest.mark.parametrize("names", [["train"], ["0_method=sft", "1_method=lora"]])
def test_the_plot_is_a_picture_of_the_curves(tmp_path: Path, names: list[str]) -> None:
    from matplotlib.image import imread

    rows = [{"step": float(step), "train/loss": 3.0 / (step + 1)} for step in range(20)]
    plot_loss(tmp_path / "loss.png", {name: rows for name in names})
    plot_loss(tmp_path / "empty.png", {name: [] for name in names})
    drawn, empty = (imread(tmp_path / name) for name in ("loss.png", "empty.png"))
    assert drawn.shape == empty.shape == (440, 770, 4)
    assert (drawn != empty).any()


def test_provenance_names_versions_and_commit() -> None:
    facts = provenance(config_sha256="a", data_sha256="b", device="cpu")
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"] == version("torch")
    assert len(facts["versions"]) == 8
    assert (facts["config_sha256"], facts["data_sha256"], facts["device"]) == ("a", "b", "cpu")
    assert facts["git_commit"] == git_commit()


@pytest.mark.skipif(
    shutil.which("git") is None or not (REPOSITORY / ".git").exists(), reason="needs git and a checkout of it"
)
def test_the_commit_is_that_of_the_checkout() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = git_commit()
    assert found is not None
    assert found.removesuffix("-dirty") == head.stdout.strip()


CARD: dict[str, Any] = {
    "name": "nexus_tiny-tools-sft",
    "base_name": "nexus_tiny",
    "capabilities": ["tools"],
    "method": "sft",
    "adapter": "none",
    "scores": {"before": BEFORE, "after": AFTER},
    "train": {"global_step": 120, "tokens": 1234567, "seed": 42},
    "sources": {"nexus_tools": "MIT"},
    "data_sha256": "0123abcd",
    "recipe": {"learning rate": 0.002, "rows of a step": 32},
    "max_logit_difference": 0.00123,
    "quantization": None,
}


def test_the_card_says_how_far_the_merged_weights_are_from_what_was_trained() -> None:
    full = model_card(**CARD)
    assert "the largest difference of a logit is 0.0012." in full
    assert "adapter/" not in full
    assert "`adapter/` and fits the base model" in model_card(**(CARD | {"adapter": "lora"}))
    quantized = model_card(**(CARD | {"adapter": "qlora", "quantization": "nf4 with double quantization"}))
    assert "frozen in 4 bits (nf4 with double quantization)" in quantized
    judge = model_card(**CARD, is_reward_model=True)
    assert "the largest difference of a reward is 0.0012." in judge
    assert "AutoModelForSequenceClassification.from_pretrained" in judge
    assert "pipeline_tag: text-classification" in judge
    assert "CausalLM" not in judge


def test_the_card_holds_the_scores_the_recipe_and_the_licences() -> None:
    card = model_card(**CARD)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "tags: [nexus, sft, tools]" in card
    assert "| tools | exact_match | 0.031 [0.010, 0.060] | 0.910 [0.862, 0.943] | 200 |" in card
    assert "| held_out | loss | - | 1.250 [1.200, 1.300] | 5120 |" in card
    assert "for 120 optimizer steps on\n1,234,567 tokens (seed 42)" in card
    assert "- nexus_tools: MIT" in card
    assert "`0123abcd`" in card
    assert "- learning rate: 0.002\n- rows of a step: 32\n" in card
