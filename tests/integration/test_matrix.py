"""Every method on every text capability that it can train: from the command line to a package, at `scale=quick`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nexus.callbacks.metrics_csv import read_metrics
from tests.conftest import REPOSITORY, Finished
from tests.integration.conftest import ASSET

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CAPABILITIES = ("cot", "reasoning", "thinking", "tools")
ADAPTERS = ("lora", "qlora", "dora")
IMITATION = ("sft", "cpt", *ADAPTERS)
PREFERENCE = ("dpo", "orpo", "simpo", "kto", "reward_model")
REWARDS = ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "ppo")
#: Learn to refuse, from pairs of their own; a capability is only scored beside them.
OWN_DATA = ("safety", "anti_refusal")


def test_the_matrix_is_whole() -> None:
    """A method or capability that is added has to appear here."""
    methods = {path.stem for path in (REPOSITORY / "conf" / "method").glob("*.yaml")}
    assert methods == {*IMITATION, *PREFERENCE, *REWARDS, *OWN_DATA}
    ready = {
        path.stem
        for path in (REPOSITORY / "conf" / "capability").glob("*.yaml")
        if "status: ready" in path.read_text() and "requires: [text]" in path.read_text()
    }
    assert ready == {*CAPABILITIES, "streaming"}  # streaming trains nothing


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("method", [*IMITATION, *PREFERENCE, *REWARDS])
def test_a_quick_run(door: Callable[..., Finished], tmp_path: Path, method: str, capability: str) -> None:
    words = [f"method={method}", f"+capability={capability}", "scale=quick", "run_dir=run"]
    done = door("train", *words)
    assert done.status == 0, done.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    train = report["train"]
    adapter = method if method in ADAPTERS else "none"
    assert (report["status"], train["method"], train["adapter"]) == ("finished", method, adapter)
    assert 1 <= train["global_step"] <= 10
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["step"] == train["global_step"]
    assert all(math.isfinite(row["train/loss"]) and math.isfinite(row["train/grad_norm"]) for row in rows)
    expected = set() if method == "reward_model" else {capability}  # a judge answers nothing
    expected |= {"preference"} if method in PREFERENCE else set()
    for when in ("before", "after"):
        assert set(report["scores"][when]) == expected
        assert all(score["n"] > 0 for scores in report["scores"][when].values() for score in scores.values())
    assert ("rollouts" in report) == (method in REWARDS)
    before, after = (
        load_file(ASSET / "model.safetensors"),
        load_file(tmp_path / "run" / "package" / "model.safetensors"),
    )
    shared = before.keys() & after.keys()
    assert len(shared) > 40
    assert any(not before[name].equal(after[name]) for name in shared), "nothing was learned"
    assert all(after[name].isfinite().all() for name in after)
