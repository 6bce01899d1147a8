"""Ninety-five bad inputs by number: each is really made, and ends in one coded error with nothing written.

A code `W-...` is a warning behind which the run goes on; `fine` is what others stumble over and is no mistake here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from nexus.callbacks.checkpoint import checkpoints, newest_whole
from nexus.callbacks.thermal_pause import ThermalPause
from nexus.data.workers import fork_map
from nexus.errors import EXIT_STATUS
from nexus.hardware.probe import Device, choose_device, choose_precision, other_gpus, probe_devices, probe_host
from nexus.hardware.sensors import find_sensors
from nexus.models.adapters import apply_adapter
from nexus.models.loader import load_model
from nexus.rewards import sandbox, sandbox_probe
from nexus.rewards.registry import build_rewards
from nexus.storage.locks import RunLock
from tests import hostile, small
from tests.attempts import CHAT, Bench, jsonl, make_bench, train_shortly, trained_shortly  # noqa: F401  fixtures
from tests.integration.conftest import listing, write_chats
from tests.integration.test_known_bad import plant
from tests.invariants.test_faults_heat import train as train_hot
from tests.invariants.test_faults_numbers import train as train_spoiled
from tests.invariants.test_out_of_memory import train as train_without_room
from tests.unit.data.test_template_guard import CHATML, ENDLESS
from tests.unit.test_models_loader_errors import LFS, cut, edit_json, edit_weights
from tests.unit.test_rewards_registry import SAMPLE, card
from tests.unit.test_rollout_loader import Rollouts, make_loader

pytestmark = pytest.mark.integration

#: Numbers whose subject is not built yet, with what will bring it.
LATER = {
    53: "distillation: a teacher with another vocabulary",
    54: "distillation: a cache of another teacher or of other rows",
    55: "distillation: a damaged block of the cache",
    57: "opening an adapter folder: made for a base of another shape",
    58: "opening an adapter folder: made for a deeper base",
    89: "the organizer: links out of its folder, two files of one name",
    90: "the service: wrong host, no token, a body of 10 MB, an unknown job",
    91: "the service: bound to every address without a token",
}
FINE = "fine"

Work = Callable[[Bench], Any]
CASES: dict[int, tuple[str, int, Work]] = {}


def bad(number: int, code: str, status: int | None = None) -> Callable[[Work], Work]:
    """Register a bad input; the exit status is that of the code's family unless another is named."""

    def register(work: Work) -> Work:
        assert number not in CASES
        CASES[number] = (code, EXIT_STATUS[code.split("-")[1]] if status is None else status, work)
        return work

    return register


def words(number: int, code: str, *given: str, status: int | None = None) -> None:
    """A mistake of the command line alone."""
    bad(number, code, status)(lambda bench: bench.train(*given))


def rows(number: int, code: str, name: str, content: bytes | str, *given: str) -> None:
    """A file of rows that cannot be used."""
    bad(number, code)(lambda bench: bench.rows(name, content, *given))


def model(number: int, code: str, damage: Callable[[Path], Any], status: int | None = None) -> None:
    """A model's folder that cannot be used."""

    def work(bench: Bench) -> None:
        damage(bench.model())
        bench.ask()

    bad(number, code, status)(work)


def template(number: int, code: str, text: str) -> None:
    """A chat template that cannot be used."""
    bad(number, code)(lambda bench: bench.template(text))


WEIGHTS = "model.safetensors"
NORM = "model.layers.0.input_layernorm.weight"
PAIR = {"prompt": "a", "response": "b"}


@bad(1, "E-MIS-01")
def no_model_folder(bench: Bench) -> None:
    bench.model()
    said = bench.train("base_model=custom", "base_model.path=./modle")
    assert "did you mean ./model?" in said or "did you mean model?" in said


model(2, "E-MOD-02", lambda f: (f / "config.json").write_text('{"model_type": "qwen3",\n "b" 2}'))
model(3, "E-MOD-03", lambda f: (f / "config.json").unlink(), status=66)
model(4, "E-MOD-04", lambda f: edit_json(f / "config.json", model_type="qwen33"))
model(5, "E-MOD-05", lambda f: edit_json(f / "config.json", intermediate_size=40))


