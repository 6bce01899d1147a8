"""Killed at any instant, also inside a save, a run ends with the weights of one left alone, and nobody lends a hand."""

from __future__ import annotations

import json
import logging
import random
import signal
import time
from pathlib import Path

import pytest

from nexus.callbacks.checkpoint import checkpoints
from nexus.models.saved_state import STATE_NAME, TENSORS_NAME
from nexus.storage.manifest import file_sha256, read_manifest
from tests import faults, runs

pytestmark = pytest.mark.faults

RUNS = faults.count(1, 21)
KILLS_PER_RUN = faults.count(6, 10)
STEPS = faults.count(20, 40)
METHODS = ("sft", "cpt", "lora", "qlora", "dpo", "orpo", "ppo", "grpo")
METHOD_KILLS = faults.count(2, 20)
METHOD_STEPS = faults.count(6, 30)
#: Of the 96 micro-batches of three epochs, two a step: all of them, or the edges of epochs and their neighbors.
POINTS = range(1, 97) if faults.FULL else (1, 2, 31, 32, 33, 64, 65, 96)
POINT_STEPS = 48


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load what a first step loads, once, before children are forked; their many starts are not told."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs.train("lora", tmp_path_factory.mktemp("warm"), steps=1, ambient=1, layers=1)


def alone(name: str, folder: Path, steps: int, **more: int) -> float:
    """A run that nobody disturbs; returns how long it took."""
    started = time.monotonic()
    work = lambda: runs.go_on(name, folder, steps=steps, ambient=1, every_n_steps=1, layers=1, **more)  # noqa: E731
    assert faults.end_of(faults.in_a_child(work)) == 0
    return time.monotonic() - started


def killed(name: str, folder: Path, steps: int, *, kills: int, seconds: float, seed: str, tally: faults.Tally) -> None:
    faults.killed_run(
        folder,
        lambda ambient: runs.go_on(name, folder, steps=steps, ambient=ambient, every_n_steps=1, layers=1),
        rng=random.Random(seed),
        kills=kills,
        span=seconds / 5,
        tally=tally,
    )


def test_killed_at_random_instants(tmp_path: Path) -> None:
    tally = faults.Tally()
    seconds = alone("lora", tmp_path / "whole", STEPS)
    for run in range(RUNS):
        folder = tmp_path / str(run)
        killed("lora", folder, STEPS, kills=KILLS_PER_RUN, seconds=seconds, seed=f"run {run}", tally=tally)
        assert runs.same_weights(folder, tmp_path / "whole"), f"run {run}"
        print(f"run {run}: {tally} so far, equal weights", flush=True)
    assert tally.kills >= faults.count(4, 200)
    assert tally.in_saves >= 0.3 * tally.kills
    print(f"P1: {tally}; all ended with the weights of the run left alone")


@pytest.mark.parametrize(
    "name",
    ["dpo", "grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in ("dpo", "grpo"))],
)
def test_every_method_is_killed(name: str, tmp_path: Path) -> None:
    tally = faults.Tally()
    seconds = alone(name, tmp_path / "whole", METHOD_STEPS)
    number = 0
    while tally.kills < METHOD_KILLS:
        folder = tmp_path / str(number)
        missing = METHOD_KILLS - tally.kills
        killed(
            name, folder, METHOD_STEPS, kills=min(10, missing), seconds=seconds, seed=f"{name} {number}", tally=tally
        )
        assert runs.same_weights(folder, tmp_path / "whole"), f"{name}, run {number}"
        number += 1
    print(f"P2 {name}: {tally}; all ended with the weights of the run left alone")


@pytest.mark.slow
def test_killed_in_every_micro_batch(tmp_path: Path) -> None:
    """After each kill the next process takes the same step again; its whole checkpoint equals the undisturbed one's."""
    shape = {"rows": 64, "keep": 1000}
    alone("lora", tmp_path / "whole", POINT_STEPS, **shape)
    kind, run = runs.SFT_LIKE["lora"][0], tmp_path / "run"
    seen = set()
    for index, point in enumerate(POINTS):
        saved = checkpoints(run / "checkpoints")
        done = 2 * saved[-1][0] if saved else 0

        def work(nth: int = point - done, after: bool = index % 2 == 1) -> None:
            faults.kill_in_forward(kind, nth, after=after)
            runs.go_on("lora", run, steps=POINT_STEPS, ambient=nth, every_n_steps=1, layers=1, **shape)

        assert faults.end_of(faults.in_a_child(work)) == -signal.SIGKILL, f"micro-batch {point}"
        newest = checkpoints(run / "checkpoints")
        assert (newest[-1][0] if newest else 0) == (point - 1) // 2, f"micro-batch {point}"
        seen.add(point)
    alone("lora", run, POINT_STEPS, **shape)
    assert runs.same_weights(run, tmp_path / "whole")
    steps = [step for step, _ in checkpoints(run / "checkpoints")]
    assert steps == list(range(1, POINT_STEPS + 1))
    for step, path in checkpoints(run / "checkpoints"):
        theirs = tmp_path / "whole" / "checkpoints" / path.name
        assert file_sha256(path / TENSORS_NAME) == file_sha256(theirs / TENSORS_NAME), f"step {step}"
        assert (
            json.loads((path / STATE_NAME).read_text())["nexus"]
            == json.loads((theirs / STATE_NAME).read_text())["nexus"]
        )
        assert read_manifest(path)["files"].keys() == read_manifest(theirs)["files"].keys()
    assert len(seen) == faults.count(8, 96)
    print(f"P3: killed in {len(seen)} of 96 micro-batches of three epochs; all {len(steps)} checkpoints are equal")
