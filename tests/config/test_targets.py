"""`_target_`: only listed classes, at any depth, before and after interpolation; settings known without import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from nexus.config.build import instantiate_node
from nexus.config.check import check
from nexus.config.targets import node_problems, refused_targets, signature_of
from nexus.errors import ConfigError, NexusError
from tests.config.external_signatures import TABLE, read_signatures


def test_table_equals_the_installed_libraries() -> None:
    real = read_signatures()
    assert len(real) >= 60
    assert json.loads(TABLE.read_text()) == real, "run python -m tests.config.external_signatures"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "pickle.loads",
        "torch.load",
        "torch.optim.os.system",
        "torch.optim.lr_scheduler.types.FunctionType",
        "lightning.pytorch.callbacks.timer.re.compile",
        "nexus.config.build.instantiate_node",  # a function
        "nexus.storage.run_folder.Path",  # only imported there
        "nexus.storage.run_folder.shutil.rmtree",
        "nexus.methods.sft._Private",
        "nexus.methods.nothing.SFT",
        "nexus..methods.sft.SFT",
        "nexus.methods/sft.SFT",
        "hydra.utils.get_method",
        "",
        7,
        None,
    ],
)
def test_refused(target: Any) -> None:
    problems = refused_targets({"callbacks": {"x": [{"deep": {"_target_": target}}]}})
    assert [(p.code, p.key) for p in problems] == [("E-SEC-06", "callbacks.x.0.deep._target_")]
    with pytest.raises(ConfigError) as error:
        instantiate_node({"_target_": "nexus.callbacks.metrics_csv.MetricsCsv", "path": {"_target_": target}})
    assert error.value.status == 77


@pytest.mark.parametrize(
    "target", ["torch.optim.AdamW", "nexus.methods.sft.SFT", "lightning.pytorch.loggers.CSVLogger"]
)
def test_allowed(target: str) -> None:
    assert refused_targets({"a": {"_target_": target}}) == []


def test_interpolated_and_nested_targets_are_found(cfg: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "os.system")
    for words in (
        ["+callbacks.x={_target_: os.system}"],
        ["method.optimizer._target_=${oc.env:EVIL}"],
        ["base_model.name=os.system", "method.module._target_=${base_model.name}"],
        ["+method.module.loss={inner: {_target_: os.system}}"],
        ["+logger.x=${callbacks.y}", "+callbacks.y={_target_: os.system}"],
        ["base_model.architecture={nested: [{_target_: os.system}]}"],
    ):
        found = check(cfg("+capability=tools", *words), root="train")
        assert "E-SEC-06" in [problem.code for problem in found], words
        assert found[0].code == "E-SEC-06", "safety comes first"


def test_signatures_of_our_classes_are_read_from_their_source() -> None:
    signature = signature_of("nexus.methods.sft.SFT")
    assert signature is not None
    assert {"chunk_size", "base_model", "optimizer", "schedule", "total_steps"} <= set(signature.names)
    assert not signature.takes_any, "**common ends at the base class of ours"
    adamw = signature_of("torch.optim.AdamW")
    assert adamw is not None
    assert adamw.required == ("params",)


def test_reading_signatures_imports_no_heavy_library() -> None:
    code = (
        "import sys; from nexus.config.targets import signature_of;"
        "import nexus.config.check, nexus.config.compose, nexus.config.build;"
        "import nexus.stages.preflight, nexus.capabilities;"
        "assert signature_of('nexus.methods.sft.SFT') and signature_of('torch.optim.SGD');"
        "heavy = {'torch', 'transformers', 'lightning', 'hydra'} & set(sys.modules); assert not heavy, heavy"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_unknown_missing_and_mistyped_settings_of_nodes() -> None:
    csv = "lightning.pytorch.loggers.CSVLogger"
    tree = {
        "logger": {"a": {"_target_": csv}, "b": {"_target_": csv, "save_dir": "x", "nme": "y"}},
        "callbacks": {"m": {"_target_": "nexus.callbacks.metrics_csv.MetricsCsv", "every_n_steps": "often"}},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": -1.0, "betas": [0.9, 1.5]},
        "positional": {"_target_": "torch.optim.SGD", "_partial_": True, "_args_": [1]},
    }
    found = {(p.code, p.key) for p in node_problems(tree, completed_by_run=("callbacks.",))}
    assert found == {
        ("E-CFG-07", "logger.a.save_dir"),
        ("E-CFG-01", "logger.b.nme"),
        ("E-CFG-02", "callbacks.m.every_n_steps"),
        ("E-CFG-02", "optimizer.lr"),
        ("E-CFG-02", "optimizer.betas.1"),
        ("E-CFG-01", "positional._args_"),
    }


def test_instantiate_gives_plain_containers_and_leaves_the_runs_arguments_alone() -> None:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2))
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}
    optimizer = instantiate_node(node)([parameter])
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["params"][0] is parameter
    given = {"text": "${not.resolved}", "tensor": parameter}
    store = instantiate_node({"_target_": "nexus.types.Example", "id": "a", "source": "b"}, gold=given)
    assert store.gold is given


def test_a_value_that_the_constructor_refuses_is_a_users_mistake(tmp_path: Any) -> None:
    node = {"_target_": "nexus.callbacks.metrics_csv.MetricsCsv", "every_n_steps": 0}
    with pytest.raises(NexusError, match="at least 1") as error:
        instantiate_node(node, path=str(tmp_path / "metrics.csv"))
    assert error.value.code == "E-CFG-02"
    with pytest.raises(TypeError):  # a missing argument is a bug of the caller
        instantiate_node(node)