def _more_layers(folder: Path) -> None:
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"] + 1
    edit_json(folder / "config.json", num_hidden_layers=layers, layer_types=["full_attention"] * layers)


model(6, "E-MOD-06", _more_layers)
model(7, "E-MOD-06", lambda f: edit_weights(f, lambda tensors: tensors.pop(NORM)))
model(8, "E-MOD-07", lambda f: edit_weights(f, lambda tensors: tensors[NORM][3:5].fill_(torch.nan)))
model(9, "E-MOD-08", lambda f: cut(f / WEIGHTS, -1000))
model(10, "E-MOD-08", lambda f: cut(f / WEIGHTS, 0))
model(11, "E-MOD-08", lambda f: (f / WEIGHTS).write_bytes(hostile.header_only(2**60)))
model(12, "E-MOD-09", lambda f: (f / WEIGHTS).write_text(LFS))


def _a_shard_is_missing(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file(dict(list(tensors.items())[:3]), folder / names[0], metadata={"format": "pt"})
    index = {"weight_map": {name: names[at >= 3] for at, name in enumerate(tensors)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


model(13, "E-MOD-10", _a_shard_is_missing, status=66)


def _only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(hostile.torch_file(folder.parent))


model(14, "E-SEC-01", _only_a_pickle)
model(15, "E-SEC-02", lambda f: edit_json(f / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}))
model(16, "E-SEC-02", lambda f: edit_json(f / "config.json", vision_config={"trust_remote_code": True}))


@bad(17, "E-PKG-04")
def a_bit_of_a_package_has_flipped(bench: Bench) -> None:
    weights = bench.model(as_packed=True) / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1  # a low bit of the last number: nothing but the hash can tell
    weights.write_bytes(content)
    assert bench.ask().count("sha256 ") == 1


model(18, "E-TOK-01", lambda f: (f / "tokenizer.json").unlink(), status=66)


def _more_tokens_than_rows(folder: Path) -> None:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit_json(folder / "tokenizer.json", added_tokens=[*added, {**added[-1], "id": rows, "content": "<|beyond|>"}])


model(19, "E-TOK-02", _more_tokens_than_rows)
model(20, "W-TOK-03", lambda f: edit_json(f / "tokenizer_config.json", pad_token=None), status=0)
template(21, "E-TOK-04", "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
model(22, "E-TOK-05", lambda f: (f / "chat_template.jinja").unlink())
template(23, "E-TOK-06", CHATML + "{{ 'x' if }}")
template(24, "E-TOK-06", CHATML + "{{ nothing.at_all }}")
template(25, "E-SEC-03", CHATML + "{{ messages.__class__.__mro__ }}")
template(26, "E-SEC-04", CHATML + ENDLESS)
template(27, "E-TOK-07", CHATML.replace("in messages %}", "in messages if m.role != 'system' %}"))

bad(28, "E-MIS-02")(lambda bench: bench.door("train", "data.train=nothing.jsonl"))
rows(29, "E-DAT-02", "garbage.jsonl", jsonl(CHAT) + "{garbage\n" + jsonl(CHAT))
rows(30, "E-DAT-02", "cut.jsonl", jsonl(CHAT, CHAT)[:-9])
rows(31, "E-DAT-04", "empty.jsonl", "")
rows(32, "E-DAT-05", "types.jsonl", jsonl(PAIR, {"prompt": 3, "response": "b"}))
rows(33, "E-DAT-06", "latin.jsonl", '{"prompt": "Gr\u00fc\u00dfe", "response": "b"}'.encode("latin-1"))
rows(34, "E-DAT-07", "nan.jsonl", '{"prompt": "a", "response": "b", "score": NaN}\n')
rows(35, "E-DAT-08", "array.jsonl", json.dumps([PAIR]))
rows(36, "E-DAT-09", "line.jsonl", b'{"prompt": "' + b"a" * (65 * 2**20))


def _parquet(file: Path, table: dict[str, list[str]]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return file.read_bytes()


@bad(37, "E-DAT-10")
def a_parquet_file_without_its_end(bench: Bench) -> None:
    whole = _parquet(bench.home / "rows.parquet", {"prompt": ["a"] * 9, "response": ["b"] * 9})
    bench.rows("rows.parquet", whole[:-20])


@bad(38, "E-DAT-12")
def shards_with_other_columns(bench: Bench) -> None:
    (bench.home / "rows").mkdir()
    _parquet(bench.home / "rows" / "a.parquet", {"prompt": ["a"], "response": ["b"]})
    _parquet(bench.home / "rows" / "b.parquet", {"propmt": ["a"], "answr": ["b"]})
    assert "b.parquet" in bench.door("train", "data.train=rows")


rows(39, "E-DAT-12", "columns.jsonl", jsonl({"qestion": "a", "anwser": "b"}))
rows(40, "E-DAT-13", "long.jsonl", jsonl(CHAT), "data.max_seq_len=4", "data.long_rows=drop")


@bad(41, FINE, 0)
def fewer_rows_than_a_batch(bench: Bench) -> None:
    (bench.home / "two.jsonl").write_text(jsonl(CHAT, CHAT))
    corpus = small.make_corpus(
        small.make_tokenizer(), sources={}, train=[str(bench.home / "two.jsonl")], global_batch_size=64, epochs=1
    )
    assert (corpus.num_steps, len(corpus.rows)) == (1, 2), "the step is smaller, not left out"


rows(42, "E-DAT-04", "none.json", "[]")
rows(43, "E-DAT-15", "mute.jsonl", jsonl({"messages": CHAT["messages"][:1]}))
rows(44, "E-PREF-01", "same.jsonl", jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}), "method=dpo")
OTHER = [{"role": "user", "content": "Goodbye"}, CHAT["messages"][1]]
rows(45, "E-DAT-05", "two.jsonl", jsonl({"chosen": CHAT["messages"], "rejected": OTHER}), "method=dpo")
rows(46, "E-LEN-01", "long.jsonl", jsonl(CHAT), "data.max_seq_len=4")
bad(47, "E-LEN-02")(lambda bench: bench.door("generate", "base_model=nexus_tiny", "prompt=" + "word " * 3000))
words(48, "E-LEN-03", "data.max_seq_len=1000000")

words(49, "E-CFG-02", "method=grpo", "method.rollout.num_generations=1")


@bad(50, "E-RL-02")
def rewards_that_are_no_numbers(bench: Bench) -> None:
    for value in ("float('nan')", "'1.0'", "[1.0, 2.0]"):
        (bench.home / "mine.py").write_text(f"def reward(completion):\n    return {value}\n")
        rewards = build_rewards({"mine": {"function": "mine.py:reward", "weight": 1.0, "options": {}}})
        bench.call(lambda rewards=rewards: rewards.score([SAMPLE]))


bad(51, "E-RL-01")(lambda bench: bench.call(lambda: list(make_loader(Rollouts([(0.5, 0.5)])))))


@bad(52, "E-SEC-05")
def code_is_rewarded_and_there_is_no_sandbox(bench: Bench) -> None:
    bench.patch.setattr(sandbox, "machine_problem", lambda: "it needs Linux, this is darwin")
    sandbox_probe.insist_on_sandbox.cache_clear()
    bench.call(lambda: build_rewards({"code": card("code")}))


@bad(56, "E-CFG-22")
def an_adapter_for_layers_that_are_not_there(bench: Bench) -> None:
    policy = load_model(**small.settings(), seed=0)
    bench.call(lambda: apply_adapter(policy, {**small.LORA, "target_modules": ["foo"]}, seed=0))


@bad(59, "E-CFG-02")
def adapters_out_of_range(bench: Bench) -> None:
    for word in ("adapter.r=0", "adapter.alpha=0", "adapter.dropout=1"):
        bench.train("method=lora", word)


words(60, "E-CFG-01", "method.lrr=1e-3")
words(61, "E-SEC-06", "+callbacks.mine={_target_: os.system, command: 'touch ran'}")
words(62, "E-SEC-07", "base_model.chat_template=hf_abcdefghijklmnopqrstuvwx")


@bad(63, "E-CFG-03")
def settings_that_contradict_each_other(bench: Bench) -> None:
    bench.train("method=qlora", "adapter=none")
    bench.train("base_model.path=null")


@bad(64, "E-CFG-02")
def numbers_out_of_range(bench: Bench) -> None:
    for word in ("method.lr=0", "method.lr=nan", "method.lr='abc'", "method.max_steps=-3", "data.global_batch_size=0"):
        bench.train(word)


@bad(65, FINE, 0)
def micro_batches_that_do_not_divide_the_batch(bench: Bench) -> None:
    step = small.make_step(small.make_rows(8), micro_batch_size=3)
    assert sorted(len(batch.ids) for batch in step) == [2, 3, 3]
    assert sum(float(batch.loss_scale) for batch in step) == pytest.approx(1), "every token has the same weight"


@bad(66, "E-RES-01")
def a_resume_with_other_settings(bench: Bench) -> None:
    bench.run()
    bench.door("train", "resume=run", "method.lr=1e-5")


@bad(67, FINE, 0)
def a_resume_of_a_finished_run(bench: Bench) -> None:
    bench.run(finished=True)
    assert "the run is finished" in bench.door("train", "resume=run")


@bad(68, "E-RES-01")
def rows_that_changed_since(bench: Bench) -> None:
    kept = listing(bench.run() / "checkpoints")
    (bench.home / "chats.jsonl").write_text(jsonl(CHAT) * 4)
    assert "data_sha256" in bench.resume()
    assert listing(bench.home / "run" / "checkpoints") == kept


def _spoil(checkpoint: Path) -> None:
    file = checkpoint / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@bad(69, "W-RES-04", 0)
def the_newest_checkpoint_is_damaged(bench: Bench) -> None:
    _spoil(checkpoints(bench.run() / "checkpoints")[-1][1])
    assert "resuming from step 1" in bench.resume()


@bad(70, "E-RES-05", 65)
def all_checkpoints_are_damaged(bench: Bench) -> None:
    for _, path in checkpoints(bench.run() / "checkpoints"):
        _spoil(path)
    bench.resume()


@bad(71, "E-RES-06")
def a_checkpoint_of_a_newer_nexus(bench: Bench) -> None:
    newest = checkpoints(bench.run() / "checkpoints")[-1][1]
    edit_json(newest / "manifest.json", schema=2, digest="sha512")
    bench.resume()
    assert newest.is_dir(), "it is not damaged, so it keeps its name"


@bad(72, "E-SEC-01")
def somebody_s_checkpoint_as_a_model(bench: Bench) -> None:
    folder = bench.model()
    (folder / WEIGHTS).unlink()
    (folder / "last.ckpt").write_bytes(hostile.pickled(bench.home))
    bench.ask()


@bad(73, "E-RUN-03", 65)
def files_of_a_run_that_were_edited(bench: Bench) -> None:
    folder = bench.run(finished=True)
    (folder / "status.json").write_text('{"state": "training"')
    bench.door("control", "run", "status")
    (folder / "report.json").write_text("[]")
    bench.door("train", "resume=run")


@bad(74, "E-RUN-01")
def a_run_that_somebody_works_on(bench: Bench) -> None:
    with RunLock(bench.run()):
        bench.door("train", "resume=run")


words(75, "E-OUT-01", "run_dir=/proc/run")


@bad(76, "E-OUT-02")
def a_full_disk(bench: Bench) -> None:
    usage = shutil.disk_usage(bench.home)._replace(free=0)
    bench.patch.setattr(shutil, "disk_usage", lambda _: usage)
    bench.train("scale=quick")


@bad(77, "E-OUT-03")
def an_output_where_something_else_is(bench: Bench) -> None:
    (bench.home / "taken").write_text("")
    bench.train("run_dir=taken/run")
    (bench.home / "rows").mkdir()
    write_chats(bench.home / "rows" / "chats.jsonl")
    bench.door("train", "data.train=rows", "run_dir=rows/run")
    bench.door("train", "data.train=.")


@bad(78, "E-OUT-07")
def a_file_system_that_does_not_rename(bench: Bench) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    bench.patch.setattr(os, "replace", refuse)
    bench.train("run_dir=out/run", "paths.metrics_dir=null")


words(79, "E-MEM-01", "scale=quick", "hardware.memory_gib=0.01")
bad(80, "E-MEM-02", 75)(lambda bench: bench.call(lambda: train_without_room(bench.home, 0)))
HUGE = ("hidden_size=65536", "intermediate_size=262144", "num_hidden_layers=20", "head_dim=512")
words(81, "E-MEM-01", "base_model=nexus_tiny_scratch", *(f"base_model.architecture.{change}" for change in HUGE))


@bad(82, "E-DEV-01")
def no_gpu(bench: Bench) -> None:
    processors = tuple(device for device in probe_devices(probe_host()) if device.kind == "cpu")
    bench.call(lambda: choose_device(processors, accelerator="gpu"))


OLD_GPU, NEW_GPU = (Device("cuda", i, f"GPU {i}", 2**33, 2**33, ("fp32",)) for i in range(2))
bad(83, "E-DEV-02")(lambda bench: bench.call(lambda: choose_precision(OLD_GPU, precision="bf16")))


@bad(84, "W-THM-01", 0)
def no_driver_that_tells_the_heat(bench: Bench) -> None:
    limits = {f"{chip}_{what}": at for chip in ("gpu", "cpu") for what, at in (("pause_at", 83.0), ("resume_at", 75.0))}
    thermal = ThermalPause(
        enabled=True, **limits, seconds_between_polls=1.0, min_pause_seconds=0.0, max_pause_seconds=9.0,
        unknown_after_seconds=20.0, stuck_after_seconds=600.0, on_unknown="train", desk=None,
        find_sensors=lambda: {k: v for k, v in find_sensors("GPU-nowhere").items() if k == "gpu"},
    )  # fmt: skip
    step = small.make_step(small.make_rows(2))
    bench.call(lambda: small.fit_steps(small.make_method(), [step], bench.home, callbacks=[thermal]))


words(85, "E-THM-02", "callbacks.thermal_pause.gpu_resume_at=90")
bad(86, "E-THM-03", 75)(lambda bench: bench.call(lambda: train_hot(bench.home, [60.0, 90.0], max_pause_seconds=0.2)))
bad(87, "E-NUM-01")(
    lambda bench: bench.call(
        lambda: train_spoiled(bench.home, dict.fromkeys(range(2, 9), "nan loss"), steps=8, max_skipped_in_a_row=2)
    )
)


@bad(88, "E-DAT-08")
def an_archive_that_leaves_its_folder(bench: Bench) -> None:
    bench.rows("rows.tar.gz", hostile.archive(bench.home))


@bad(92, "E-SUP-01")
def a_release_that_steals(bench: Bench) -> None:
    mark = plant(bench.home / "site", "pytorch-lightning", "2.6.3")
    bench.patch.syspath_prepend(str(bench.home / "site"))
    bench.train()
    assert not mark.exists()


@bad(93, FINE, 0)
def times_of_files_that_lie(bench: Bench) -> None:
    folder = bench.run() / "checkpoints"
    (_, older), (_, newer) = checkpoints(folder)
    os.utime(older, (time.time() + 9e6,) * 2)
    os.utime(newer, (0, 0))
    assert newest_whole(folder, tell=print) == (2, newer), "the step counts"


@bad(94, "W-DEV-03", 0)
def two_gpus_for_a_run_of_one(bench: Bench) -> None:
    devices = (OLD_GPU, NEW_GPU, *probe_devices(probe_host())[-1:])
    chosen = choose_device(devices, accelerator="auto")
    bench.ends.append((0, str(other_gpus(devices, chosen))))
    assert other_gpus(devices[1:], NEW_GPU) is None


@bad(95, FINE, 0)
def signals_to_the_whole_group_reach_workers(bench: Bench) -> None:
    def work(piece: int) -> int:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.kill(os.getpid(), number)
        return piece

    assert list(fork_map(work, 4, processes=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("number", sorted(CASES), ids=lambda number: f"{number:02}-{CASES[number][0]}")
def test_bad_input(number: int, bench: Bench) -> None:
    code, status, work = CASES[number]
    work(bench)
    assert bench.ends or code == FINE
    for ended, said in bench.ends:
        assert ended == status, said
        errors = [line for line in said.splitlines() if line.startswith("E-")]
        assert [line.split()[0] for line in errors] == ([code] if code.startswith("E-") else []), said
        assert not errors or " -- " in said, "no remedy"
        assert code in said or code == FINE
    assert not (bench.home / hostile.MARK).exists()


def test_every_number_is_tried_or_waits_for_its_part() -> None:
    assert not CASES.keys() & LATER.keys()
    assert sorted(CASES.keys() | LATER.keys()) == list(range(1, 96))
