"""A run that goes on with other micro-batches: refused as `exact`, done as `fast`; with another base: neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nexus.callbacks.checkpoint import checkpoints
from nexus.models.facts import ASSETS
from nexus.storage.manifest import MANIFEST_NAME
from tests.conftest import Finished
from tests.integration.conftest import write_chats

pytestmark = pytest.mark.integration

Door = Callable[..., Finished]
STEPS = 12
WORDS = (
    "data.train=chats.jsonl", "data.global_batch_size=8", "method.epochs=null", f"method.max_steps={STEPS}",
    "evaluation.before=false", "evaluation.after=false", "callbacks.samples=null", "package.enabled=false",
    "callbacks.checkpoint.every_n_steps=4", "callbacks.checkpoint.keep=9", "run_dir=run",
)  # fmt: skip


def interrupt(run: Path, *, at: int) -> float:
    """Leave what a run leaves that was killed after step `at`; the last loss that it had come to."""
    loss = float(json.loads((run / "report.json").read_text())["train"]["final_loss"])
    (run / "report.json").unlink()
    for step, path in checkpoints(run / "checkpoints"):
        if step > at:
            shutil.rmtree(path)
    return loss


def test_other_micro_batches(door: Door, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    run, other = tmp_path / "run", "hardware.micro_batch_size=3"
    assert door("train", *WORDS).status == 0
    whole = interrupt(run, at=8)

    refused = door("train", "resume=run", other)
    assert refused.status == 64
    assert "E-RES-01" in refused.errors
    assert f"give resume_mode=fast {other}" in refused.errors

    done = door("train", "resume=run", "resume_mode=fast", other)
    assert done.status == 0, done.errors
    changed = "hardware.micro_batch_size: the checkpoint has 16, this run 3"
    assert f"resume_mode=fast  {changed}" in done.output
    assert "resuming from step 8" in done.output
    report = json.loads((run / "report.json").read_text())
    assert report["fast_resumes"] == [{"step": 8, "changed": [changed]}]
    assert report["train"]["global_step"] == STEPS
    assert report["train"]["final_loss"] == pytest.approx(whole, rel=1e-3)
    kept = OmegaConf.load(run / "config.yaml")
    assert (kept.hardware.micro_batch_size, kept.resume_mode, kept.resume) == (3, "exact", None)

    interrupt(run, at=STEPS)  # from a checkpoint of the new settings, exactly
    assert door("train", "resume=run").status == 0
    assert json.loads((run / "report.json").read_text())["fast_resumes"] == report["fast_resumes"]

    interrupt(run, at=8)  # from one of the old settings
    refused = door("train", "resume=run")
    assert refused.status == 64
    assert changed in refused.errors
    assert "resume_mode=fast goes on with the same rows" in refused.errors


def test_other_weights_under_the_same_name(door: Door, tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    shutil.copytree(ASSETS / "nexus_tiny", tmp_path / "base", ignore=shutil.ignore_patterns(MANIFEST_NAME))
    assert door("train", *WORDS, "base_model=custom", "base_model.path=base", "method.max_steps=8").status == 0
    interrupt(tmp_path / "run", at=4)
    weights = tmp_path / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for mode in ("exact", "fast"):
        refused = door("train", "resume=run", f"resume_mode={mode}")
        assert refused.status == 64
        assert "base_model.weights: the checkpoint has" in refused.errors
        assert "start a new run" in refused.errors
