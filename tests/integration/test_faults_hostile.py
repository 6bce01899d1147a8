"""Nothing that comes from outside runs: configs, weights, tokenizers, templates, checkpoints, settings, rows, answers.

Each artefact would leave a mark. Where Nexus has no use for it, it is loaded or read without it (`inert`); everywhere
else it is refused by a code.
"""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from nexus.callbacks.checkpoint import checkpoints
from nexus.data.synthetic.tool_results import call_result
from nexus.errors import EXIT_STATUS
from nexus.models.saved_state import STATE_NAME, TENSORS_NAME
from nexus.rewards.registry import build_rewards
from nexus.storage.manifest import combined_sha256, write_manifest
from nexus.text.equality import same_answer
from nexus.text.tool_calls import ToolCall
from tests import faults, hostile
from tests.attempts import CHAT, Bench, jsonl, make_bench, train_shortly, trained_shortly  # noqa: F401  fixtures
from tests.unit.data.test_template_guard import BOMBS, CHATML
from tests.unit.test_models_loader_errors import edit_json
from tests.unit.test_rewards_registry import SAMPLE, card

pytestmark = pytest.mark.faults

INERT = "inert"
Work = Callable[[Bench], Any]
ARTEFACTS: dict[str, tuple[str, Work]] = {}
WEIGHTS = "model.safetensors"


def artefact(name: str, expected: str) -> Callable[[Work], Work]:
    """Register a hostile artefact with the code that refuses it, or `INERT`."""

    def register(work: Work) -> Work:
        assert name not in ARTEFACTS
        ARTEFACTS[name] = (expected, work)
        return work

    return register


def model(name: str, expected: str, spoil: Callable[[Path], Any]) -> None:
    """A model's folder: it is asked a question."""

    def work(bench: Bench) -> None:
        spoil(bench.model())
        bench.ask()

    artefact(f"model: {name}", expected)(work)


def with_code(folder: Path, name: str) -> None:
    """A module in the folder that leaves the mark when it is imported."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(hostile.source(folder.parent) + "\nclass Evil: pass\n")


def config(name: str, expected: str, **change: Any) -> None:
    """A model's `config.json` that names code beside it."""

    def spoil(folder: Path) -> None:
        with_code(folder, "evil.py")
        edit_json(folder / "config.json", **change)

    model(f"config.json, {name}", expected, spoil)


config("auto_map of the model", "E-SEC-02", auto_map={"AutoModelForCausalLM": "evil.Evil"})
config("auto_map of the config", "E-SEC-02", auto_map={"AutoConfig": "evil.Evil"})
config("auto_map in a part", "E-SEC-02", vision_config={"auto_map": {"AutoModel": "evil.Evil"}})
config("trust_remote_code", "E-SEC-02", trust_remote_code=True)
config("trust_remote_code in a list", "E-SEC-02", parts=[{"deep": {"trust_remote_code": "yes"}}])
config("a type of its own", "E-MOD-04", model_type="evil")
config("a quantizer of its own", INERT, quantization_config={"quant_method": "evil", "impl": "evil.Evil"})
config("architectures", INERT, architectures=["evil.Evil"])
config("custom_pipelines", INERT, custom_pipelines={"text-generation": {"impl": "evil.Evil", "pt": ["Evil"]}})
config("tokenizer_class", INERT, tokenizer_class="evil.Evil")
config("attention from a hub", "E-SEC-02", _attn_implementation="evil/kernel")
config("an activation that is an expression", "E-MOD-02", hidden_act="__import__('os').system('touch ran')")
config("scaling that is an expression", "E-MOD-02", rope_parameters={"rope_type": "__import__('os')", "rope_theta": 1})

for suffix in ("bin", "pt", "pth", "ckpt"):

    def _pickle_alone(folder: Path, suffix: str = suffix) -> None:
        (folder / WEIGHTS).unlink()
        content = hostile.torch_file(folder.parent) if suffix == "bin" else hostile.pickled(folder.parent)
        (folder / f"pytorch_model.{suffix}").write_bytes(content)

    model(f"only a pickle, .{suffix}", "E-SEC-01", _pickle_alone)

