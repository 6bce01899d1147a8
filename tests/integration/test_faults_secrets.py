"""No secret leaves the process: canaries go in on every way, and no written byte and no printed word holds one."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attempts import CHAT, Bench, jsonl
from tests.conftest import Finished
from tests.integration.conftest import write_chats
from tests.unit.test_models_loader_errors import edit_json

pytestmark = pytest.mark.faults

#: Secrets in variables of the environment, by the name of the variable: their shape tells nothing.
ENVIRONMENT = {
    "HF_TOKEN": "correct-horse-battery-01",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "GITHUB_TOKEN": "staple-canary-environment-04",
    "DB_PASSWORD": "hunter2-canary-environment-05",
    "DEPLOY_PRIVATE_KEY": "canary-of-a-private-key-06",
}
#: Secrets that are given in the open, by the way that they take.
OPEN = {
    "flag +key=": "hf_CanaryOfAFlag0123456789",
    "flag --key VALUE": "plain-canary-of-a-flag-08",
    "flag in a text": "sk-proj-CanaryOfAText0123456789",
    "flag as a number": "ghp_CanaryOfANumber0123456789abcdef",
    "flag in a sweep": "glpat-CanaryOfASweep0123456",
    "flag and --help": "xoxb-1234567890-canaryofhelp",
    "flag and --cfg": "github_pat_CanaryOfCfg0123456789abcd",
    "url of rows": "canary-userinfo-of-rows-14",
    "url with a query": "canary-query-of-rows-15",
    "url of a model": "canary-userinfo-of-a-model-16",
    "url of a repository": "canary-userinfo-of-a-hub-17",
    "yaml of a group": "AKIACANARYOFAGROUP18",
    "yaml that is broken": "AIzaCanaryOfABrokenFile0123456789abcdef",
    "yaml of a run": "canary-password-of-a-run-20",
    "card of the base": "hf_CanaryOfTheBase0123456789",
    "config of the base": "canary-userinfo-of-the-config-22",
    "tokenizer of the base": "hf_CanaryOfTheTokenizer0123456",
    "generation of the base": "canary-key-of-the-generation-24",
    "card of the rows": "hf_CanaryOfTheRows0123456789",
    "a row that is no JSON": "eyJhbGciOiJIUzI1.eyJjYW5hcnkiOjI2.c2lnbmF0dXJl",
}  # fmt: skip
SECRETS = ENVIRONMENT | OPEN


def forms(secret: str) -> set[bytes]:
    """The secret as it is, in a URL, in JSON, and in base64 at any offset."""
    found = {secret, urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1]}
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode()
        found.add(encoded[4 if offset else 0 : -4])
    return {form.encode() for form in found}


def found_in(folder: Path, said: str) -> list[str]:
    """Where a secret was found: names of files and folders, their content, and what was said."""
    places = {"what was said": said.encode()}
    for path in folder.rglob("*"):
        places[str(path)] = str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
    return [
        f"{name} in {place}"
        for place, content in places.items()
        for name, secret in SECRETS.items()
        if any(form in content for form in forms(secret))
    ]


@pytest.fixture
def bench(
    door: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Bench:
    """Doors with secrets in the environment; what is handed to them lies beside the folder in which they run."""
    for name, secret in ENVIRONMENT.items():
        monkeypatch.setenv(name, secret)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return Bench(home, door, tmp_path, monkeypatch, caplog, [])


def given(bench: Bench, name: str, content: str) -> str:
    """A file that is handed to a door."""
    path = bench.home.parent / "given" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def refused(bench: Bench) -> None:
    """Every way on which a start is refused, or only shows something."""
    tools = "+capability=tools"
    bench.door("train", tools, f"+hf_token={OPEN['flag +key=']}")
    bench.door("train", tools, "--token", OPEN["flag --key VALUE"])
    bench.door("train", tools, f"base_model.chat_template='a {OPEN['flag in a text']} b'")
    bench.door("train", tools, f"method.lr={OPEN['flag as a number']}")
    bench.door("train", "-m", tools, f"base_model.revision={OPEN['flag in a sweep']},main")
    bench.door("train", tools, f"base_model.revision={OPEN['flag and --help']}", "--help")
    bench.door("train", tools, f"base_model.revision={OPEN['flag and --cfg']}", "--cfg", "job")
    bench.door("train", f"data.train=https://me:{OPEN['url of rows']}@host/rows.jsonl")
    bench.door("train", f"data.train='https://host/rows.jsonl?access_token={OPEN['url with a query']}'")
    bench.train("base_model=custom", f"base_model.path=https://me:{OPEN['url of a model']}@host/model")
    bench.door(
        "train", "+dataset@data.sources.mine=hub",
        f"data.sources.mine.path=https://me:{OPEN['url of a repository']}@host/rows", "data.sources.mine.license=MIT",
        "data.sources.mine.split=train",
    )  # fmt: skip
    given(bench, "more/scale/mine.yaml", f"name: mine\naws_access_key_id: {OPEN['yaml of a group']}\n")
    bench.train("--config-dir", "../given/more", "+scale@mine=mine")
    given(bench, "broken/scale/mine.yaml", f"name: mine\n  key: [{OPEN['yaml that is broken']}\n")
    bench.train("--config-dir", "../given/broken", "+scale@mine=mine")
    given(bench, "run/config.yaml", f"seed: 1\ndatabase:\n  password: {OPEN['yaml of a run']}\n")
    bench.door("train", "resume=../given/run")
    bench.door("train", f"data.train={given(bench, 'bad.jsonl', OPEN['a row that is no JSON'])}")
    bench.train("dry_run=true", "base_model.revision=${oc.env:GITHUB_TOKEN}")
    bench.train("base_model.revision=${oc.env:GITHUB_TOKEN}", "--cfg", "job", "--resolve")
    bench.train("method.lr=${oc.env:DB_PASSWORD}")


def trained(bench: Bench) -> None:
    """A run from a base and rows that carry secrets, with settings from the environment; its package; its scores."""
    base = bench.model()
    base = base.rename(bench.home.parent / "base")
    (base / "README.md").write_text(f"---\ntoken: {OPEN['card of the base']}\n---\n# A base\n")
    edit_json(base / "config.json", origin=f"https://me:{OPEN['config of the base']}@host/x")
    edit_json(base / "tokenizer_config.json", hub={"token": OPEN["tokenizer of the base"]})
    edit_json(base / "generation_config.json", api_key=OPEN["generation of the base"])
    rows = write_chats(Path(given(bench, "rows/chats.jsonl", "")), rows=6).parent
    (rows / "README.md").write_text(f"---\nlicense: mit\ntoken: {OPEN['card of the rows']}\n---\n")
    said = bench.door(
        "train", f"data.train={rows}", "base_model=custom", f"base_model.path={base}", "run_dir=run",
        "base_model.name=${oc.env:DB_PASSWORD}", "base_model.revision=${oc.env:GITHUB_TOKEN}", "method=lora",
        "method.max_steps=2", "data.global_batch_size=2", "logger=tensorboard", writes=True,
    )  # fmt: skip
    assert "package " in said
    (bench.home.parent / "given" / "ask.jsonl").write_text(jsonl(CHAT))
    bench.door(
        "evaluate", "package=run/package", "data.validation=../given/ask.jsonl", "output=scores.json", writes=True
    )


def test_no_canary_is_written_or_said(bench: Bench) -> None:
    assert len(SECRETS) >= 25
    refused(bench)
    assert [end for end in bench.ends if end[0] not in (0, 64, 65, 66, 77)] == []
    trained(bench)
    assert [status for status, _ in bench.ends[-2:]] == [0, 0], bench.ends[-1][1]
    said = "\n".join(text for _, text in bench.ends) + bench.log.text
    written = [path for path in bench.home.rglob("*") if path.is_file()]
    assert {"config.yaml", "report.json", "README.md", "tokenizer_config.json", "scores.json"} <= {
        p.name for p in written
    }
    assert found_in(bench.home, said) == []
    print(
        f"P26: {len(SECRETS)} canaries on {len(bench.ends)} ways: 0 in {len(written)} files "
        f"({sum(path.stat().st_size for path in written):,} bytes) and {len(said):,} characters that were said"
    )


def test_a_secret_would_be_found(tmp_path: Path) -> None:
    for index, (name, secret) in enumerate(SECRETS.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert found_in(folder, "nothing") == []
        assert found_in(folder, f"... {urllib.parse.quote(secret, safe='')} ...") == [f"{name} in what was said"]
        (folder / "file.bin").write_bytes(base64.b64encode(b"ab" + secret.encode() + b"cd"))
        assert found_in(folder, "") == [f"{name} in {folder / 'file.bin'}"]
