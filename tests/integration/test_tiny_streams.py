"""The rows that `make tiny` trains on are still the very tokens that the shipped model's card names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from nexus.stages.prepare import prepare
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["nexus_tiny", "nexus_tiny_more", "nexus_tiny_pieces"])
def test_the_stream_of_a_stage(cfg: Callable[..., Any], tmp_path: Any, monkeypatch: Any, stage: str) -> None:
    monkeypatch.setenv("NEXUS_OUTPUT_DIR", str(tmp_path))
    config: Any = OmegaConf.to_container(cfg(f"experiment=pretrain_{stage}"), resolve=True)
    corpus = prepare(config).corpus
    corpus.setup("fit")
    assert corpus.data_sha256 in (REPOSITORY / "nexus/assets/nexus_tiny/README.md").read_text(encoding="utf-8")