model("a pickle named safetensors", "E-MOD-08", lambda f: (f / WEIGHTS).write_bytes(hostile.pickled(f.parent)))
model("a pickle beside the weights", INERT,
      lambda f: (f / "pytorch_model.bin").write_bytes(hostile.torch_file(f.parent)))  # fmt: skip


def _index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder.parent / "evil.bin").write_bytes(hostile.torch_file(folder.parent))
    index = {"weight_map": {"lm_head.weight": "../evil.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"}}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(folder)}))
    (folder / "adapter_model.bin").write_bytes(hostile.torch_file(folder.parent))


def _metadata(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pickle", "code": "evil.Evil"})


def _generation(folder: Path) -> None:
    with_code(folder, "custom_generate/generate.py")
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": ".", "trust_remote_code": True}))


model("an index that leads to a pickle", "E-MOD-08", _index)
model("an adapter beside the weights", "E-MOD-22", _adapter)
model("a format in the header", INERT, _metadata)
model("a way of generating", INERT, _generation)


@artefact("model: a manifest that leaves the folder", "E-SEC-10")
def _manifest(bench: Bench) -> None:
    folder = bench.model()
    write_manifest(folder, exclude=(), extra={})
    content = json.loads((folder / "manifest.json").read_text())
    outside = {"../../x": {"size": 1, "sha256": "0" * 64}}
    _seal(folder, content | {"files": outside})
    bench.ask()


def _seal(folder: Path, content: dict[str, Any]) -> None:
    """A manifest whose own hash is right."""
    hashes = {name: entry["sha256"] for name, entry in content["files"].items()}
    (folder / "manifest.json").write_text(json.dumps(content | {"sha256": combined_sha256(hashes)}))


def tokenizer(name: str, expected: str, **change: Any) -> None:
    """A `tokenizer_config.json` that names code beside it."""

    def spoil(folder: Path) -> None:
        with_code(folder, "evil.py")
        edit_json(folder / "tokenizer_config.json", **change)

    model(f"tokenizer, {name}", expected, spoil)


tokenizer("auto_map", "E-SEC-02", auto_map={"AutoTokenizer": ["evil.Evil", None]})
tokenizer("trust_remote_code", "E-SEC-02", deep={"trust_remote_code": True})
tokenizer("a class of its own", INERT, tokenizer_class="evil.Evil")
model("tokenizer, a pickle", "E-TOK-01", lambda f: (f / "tokenizer.json").write_bytes(hostile.pickled(f.parent)))
model("tokenizer, its template", "E-SEC-03",
      lambda f: (f / "chat_template.jinja").write_text(CHATML + ESCAPES["globals of a macro's helper"]))  # fmt: skip

#: Ways out of the sandbox of chat templates.
ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a macro's helper": "{{ raise_exception.__globals__['__builtins__']['exec']('1') }}",
    "globals of the clock": "{{ strftime_now.__globals__['os'] }}",
    "attr filter": "{{ (messages|attr('__class__')).mro() }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format_map": "{{ '{a.__init__.__globals__}'.format_map({'a': raise_exception}) }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch ran') }}",
    "namespace": "{{ namespace().__class__.__init__.__globals__ }}",
    "the template itself": "{{ self.__init__.__globals__ }}",
    "change of a row": "{{ messages.append({}) }}",
}
for name, text in ESCAPES.items():
    artefact(f"template: {name}", "E-SEC-03")(lambda bench, text=text: bench.template(CHATML + text))
for name, text in {"include": "{% include '/etc/passwd' %}", "import": "{% import 'os' as os %}"}.items():
    artefact(f"template: {name}", "E-TOK-06")(lambda bench, text=text: bench.template(CHATML + text))
for name, text in BOMBS.items():
    artefact(f"template: {name}", "E-SEC-04")(lambda bench, text=text: bench.template(CHATML + text))


def checkpoint(name: str, expected: str) -> Callable[[Callable[[Path, Bench], Any]], None]:
    """The newest checkpoint of a run that is resumed."""

    def register(spoil: Callable[[Path, Bench], Any]) -> None:
        def work(bench: Bench) -> None:
            spoil(checkpoints(bench.run() / "checkpoints")[-1][1], bench)
            bench.resume()

        artefact(f"checkpoint: {name}", expected)(work)

    return register


