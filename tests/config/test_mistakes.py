"""The commonest mistakes: one coded error each, a remedy, the right exit status, nothing written, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.conftest import Outcome

TOOLS = "+capability=tools"
BEST = ("callbacks.validation.enabled=true", "callbacks.validation.restore_best=true")
Door = Callable[..., Outcome]

#: Command line, code, exit status, words that the message must hold.
MISTAKES: list[tuple[list[str], str, int, list[str]]] = [
    # how groups are chosen
    (["capability=tools"], "E-CFG-06", 64, ["+capability=tools"]),
    (["++capability=tools"], "E-CFG-06", 64, ["+capability=tools"]),
    (["+capability=tols"], "E-CFG-01", 64, ["did you mean tools?"]),
    (["+capabilities=tools"], "E-CFG-06", 64, ["+capability=tools"]),
    (["capability.tools=1"], "E-CFG-06", 64, ["capability"]),
    ([TOOLS, "+method=sft"], "E-CFG-06", 64, ["method=sft"]),
    ([TOOLS, "base_model=nope"], "E-CFG-01", 64, ["base_model=nope", "nexus_tiny", "custom"]),
    ([TOOLS, "scale=quik"], "E-CFG-01", 64, ["did you mean quick?"]),
    ([TOOLS, "encoder=siglip2"], "E-CFG-06", 64, ["encoders=siglip2"]),
    ([TOOLS, "method=[sft,cpt]"], "E-CFG-06", 64, ["-m method=sft,cpt"]),
    ([TOOLS, "method=sft,cpt"], "E-CFG-05", 64, ["add -m"]),
    ([TOOLS, "~method"], "E-CFG-06", 64, ["cpt"]),
    (["+dataset=nexus_tools"], "E-CFG-06", 64, ["+dataset@data.sources.mine=nexus_tools"]),
    (["+capability=[tools,tools]"], "E-CFG-06", 64, ["twice"]),
    # keys
    ([TOOLS, "method.lrr=3"], "E-CFG-01", 64, ["did you mean method.lr?"]),
    ([TOOLS, "+method.lrr=3"], "E-CFG-01", 64, ["did you mean method.lr?"]),
    ([TOOLS, "++method.lrr=3"], "E-CFG-01", 64, ["did you mean method.lr?"]),
    ([TOOLS, "+data.sources.x={name: a}"], "E-CFG-07", 64, ["data.sources.x.kind"]),
    ([TOOLS, "lr=1"], "E-CFG-01", 64, ["method.lr"]),
    ([TOOLS, "callbacks.smples=null"], "E-CFG-01", 64, ["callbacks.samples"]),
    ([TOOLS, "+callbacks.smples.count=1"], "E-CFG-02", 64, ["_target_"]),
    ([TOOLS, "method.optimizer.weight_decy=1"], "E-CFG-01", 64, ["weight_decay"]),
    ([TOOLS, "+method.module.chunks=1"], "E-CFG-01", 64, ["chunk_size"]),
    ([TOOLS, "+callbacks.checkpoint.kep=1"], "E-CFG-01", 64, ["keep"]),
    ([TOOLS, "adapter.r=8"], "E-CFG-01", 64, ["adapter=lora"]),
    ([TOOLS, "+seed=1"], "E-CFG-06", 64, ["without +"]),
    ([TOOLS, "~seed"], "E-CFG-07", 64, ["seed"]),
    # spelling of overrides
    ([TOOLS, "method"], "E-CFG-05", 64, ["method=VALUE"]),
    (["tools"], "E-CFG-05", 64, ["+capability=tools"]),
    (["--capability", "tools"], "E-CFG-05", 64, ["capability=VALUE"]),
    ([TOOLS, "data.train=[a,b"], "E-CFG-05", 64, ["data.train=[a,b]"]),
    ([TOOLS, "hydra.sweep.dir=elsewhere"], "E-CFG-05", 64, ["hydra.sweep.dir", "paths.output_dir=DIR"]),
    ([TOOLS, "hydra.run.dir=elsewhere"], "E-CFG-05", 64, ["hydra.run.dir", "run_dir=DIR"]),
    # values
    ([TOOLS, "method.lr=abc"], "E-CFG-02", 64, ["method.lr", "a number above 0"]),
    ([TOOLS, "method.lr=0"], "E-CFG-02", 64, ["out of range"]),
    ([TOOLS, "method.epochs=-1"], "E-CFG-02", 64, ["method.epochs"]),
    ([TOOLS, "method.max_steps=0"], "E-CFG-02", 64, ["method.max_steps"]),
    ([TOOLS, "data.global_batch_size=0"], "E-CFG-02", 64, ["data.global_batch_size"]),
    ([TOOLS, "data.long_rows=dropp"], "E-CFG-02", 64, ["did you mean drop?"]),
    ([TOOLS, "adapter=lora", "adapter.r=0"], "E-CFG-02", 64, ["adapter.r"]),
    ([TOOLS, "callbacks.checkpoint.every_n_steps=0"], "E-CFG-02", 64, ["every_n_steps"]),
    ([TOOLS, "dry_run=maybe"], "E-CFG-02", 64, ["true or false"]),
    ([TOOLS, "base_model.path=${nope.x}"], "E-CFG-10", 64, ["nope.x"]),
    # what contradicts what
    ([], "E-CFG-09", 64, ["+capability=NAME", "data.train=FILE"]),
    ([TOOLS, "method=lora", "adapter=none"], "E-CFG-03", 64, ["adapter=lora", "adapter=none"]),
    ([TOOLS, "method.max_steps=50", "scale=quick"], "E-CFG-03", 64, ["scale=quick"]),
    ([TOOLS, "method.epochs=null"], "E-CFG-03", 64, ["method.max_steps"]),
    ([TOOLS, "base_model.path=null"], "E-CFG-03", 64, ["architecture"]),
    (["data.validation=a.jsonl", TOOLS], "E-CFG-03", 64, ["data.train"]),
    (["resume=old", TOOLS], "E-RES-01", 64, [TOOLS]),
    (["resume=old", "hardware.threads=1"], "E-RES-01", 64, ["resume_mode=fast hardware.threads=1"]),
    (["resume=old", "resume_mode=fast", "method.lr=1"], "E-RES-01", 64, ["method.lr=1 was given"]),
    (["resume=old", "resume_mode=fast", "hardware=cpu"], "E-RES-01", 64, ["hardware=cpu was given"]),
    (["resume=old", "resume_mode=fast", "hardware.cooldown=true"], "E-RES-01", 64, ["start a new run"]),
    (["resume_mode=fast", TOOLS], "E-CFG-03", 64, ["resume=RUN"]),
    (["resume_mode=quick", TOOLS], "E-CFG-02", 64, ["exact"]),
    ([TOOLS, "method=grpo", "callbacks.validation.enabled=true"], "E-CFG-03", 64, ["answers are sampled"]),
    ([TOOLS, "method=dpo", "callbacks.validation.enabled=true"], "E-CFG-03", 64, ["pairs of answers"]),
    ([TOOLS, "callbacks.validation.restore_best=true"], "E-CFG-03", 64, ["callbacks.validation.enabled=true"]),
    ([TOOLS, *BEST, "callbacks.checkpoint=null"], "E-CFG-03", 64, ["callbacks.checkpoint"]),
    ([TOOLS, *BEST, "base_model.rope.type=dynamic", "base_model.rope.factor=2"], "E-CFG-03", 64, ["rope.type=yarn"]),
    ([TOOLS, "callbacks.power_budget.resume_watts=250"], "E-THM-02", 64, ["power_budget.watts"]),
    ([TOOLS, "callbacks.validation.max_rows=0"], "E-CFG-02", 64, ["max_rows"]),
    # capabilities that cannot be had
    (["+capability=omni"], "E-CAP-01", 64, ["planned", "cot, reasoning, thinking, tools"]),
    (["+capability=vision_qa"], "E-CAP-01", 64, ["planned", "needs image"]),
    (["+capability=streaming"], "E-CAP-02", 64, ["nothing to train"]),
    ([TOOLS, "capabilities.tools.requires=[text,image]"], "E-CAP-03", 64, ["image"]),
    # what is not there
    ([TOOLS, "base_model=custom"], "E-CFG-07", 64, ["base_model.path=VALUE"]),
    ([TOOLS, "base_model=custom", "base_model.path=./nowhere"], "E-MIS-01", 66, ["no such folder"]),
    ([TOOLS, "base_model.path=asset:nexus_tinny"], "E-MIS-01", 66, ["asset:nexus_tiny"]),
    (["data.train=nothing.jsonl"], "E-MIS-02", 66, ["no such file"]),
    (["resume=nowhere"], "E-MIS-03", 66, ["no such run folder"]),
    # safety
    ([TOOLS, "+callbacks.x={_target_: os.system}"], "E-SEC-06", 77, ["os.system"]),
    ([TOOLS, "base_model.trust_remote_code=true"], "E-SEC-02", 77, ["revision"]),
    ([TOOLS, "base_model.chat_template=hf_abcdefghijklmnopqrstuvwx"], "E-SEC-07", 77, ["environment"]),
    # output
    ([TOOLS, "run_dir=/proc/nexus_run"], "E-OUT-01", 73, ["run_dir"]),
]


@pytest.mark.parametrize(
    ("words", "code", "status", "hints"), MISTAKES, ids=[" ".join(m[0]) or "nothing" for m in MISTAKES]
)
def test_one_coded_error(door: Door, words: list[str], code: str, status: int, hints: list[str]) -> None:
    outcome = door(*words)
    assert outcome.jobs == []
    assert outcome.status == status, outcome.errors
    assert code in outcome.errors
    assert "Traceback" not in outcome.errors
    assert outcome.output == ""
    for hint in hints:
        assert hint in outcome.errors


def test_there_are_enough_of_them() -> None:
    assert len(MISTAKES) >= 50


def test_all_problems_at_once(door: Door) -> None:
    outcome = door("method.lr=-1", "method.epochs=0", "seed=x", "scale=quik", TOOLS, "+data.max_len=3", "tools")
    for key in ("method.lr:", "method.epochs:", "seed:", "scale:", "data.max_len:", "tools:"):
        assert key in outcome.errors
    assert outcome.errors.startswith("6 problems")


def test_a_reference_to_a_bad_value_is_not_a_second_problem(door: Door) -> None:
    errors = door(TOOLS, "method.lr=abc").errors
    assert errors.count("E-CFG-02") == 1
    assert "method.optimizer.lr" not in errors


def test_rules_and_types_come_together(door: Door) -> None:
    errors = door(TOOLS, "method=lora", "adapter=none", "seed=-1").errors
    assert "E-CFG-03" in errors
    assert "E-CFG-02" in errors


def test_near_file_is_named(door: Door, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")
    assert "did you mean chats.jsonl?" in door("data.train=chat.jsonl").errors


def test_own_rows_and_a_capability_are_refused(door: Door, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")
    outcome = door("data.train=chats.jsonl", TOOLS)
    assert (outcome.status, "E-CFG-03" in outcome.errors) == (64, True)


def test_run_instead_of_its_package(door: Door, tmp_path: Path) -> None:
    (tmp_path / "run" / "package").mkdir(parents=True)
    (tmp_path / "run" / "package" / "config.json").write_text("{}")
    assert "its package is" in door(TOOLS, "package=run", root="evaluate").errors
    outcome = door(TOOLS, "package=run/package", root="evaluate")
    assert outcome.status == 0
    assert outcome.jobs[0].config["base_model"]["path"] == "run/package"
    assert "E-CFG-03" in door(TOOLS, "package=run/package", "base_model=custom", root="evaluate").errors


def test_two_runs_in_one_folder(door: Door, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "status.json").write_text("{}")
    outcome = door(TOOLS, "run_dir=old")
    assert outcome.status == 73
    assert "E-OUT-04" in outcome.errors
    assert "resume=old" in outcome.errors


def test_output_folder_that_is_a_file(door: Door, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    outcome = door(TOOLS, "run_dir=taken/run")
    assert (outcome.status, "E-OUT-03" in outcome.errors) == (73, True)


def test_dry_run_asks_for_no_output_folder(door: Door) -> None:
    assert door(TOOLS, "run_dir=/proc/nexus_run", "dry_run=true").status == 0


def test_a_secret_from_the_environment_is_fine(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TEMPLATE", "hf_abcdefghijklmnopqrstuvwx")
    assert door(TOOLS, "base_model.chat_template=${oc.env:MY_TEMPLATE}").status == 0


def test_warnings_do_not_stop(door: Door) -> None:
    outcome = door(TOOLS, "hardware=cpu", "hardware.precision=bf16")
    assert outcome.status == 0
    assert "W-CFG-03" in outcome.errors
    assert door(TOOLS).errors == ""


def test_broken_yaml_names_file_and_line(door: Door, tmp_path: Path) -> None:
    (tmp_path / "more" / "scale").mkdir(parents=True)
    (tmp_path / "more" / "scale" / "mine.yaml").write_text("name: mine\n  rows: [1\n")
    errors = door(TOOLS, "--config-dir", "more", "+scale@mine=mine").errors
    assert "E-CFG-08" in errors
    assert "mine.yaml:2" in errors
