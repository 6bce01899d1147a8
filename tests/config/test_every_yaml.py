"""Every file of `conf` composes, passes the check, and says what it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from nexus.config.capabilities import read_capabilities
from nexus.config.check import check, config_sha256, to_plain
from nexus.config.folders import conf_dir, groups
from nexus.evaluation.streaming import STREAMING_METRICS
from nexus.evaluation.suites import SUITES

ROOTS = {
    "train": ["+capability=tools"],
    "preview": ["+capability=tools"],
    "evaluate": ["+capability=tools"],
    "generate": [],
}
#: Groups whose options need something beside them, or are covered by tests of their own.
SPECIAL = {"base_model": {"custom": ["base_model.path=asset:nexus_tiny"]}}
CAPABILITIES = 13
LISTS = 2


def options_of_train() -> list[tuple[str, str]]:
    """Every option that `train` chooses with `=`."""
    return [
        (group, option)
        for group, options in groups().items()
        if group not in ("capability", "dataset", "experiment", "mode", "reward")
        for option in options
    ]


def test_walk_finds_the_files() -> None:
    assert len(list(conf_dir().rglob("*.yaml"))) >= 46
    assert len(options_of_train()) >= 25
    assert {"base_model", "adapter", "method", "data", "hardware", "scale", "strategy", "paths"} <= set(groups())


@pytest.mark.parametrize("root", ROOTS)
def test_roots(cfg: Callable[..., Any], root: str) -> None:
    assert check(cfg(*ROOTS[root], root=root), root=root) == []


@pytest.mark.parametrize(("group", "option"), options_of_train())
def test_options(cfg: Callable[..., Any], group: str, option: str) -> None:
    further = SPECIAL[group].get(option, []) if group in SPECIAL else []
    composed = cfg("+capability=tools", f"{group}={option}", *further)
    assert check(composed, root="train") == []


@pytest.mark.parametrize("name", sorted(groups()["experiment"]))
def test_experiments(cfg: Callable[..., Any], name: str) -> None:
    assert check(cfg(f"experiment={name}"), root="train") == []


def test_capabilities_are_thirteen() -> None:
    capabilities, lists = read_capabilities()
    assert len(capabilities) == CAPABILITIES
    assert len(lists) == LISTS
    ready = sorted(name for name, info in capabilities.items() if info.status == "ready")
    assert ready == ["cot", "reasoning", "streaming", "thinking", "tools"]
    assert set(lists["all_text"].members) == set(ready), "every text capability is there"
    for several in lists.values():
        assert set(several.members) <= set(capabilities)


@pytest.mark.parametrize("name", sorted(read_capabilities()[0]))
def test_capability_files(cfg: Callable[..., Any], name: str) -> None:
    info = read_capabilities()[0][name]
    composed = cfg(f"+capability={name}", root="evaluate")
    assert list(composed.capabilities) == [name], "a capability writes under its own name only"
    codes = {problem.code for problem in check(composed, root="evaluate")}
    needs_more = set(info.requires) - {"text"}
    assert codes == ({"E-CAP-01"} if info.status == "planned" else set()) | ({"E-CAP-03"} if needs_more else set())


def test_lists_are_refused_by_the_names_of_their_planned_members(cfg: Callable[..., Any]) -> None:
    capabilities, lists = read_capabilities()
    members = lists["full_omni"].members
    planned = {f"capabilities.{member}" for member in members if capabilities[member].status == "planned"}
    found = {problem.key for problem in check(cfg("+capability=full_omni"), root="train") if problem.code == "E-CAP-01"}
    assert planned
    assert found == planned


@pytest.mark.parametrize("root", ["train", "evaluate"])
def test_all_text_can_be_used(cfg: Callable[..., Any], root: str) -> None:
    composed = cfg("+capability=all_text", root=root)
    assert check(composed, root=root) == []
    spelled = cfg("+capability=[tools,streaming,thinking,reasoning,cot]", root=root)
    assert config_sha256(to_plain(composed)) == config_sha256(to_plain(spelled))


def test_primary_metrics_are_those_of_their_suites(cfg: Callable[..., Any]) -> None:
    suites = {name: suite.metrics for name, suite in SUITES.items() if name not in ("refusal", "tool_results")} | {
        "streaming": STREAMING_METRICS
    }
    assert cfg("experiment=tool_results").capabilities.tools.primary_metric == SUITES["tool_results"].metrics[0]
    capabilities = cfg("+capability=all_text").capabilities
    assert len(capabilities) == len(suites)
    assert {c.metrics: c.primary_metric for c in capabilities.values()} == {n: m[0] for n, m in suites.items()}


def test_capabilities_touch_nothing_else(cfg: Callable[..., Any]) -> None:
    composed = OmegaConf.to_container(cfg(f"+capability=[{','.join(sorted(read_capabilities()[0]))}]"))
    assert isinstance(composed, dict)
    assert len(composed["capabilities"]) == CAPABILITIES
    assert composed | {"capabilities": {}} == OmegaConf.to_container(cfg())


def test_capabilities_commute(cfg: Callable[..., Any]) -> None:
    names = sorted(read_capabilities()[0])  # the reverse of a list changes the order of every pair in it
    for chosen in (["cot", "tools"], names):
        one, other = (to_plain(cfg(f"+capability=[{','.join(order)}]")) for order in (chosen, chosen[::-1]))
        assert sorted(one["capabilities"]) == chosen
        assert one == other
        assert config_sha256(one) == config_sha256(other)


def test_every_file_says_what_it_owns_and_gives_an_example() -> None:
    files = [path for path in sorted(conf_dir().rglob("*.yaml"))]
    assert len(files) >= 46
    for path in files:
        header = [line for line in path.read_text().splitlines()[:8] if line.startswith("#") and "@package" not in line]
        assert header, f"{path.name} has no header"
        assert any("python -m nexus." in line for line in header), f"{path} gives no example"


def test_scale_means_what_the_design_promises(cfg: Callable[..., Any]) -> None:
    rows = {name: cfg(f"scale={name}").scale for name in groups()["scale"]}
    assert (rows["quick"].max_steps, rows["quick"].rows_per_source, rows["quick"].eval_prompts) == (10, 16, 16)
    assert rows["debug"].rows_per_source == 50
    assert rows["standard"].rows_per_source == 500
    assert rows["production"].rows_per_source == 5000
    assert rows["full"].rows_per_source is None
    for name in ("standard", "production"):
        assert rows[name].eval_prompts >= 200
    for name in ("nexus_tools", "nexus_cot", "nexus_reasoning", "nexus_thinking"):
        assert OmegaConf.merge(OmegaConf.load(conf_dir() / "dataset" / f"{name}.yaml")).eval_rows >= 200


def test_learning_rate_follows_the_adapter(cfg: Callable[..., Any]) -> None:
    recommended = cfg().base_model.lr
    assert cfg().method.lr == recommended.full
    assert cfg("adapter=lora").method.lr == recommended.adapter
    assert cfg("method=lora").method.lr == recommended.adapter
    assert recommended.full != recommended.adapter
    assert cfg("method.lr=0.5", "adapter=lora").method.lr == 0.5


def test_alias_is_sft_with_its_adapter(cfg: Callable[..., Any]) -> None:
    alias, spelled = to_plain(cfg("method=lora")), to_plain(cfg("method=sft", "adapter=lora"))
    assert alias["adapter"] == spelled["adapter"]
    different = {key for key in spelled["method"] if alias["method"][key] != spelled["method"][key]}
    assert different == {"name", "adapter"}


def test_roots_on_disk_come_from_the_environment(cfg: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "OUTPUT", "CHECKPOINT", "CACHE"):
        monkeypatch.setenv(f"NEXUS_{name}_DIR", f"my_{name.lower()}")
    paths = to_plain(cfg())["paths"]
    assert paths == {
        "data_dir": "my_data",
        "output_dir": "my_output",
        "checkpoint_dir": "my_checkpoint",
        "metrics_dir": "my_output",
        "cache_dir": "my_cache",
    }
    monkeypatch.delenv("NEXUS_CACHE_DIR")
    assert to_plain(cfg())["paths"]["cache_dir"] == "my_output/.cache"