@checkpoint("a pickle in its place", "W-RES-04")
def _pickle_in_its_place(folder: Path, bench: Bench) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(hostile.torch_file(bench.home))


@checkpoint("a pickle among them", INERT)
def _pickle_among_them(folder: Path, bench: Bench) -> None:
    folder.with_name("last.ckpt").write_bytes(hostile.torch_file(bench.home))


@checkpoint("tensors that are a pickle, hashes right", "E-RES-04")
def _pickled_tensors(folder: Path, bench: Bench) -> None:
    (folder / TENSORS_NAME).write_bytes(hostile.torch_file(bench.home))
    write_manifest(folder, exclude=(), extra={})


@checkpoint("what Lightning would build, hashes right", INERT)
def _instantiator(folder: Path, bench: Bench) -> None:
    evil = {"_instantiator": "os.system", "_class_path": "os.system", "command": f"touch {bench.home / hostile.MARK}"}
    edit_json(folder / STATE_NAME, hyper_parameters=evil, datamodule_hyper_parameters=evil)
    write_manifest(folder, exclude=(), extra={})


@checkpoint("a manifest that leaves the folder", "W-RES-04")
def _manifest_outside(folder: Path, bench: Bench) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    _seal(folder, content | {"files": {"../../../x": content["files"][STATE_NAME]}})


TARGETS = (
    "os.system", "subprocess.run", "builtins.exec", "builtins.eval", "logging.os.system", "torch.load",
    "torch.hub.load", "numpy.load", "hydra.utils.instantiate", "hydra.utils.get_method", "pathlib.Path.touch",
    "runpy.run_path", "importlib.import_module", "nexus.config.compose.os.system", "torch.optim.os.system",
    "lightning.pytorch.callbacks.os.system", "functools.partial",
)  # fmt: skip
for target in TARGETS:
    artefact(f"setting: _target_ {target}", "E-SEC-06")(
        lambda bench, target=target: bench.train(f"+callbacks.mine={{_target_: {target}, _args_: [touch ran]}}")
    )


@artefact("setting: _target_ from the environment", "E-SEC-06")
def _from_environment(bench: Bench) -> None:
    bench.patch.setenv("TARGET", "os.system")
    bench.train("+callbacks.mine._target_=${oc.env:TARGET}")


@artefact("setting: _target_ deep inside", "E-SEC-06")
def _deep_inside(bench: Bench) -> None:
    bench.train("method.optimizer.betas=[{_target_: os.system, command: touch ran}]")


@artefact("setting: _target_ in a run's config", "E-SEC-06")
def _in_a_run(bench: Bench) -> None:
    with (bench.run() / "config.yaml").open("a") as file:
        file.write("\nextra:\n  _target_: os.system\n  command: touch ran\n")
    bench.door("train", "resume=run")


@artefact("setting: a Python object in a run's config", "E-CFG-08")
def _python_object(bench: Bench) -> None:
    with (bench.run() / "config.yaml").open("a") as file:
        file.write('\nextra: !!python/object/apply:os.system ["touch ran"]\n')
    bench.door("train", "resume=run")


@artefact("setting: a Python object in a folder of groups", "E-CFG-08")
def _python_object_in_a_group(bench: Bench) -> None:
    (bench.home / "more" / "scale").mkdir(parents=True)
    (bench.home / "more" / "scale" / "mine.yaml").write_text('name: !!python/object/apply:os.system ["touch ran"]\n')
    bench.train("--config-dir", "more", "+scale@mine=mine")


artefact("setting: a resolver of its own", "E-CFG-10")(
    lambda bench: bench.train("base_model.revision='${python:os.system}'")
)
for source in ("os:system", "builtins.eval", "mine.txt:reward", "mine.py:__import__('os').system('touch ran')"):
    artefact(f"reward: {source}", "E-CFG-01")(
        lambda bench, source=source: bench.train(
            "method=grpo", f'capabilities.tools.rewards.tool_call.function="{source}"'
        )
    )


