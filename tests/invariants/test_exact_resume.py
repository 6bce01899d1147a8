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
