"""Stopped and resumed equals left alone, to the bit, with everything that draws random numbers switched on.

Adapters have dropout, embeddings have NEFTune's noise, some steps have two micro-batches, and the process that goes on
begins with another state of every generator. The stop lies in the first epoch, at its border and in the second.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.callbacks.checkpoint import newest_whole
from nexus.config.check import resume_identity
from nexus.errors import NexusError
from nexus.models.saved_state import insist_on_identity
from tests import runs, small

STEPS = 6
STOPS = (2, 3, 5)  # the later ones are slow tests


def train(name: str, folder: Path, *, steps: int, ambient: int, resume: Path | None = None) -> Any:
    return runs.train(name, folder, steps=STEPS, until=steps, ambient=ambient, resume=resume)


@functools.cache
def uninterrupted(name: str, folder: Path) -> Any:
    return train(name, folder / name, steps=STEPS, ambient=1)


@pytest.mark.parametrize("stop", [STOPS[0], *(pytest.param(stop, marks=pytest.mark.slow) for stop in STOPS[1:])])
@pytest.mark.parametrize("name", [*runs.SFT_LIKE, *runs.PREFERENCE, *runs.ROLLOUTS])
def test_resumed_equals_uninterrupted(
    name: str, stop: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = uninterrupted(name, tmp_path_factory.getbasetemp())
    train(name, tmp_path, steps=stop, ambient=2)
    found = newest_whole(tmp_path / "checkpoints", tell=print)
    assert found is not None
    assert found[0] == stop
    parts = train(name, tmp_path, steps=STEPS, ambient=3, resume=found[1])
    assert parts.tokens_seen == whole.tokens_seen
    names = [key for key, p in parts.named_parameters() if p.requires_grad]
    assert len(names) >= 24
    for (key, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


def test_what_is_drawn_matters(tmp_path: Path) -> None:
    """The equality above would be empty if nothing were drawn: another seed of the drawing alone counts."""
    whole = train("lora", tmp_path / "a", steps=2, ambient=1)
    method, data = runs.build("lora", steps=STEPS)
    method.seed += 1  # the weights are made already
    small.make_trainer(tmp_path / "b", max_steps=2).fit(method, datamodule=data)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), method.parameters(), strict=True))


def test_other_settings_and_rows_are_listed_and_refused(tmp_path: Path) -> None:
    config = {
        "seed": 1, "method": {"lr": 1e-3, "betas": [0.9, 0.95]}, "paths": {"output_dir": "a"},
        "callbacks": {"checkpoint": {"keep": 2}}, "data": {"train": ["x"], "max_seq_len": 64, "num_proc": 1},
    }  # fmt: skip
    saved = resume_identity(config) | {"data_sha256": "11"}
    assert sorted(saved) == ["data.max_seq_len", "data_sha256", "method.betas", "method.lr", "seed"]
    insist_on_identity(saved, dict(saved), tmp_path)
    other = resume_identity(config | {"seed": 2, "method": {"lr": 2e-3, "betas": [0.9, 0.95], "new": None}})
    with pytest.raises(NexusError) as caught:
        insist_on_identity(saved, other | {"data_sha256": "22"}, tmp_path)
    assert caught.value.code == "E-RES-01"
    assert [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]] == [
        "data_sha256", "method.lr", "method.new", "seed",
    ]  # fmt: skip