@artefact("answer: a program", INERT)
def _program(bench: Bench) -> None:
    """The program that is rewarded tries to leave the mark outside of its sandbox."""
    text = f"```python\n{hostile.source(bench.home)}\ndef f(): return 1\n```"
    sample = replace(SAMPLE, completion=text, gold={"tests": ["assert f() == 1"]})
    bench.call(lambda: build_rewards({"code": card("code")}).score([sample]))
    if "E-SEC-05" in bench.ends[0][1]:  # a machine without a sandbox runs nothing
        bench.ends[0] = (0, "refused")


EXPRESSION = "__import__('os').system('touch ran')"


@artefact("answer: an expression to compare", INERT)
def _expression(bench: Bench) -> None:
    bench.call(lambda: [same_answer(EXPRESSION, "1", 0.0), same_answer("1", EXPRESSION, 0.0)])


@artefact("answer: a call whose arguments are expressions", INERT)
def _call(bench: Bench) -> None:
    tool = {"name": "calculate", "description": "", "parameters": {"type": "object", "properties": {
        "expression": {"type": "string"}}, "required": ["expression"]}}  # fmt: skip
    call = ToolCall("calculate", {"expression": EXPRESSION})
    bench.call(lambda: call_result(call, [{"type": "function", "function": tool}]))


def data(name: str, expected: str, file: str, make: Callable[[Path], bytes]) -> None:
    """A file of rows."""
    artefact(f"rows: {name}", expected)(lambda bench: bench.rows(file, make(bench.home)))


def _zip(home: Path) -> bytes:
    with zipfile.ZipFile(home / "made.zip", "w") as archive:
        archive.writestr(f"../../../../../../..{home / hostile.MARK}", "x")
    return (home / "made.zip").read_bytes()


data("a pickle", "E-DAT-08", "rows.pkl", hostile.pickled)
data("a pickle named jsonl", "E-DAT-06", "rows.jsonl", hostile.pickled)
data("a pickle named parquet", "E-DAT-10", "rows.parquet", hostile.pickled)
data("a tar file", "E-DAT-08", "rows.tar.gz", hostile.archive)
data("a tar file named jsonl.gz", "E-DAT-02", "rows.jsonl.gz", hostile.archive)
data("a zip file", "E-DAT-08", "rows.zip", _zip)
data("a bomb of one line", "E-DAT-09", "rows.jsonl.gz", lambda _: gzip.compress(b" " * (66 * 2**20), 9))


@artefact("rows: a loading script", "E-DAT-01")
def _script(bench: Bench) -> None:
    with_code(bench.home / "rows", "rows.py")
    bench.door("train", "data.train=rows")


@artefact("rows: a loading script beside rows", INERT)
def _script_beside(bench: Bench) -> None:
    with_code(bench.home / "rows", "rows.py")
    (bench.home / "rows" / "chats.jsonl").write_text(jsonl(CHAT, CHAT))
    bench.door("train", "data.train=rows", "dry_run=true", "method.max_steps=1")


@artefact("rows: the repository of a hub that is a script", "E-DAT-20")
def _repository(bench: Bench) -> None:
    with_code(bench.home / "evil", "evil.py")
    card = "data.sources.mine"
    bench.door("train", f"+dataset@{card}=hub", f"{card}.path=evil", f"{card}.split=train", f"{card}.license=MIT")


@pytest.mark.parametrize("name", list(ARTEFACTS)[:: 1 if faults.FULL else 4])
def test_nothing_runs(name: str, bench: Bench) -> None:
    expected, work = ARTEFACTS[name]
    work(bench)
    assert list(bench.home.rglob(hostile.MARK)) == []
    [(status, said)] = bench.ends
    family = expected.split("-")
    assert (status == 0) == (family[0] != "E"), said
    if expected != INERT:
        assert expected in said
    if family[0] == "E":
        assert status in (EXIT_STATUS[family[1]], 66), said
        assert " -- " in said
    print(f"P27: {name}: {expected}, no mark")


def test_there_are_enough_of_them_and_the_mark_works(tmp_path: Path) -> None:
    refused = [name for name, (expected, _) in ARTEFACTS.items() if expected != INERT]
    assert len(refused) >= 60
    assert hostile.is_armed(tmp_path)
