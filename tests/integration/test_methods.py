"""Every method on every embedded capability runs from the command line to a package that answers as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexus.models.facts import read_facts
from tests.integration.conftest import ASSET, run_in

pytestmark = pytest.mark.integration

METHODS = ("sft", "cpt", "lora", "qlora", "dora")
CAPABILITIES = ("tools", "cot")
#: Run of the plain test suite, whose package is merged out of 4 bits; all others run with -F.
QUICK = (("qlora", "tools"),)
GRID = [
    pytest.param(method, capability, marks=() if (method, capability) in QUICK else pytest.mark.slow)
    for method in METHODS
    for capability in CAPABILITIES
]


def finished_run(home: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Report and printed text of a run that must succeed."""
    done = run_in(home, "train", *words, "scale=quick", "run_dir=run")
    assert done.status == 0, done.errors
    assert "Traceback" not in done.errors
    report: dict[str, Any] = json.loads((home / "run" / "report.json").read_text())
    assert report["status"] == "finished"
    return report, done.output


@pytest.mark.parametrize(("method", "capability"), GRID)
def test_a_quick_run(tmp_path: Path, method: str, capability: str) -> None:
    report, printed = finished_run(tmp_path, f"+capability={capability}", f"method={method}")
    train, adapter = report["train"], method if method in ("lora", "qlora", "dora") else "none"
    assert (train["method"], train["adapter"]) == (method, adapter)
    assert 1 <= train["global_step"] <= 10
    assert set(report["scores"]["after"]) == {capability}
    package = tmp_path / "run" / report["package"]["path"]
    assert (package / "adapter").is_dir() == (adapter != "none")
    drift = report["package"]["max_logit_difference"]
    assert 0 <= drift < 1e-3
    assert f"its logits are within {drift:.2g} of the trained model's" in printed
    assert json.loads((package / "manifest.json").read_text())["max_logit_difference"] == drift
    card = (package / "README.md").read_text()
    assert f"the largest difference of a logit is {drift:.2g}." in card
    assert ("frozen in 4 bits (nf4 with double quantization)" in card) == (method == "qlora")
    base = read_facts(ASSET).num_parameters  # 4-bit weights count as the matrices that they stand for
    assert train["parameters"] == base + (0 if adapter == "none" else train["trainable_parameters"])


@pytest.mark.slow
def test_options_of_an_adapter_together(tmp_path: Path) -> None:
    words = (
        "adapter.init=pissa", "adapter.loraplus_ratio=16", "adapter.dropout=0.1", "adapter.use_rslora=true",
        "optimizer=adamw_8bit", "method.neftune_alpha=5", "hardware.gradient_checkpointing=offload",
        "base_model.rope.type=yarn", "base_model.rope.factor=2", "data.max_seq_len=4096",
    )  # fmt: skip
    report, _ = finished_run(tmp_path, "+capability=tools", "method=lora", *words)
    package = tmp_path / "run" / report["package"]["path"]
    settings = json.loads((package / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["init_lora_weights"]) == (32, True)  # converted: it fits the base as it is
    config = json.loads((package / "config.json").read_text())
    assert config["max_position_embeddings"] == 4096
    assert config["rope_parameters"]["rope_type"] == "yarn"
    # the package is a base model like any other, at its new length
    done = run_in(tmp_path, "evaluate", "+capability=tools", "scale=quick", f"package={package}")
    assert done.status == 0, done.errors


@pytest.mark.slow
def test_loftq_on_pages_is_refused_and_without_them_it_runs(tmp_path: Path) -> None:
    words = ("+capability=cot", "method=qlora", "adapter.init=loftq", "scale=quick", "hardware.accelerator=cpu")
    done = run_in(tmp_path, "train", *words, "optimizer=paged_adamw_8bit")
    assert done.status == 69
    assert "E-DEV-05" in done.errors
    finished_run(tmp_path, *words[:3], "optimizer=adamw_8bit")
