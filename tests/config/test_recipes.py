"""The recipes for a 16 GB card: one for each method, each fits, and the figures in its header are those of the plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from nexus.config.check import check, to_plain
from nexus.config.folders import conf_dir, groups
from nexus.hardware.memory_plan import GIB
from nexus.models.published import model_tensors, published_facts
from nexus.stages import planning
from nexus.stages.dry_run import card_rows, phase_steps, training_cost
from nexus.stages.row_lengths import longest_rows

RECIPES = sorted(name for name in groups()["experiment"] if name.endswith("_rtx5080"))


def test_every_method_has_one() -> None:
    assert {f"{method}_rtx5080" for method in groups()["method"]} == set(RECIPES)
    assert len(RECIPES) >= 18


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_card_as_its_header_says(cfg: Callable[..., Any], name: str) -> None:
    composed = cfg(f"experiment={name}")
    assert check(composed, root="train") == []
    config = to_plain(composed)
    assert f"{config['method']['name']}_rtx5080" == name
    assert config["hardware"]["name"] == "rtx5080_16gb"
    path = config["base_model"]["path"]
    facts, tensors = published_facts(path), model_tensors(path)
    counts = planning.count_parameters(facts, config["adapter"], tensors)
    lengths = longest_rows(config)
    plan = planning.memory_plan_of(config, facts, counts, lengths)
    limit = planning.memory_limit(config)
    assert limit is not None
    assert plan.total_bytes <= limit
    header = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    assert f"python -m nexus.train experiment={name} " in header
    stated = re.search(r"# Plan: +([\d.]+) of (\d+) GiB", header)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(plan.total_bytes / GIB, abs=0.051)
    assert float(stated[2]) == limit / GIB
    twice = lengths.longest == 2 * config["data"]["max_seq_len"]
    assert ("rows of twice data.max_seq_len" in header) == (twice and config["method"]["view"] != "prompts")
    if "is the peak" in header:
        assert plan.peak.name != "train"
    disk = re.search(r"; ([\d.]+) GiB of disk", header)
    if disk is not None:
        needed = planning.disk_plan_of(config, facts, counts, plan, 1000).total_bytes
        assert float(disk[1]) == pytest.approx(needed / GIB, abs=0.051)
    cost = re.search(r"# Cost: +at most ([\d.]+) (minutes|hours) of training", header)
    rows = card_rows(config)
    steps = phase_steps(config, rows)
    if steps is not None:
        assert cost is not None
        minutes = training_cost(config, facts, counts, lengths, rows=rows, steps=steps)[2] / 60
        assert 0.8 < minutes / (float(cost[1]) * (60 if cost[2] == "hours" else 1)) <= 1


@pytest.mark.parametrize("name", ["safety", "anti_refusal"])
def test_rows_that_are_only_scored_are_not_counted_as_trained(cfg: Callable[..., Any], name: str) -> None:
    alone, beside = (to_plain(cfg(f"method={name}", *words)) for words in ((), ("+capability=tools",)))
    assert card_rows(beside) == card_rows(alone) == 4000
    assert card_rows(to_plain(cfg("+capability=tools"))) == 4400
