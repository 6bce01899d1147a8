"""A run that learns its rows by heart and packages the step before that, and one that only looks."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nexus.models.saved_state import folder_name, read_state
from tests.conftest import Finished

pytestmark = pytest.mark.integration

Door = Callable[..., Finished]
VALIDATED = ("callbacks.validation.enabled=true", "callbacks.samples=null", "evaluation.before=false")


def test_the_best_step_is_scored_and_packaged(door: Door, tmp_path: Path) -> None:
    """Answers that follow from nothing: what is learned of them beyond their form is of no use to other rows."""
    rng = random.Random(3)
    rows = [{"prompt": f"Secret {i}?", "response": f"It is {rng.randint(0, 10**6)}."} for i in range(12)]
    (tmp_path / "secrets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("data.train=secrets.jsonl", "data.validation_fraction=0.25", "method.epochs=null", "method.max_steps=18")
    words += ("callbacks.validation.every_n_steps=4", "callbacks.validation.restore_best=true", "method.lr=3e-3")
    done = door("train", *words, *VALIDATED, "run_dir=run")
    assert done.status == 0, done.errors
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    found = report["validation"]
    assert report["data"]["held_out_rows"] == 3
    assert found["measurements"] == 5
    assert found["last"]["step"] == report["train"]["global_step"] == 18
    best = found["best"]["step"]
    assert best < 18, "in the end the rows are learned by heart"
    assert found["weights_of_step"] == best
    with (run / "metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]}
    assert sorted(losses) == [4, 8, 12, 16, 18]
    assert losses[best] == min(losses.values()) == found["best"]["loss"]
    after = report["scores"]["after"]["held_out"]["loss"]
    assert after["n"] == 3
    assert after["value"] == pytest.approx(found["best"]["loss"], rel=1e-4), "another batching, the same rows"
    saved = read_state(run / "checkpoints" / folder_name(best))["state_dict"]
    package = load_file(run / "package" / "model.safetensors")
    same = [(saved[f"model.{name}"] == value).all() for name, value in package.items() if f"model.{name}" in saved]
    assert len(same) >= 10
    assert all(same), "the package holds the best step's weights, bit for bit"
    assert f"those of step {best}" in (run / "package" / "README.md").read_text()
    assert f"weights of step {best}" in done.output


def test_a_capability_is_validated_on_its_held_out_rows(door: Door, tmp_path: Path) -> None:
    done = door("train", "+capability=tools", "scale=quick", *VALIDATED, "evaluation.after=false", "run_dir=run")
    assert done.status == 0, done.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["held_out_rows"] == 16
    assert report["validation"]["last"] == report["validation"]["best"]
    assert report["validation"]["weights_of_step"] == report["train"]["global_step"]
