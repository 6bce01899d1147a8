"""The token cache: the same rows, a key that sees every change, and entries that are whole or made again."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from nexus.data.corpus import OWN_SOURCES
from nexus.data.token_cache import CorpusRows, TokenCache, _code, cache_key, source_identity, tokenizer_identity
from nexus.data.token_rows import TokenRows
from nexus.errors import NexusError
from nexus.types import TokenizedExample
from tests.architecture.readme_tree import REPOSITORY
from tests.unit.data.test_data_module import card, module, write_rows


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def some_rows() -> CorpusRows:
    rows = TokenRows.of([TokenizedExample("a:1", "a", [5, 6], [False, True])])
    error = NexusError("E-DAT-02", "bad", where="a:2", remedy="mend", status=9)
    return CorpusRows(rows, TokenRows.of(()), [error])


def refuse() -> CorpusRows:
    raise AssertionError("read again")


def test_second_start_maps_the_same_rows(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["garbage", '{"question": "1?", "answer": "one"}', '{"messages": [{"role": "user", "content": "Hi"}]}']
    (tmp_path / "own.jsonl").write_text("\n".join([*lines, *(lines[1].replace("1?", f"{i}?") for i in range(2, 7))]))
    settings: dict[str, Any] = {"train": str(tmp_path / "own.jsonl"), "max_bad_rows": 3}
    plain, first, second = (
        module(tiny_tokenizer, **settings, cache=cache)
        for cache in (None, TokenCache(tmp_path / "c"), TokenCache(tmp_path / "c"))
    )
    for corpus in (plain, first, second):
        corpus.setup()
        assert (tmp_path / "c").exists() is (corpus is second)  # a start that is refused later has written nothing
        corpus.keep()
        assert list(corpus.rows) == list(plain.rows)
        assert list(corpus.held_out_rows) == list(plain.held_out_rows)
        assert corpus.summary() == plain.summary()
        assert [str(error) for error in corpus.bad_rows.errors] == [str(error) for error in plain.bad_rows.errors]
    assert len(plain.bad_rows.errors) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in said] == [
        "miss",
        "kept for the next time (" + str(entries(tmp_path / "c")[0]) + ")",
        "hit",
    ]
    assert "6 rows and 1 held out" in said[2]
    assert isinstance(second.tokenized().rows.input_ids, np.memmap)
    strict = module(tiny_tokenizer, **settings | {"max_bad_rows": 0}, cache=TokenCache(tmp_path / "c"))
    with pytest.raises(NexusError) as caught:  # the limit counts for cached rows too
        strict.setup()
    assert (caught.value.code, caught.value.where) == ("E-DAT-02", "own.jsonl:1")
    assert len(entries(tmp_path / "c")) == 1


def test_nothing_to_read_is_nothing_to_say(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `nexus.evaluate` has it for a capability, which is measured by prompts of its own."""
    corpus = module(tiny_tokenizer, sources={"tools": {"embedded": card("tools")}}, cache=TokenCache(tmp_path / "c"))
    corpus.setup("test")
    corpus.keep()
    assert (len(corpus.rows), len(corpus.held_out_rows)) == (0, 0)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "c").exists()


def test_one_entry_serves_every_length(tiny_tokenizer: Any, tmp_path: Path) -> None:
    sources = {"tools": {"embedded": card("tools")}}
    for changes in ({}, {"max_seq_len": 150, "long_rows": "drop"}, {"max_seq_len": 99, "long_rows": "truncate"}):
        live = module(tiny_tokenizer, sources=sources, **changes)
        kept = module(tiny_tokenizer, sources=sources, **changes, cache=TokenCache(tmp_path))
        live.setup()
        kept.setup()
        kept.keep()
        assert kept.data_sha256 == live.data_sha256
        assert kept.summary() == live.summary()
    assert len(entries(tmp_path)) == 1
    with pytest.raises(NexusError) as caught:
        module(tiny_tokenizer, sources=sources, max_seq_len=99, cache=TokenCache(tmp_path)).setup()
    assert caught.value.code == "E-LEN-01"


def test_the_key_sees_what_changes_rows_and_nothing_else(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write_rows(path, 20)

    def key(stage: str = "fit", **changes: Any) -> str:
        return cache_key(module(tokenizer, **{"train": str(path)} | changes)._identity(stage))

    base = key()
    same = {"max_seq_len": 9, "long_rows": "drop", "packing": False, "shuffle": False, "epochs": 9, "num_proc": 7}
    same |= {"global_batch_size": 1, "micro_batch_size": 1, "max_steps": 3, "max_bad_rows": 5}
    assert {key(**{name: value}) for name, value in same.items()} == {base}
    different = {
        "view": key(view="prompts"),
        "counting": key(count_tokens="all"),
        "seed": key(seed=1),
        "share": key(validation_fraction=0.5),
        "card": key(sources={"tools": {"x": card("tools")}}),
        "card seed": key(sources={"tools": {"x": card("tools", seed=2)}}),
        "limit": key(rows_per_source=3),
        "stage": key("test"),
    }
    path.write_text(path.read_text().replace("What", "Wham"))
    different["content"] = key()
    path.write_text(path.read_text().replace("Wham", "What"))
    assert key() == base
    tokenizer.chat_template += " "
    different["template"] = key()
    tokenizer.add_tokens(["<|new|>"])
    different["tokens"] = key()
    assert len({base, *different.values()}) == len(different) + 1, different


def test_the_key_sees_the_order_of_sources(tokenizer: Any) -> None:
    """Their rows stand in that order, and the order in which columns are renamed decides about their content."""
    one, other = {"a": card("tools")}, {"b": card("cot")}
    fields = card("tools", fields={"prompt": "x", "completion": "prompt"})
    turned = fields | {"fields": {"completion": "prompt", "prompt": "x"}}
    keys = {
        cache_key(module(tokenizer, sources={"tools": sources})._identity("fit"))
        for sources in (one | other, other | one, {"a": fields}, {"a": turned}, {"a": card("tools", weight=2.0)})
    }
    assert len(keys) == 5


def test_a_mixture_comes_back_as_it_was(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, limits, held-out shares, Parquet, own files and a repository's copy: the same with and without cache."""
    rows = [{"prompt": f"Say {i}", "completion": str(i)} for i in range(30)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "copy").mkdir()
    write_rows(tmp_path / "copy" / "train.jsonl", 12)
    files = {"kind": "files", "roles": ["train"], "rows": None, "revision": None, "config": None, "split": "train"}
    sources = {
        OWN_SOURCES: {
            "a": card("", name="a", **files | {"path": [write_rows(tmp_path / "a.jsonl", 20)], "weight": 2.5}),
            "b": card("", name="b", **files | {"path": str(tmp_path / "b.parquet"), "weight": 0.5, "rows": 20}),
            "c": card("", name="c", **files | {"kind": "hub", "path": str(tmp_path / "copy")}),
        },
        "tools": {"tools": card("tools")},
    }
    settings: dict[str, Any] = {"sources": sources, "train": write_rows(tmp_path / "own.jsonl", 10)}
    live = module(tiny_tokenizer, **settings)
    live.setup()
    assert live.summary()["sources"] == {"own files": 9, "a": 45, "b": 9, "c": 11, "nexus_tools": 30}
    for said in ("miss: ", "hit: "):
        kept = module(tiny_tokenizer, **settings, cache=TokenCache(tmp_path / "cache"))
        kept.setup()
        kept.keep()
        assert said in capsys.readouterr().err
        assert list(kept.rows) == list(live.rows)
        assert list(kept.held_out_rows) == list(live.held_out_rows)
        assert kept.summary() == live.summary()
    for path in ("a.jsonl", "copy/train.jsonl", "own.jsonl"):  # one character of one row
        file = tmp_path / path
        file.write_text(file.read_text().replace("follows 3", "follows 4"))
        module(tiny_tokenizer, **settings, cache=TokenCache(tmp_path / "cache")).setup()
        assert "miss: " in capsys.readouterr().err
    datasets.Dataset.from_list(rows[::-1]).to_parquet(tmp_path / "b.parquet")
    module(tiny_tokenizer, **settings, cache=TokenCache(tmp_path / "cache")).setup()
    assert "miss: " in capsys.readouterr().err


def test_held_out_rows_of_a_shared_file_are_as_strict_from_the_cache(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write_rows(path, 6)
    path.write_text("oops\n" + path.read_text())
    files = card("", kind="files", path=str(path), eval_rows=2, name="mine", rows=None)
    for limit in (5, 0):
        corpus = module(
            tiny_tokenizer, sources={OWN_SOURCES: {"m": files}}, max_bad_rows=limit, cache=TokenCache(tmp_path / "c")
        )
        with nullcontext() if limit else pytest.raises(NexusError, match="not valid JSON"):
            corpus.setup("test")
        corpus.keep()
    assert len(entries(tmp_path / "c")) == 1


def test_a_first_look_comes_before_reading_and_counts_nothing(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write_rows(path, 20)
    path.write_text("oops\n" + path.read_text() + "oops\n")
    looks = []
    for _ in range(2):
        corpus = module(tiny_tokenizer, train=str(path), max_bad_rows=2, cache=TokenCache(tmp_path / "c"))
        corpus.setup("fit", before_reading=lambda: looks.append(corpus.sample(4)))  # noqa: B023  called at once
        corpus.keep()
        assert corpus.summary()["bad_rows"] == 2
    assert [len(look.rows) for look in looks] == [4]  # the second start had the rows


@pytest.mark.parametrize(
    ("template", "clock"),
    [
        ("{{ messages }}", []),
        ("{{ strftime_now('%d') }}", ["2026-07-04", "04"]),
        ('{% if strftime_now is defined %}{{ strftime_now( "%d %b %Y" ) }}{% endif %}', ["2026-07-04", "04 Jul 2026"]),
        ("{{ strftime_now('%d') }}{{ strftime_now('%H') }}", ["2026-07-04", "04", "13"]),
        ("{{ strftime_now(form) }}{{ strftime_now('%d') }}", ["2026-07-04T13:05:06"]),
        ("{{ strftime_now('%d') }}{% set now = strftime_now %}{{ now('%S') }}", ["2026-07-04T13:05:06"]),
        ({"default": "{{ strftime_now('%H') }}", "tool_use": ""}, ["2026-07-04", "13"]),
    ],
)
def test_a_template_that_writes_the_time_is_kept_as_long_as_it_writes_the_same(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str | dict[str, str], clock: list[str]
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Noon":
            return cls(2026, 7, 4, 13, 5, 6, tzinfo=tz)

    monkeypatch.setattr("nexus.data.token_cache.datetime", Noon)
    tokenizer.chat_template = template
    assert tokenizer_identity(tokenizer)["clock"] == clock


def test_the_key_sees_how_special_tokens_in_texts_are_read(tokenizer: Any) -> None:
    """That setting lies in the Rust tokenizer, which does not write it down."""
    plain, text = tokenizer_identity(tokenizer), f"a{tokenizer.eos_token}"
    before = tokenizer(text)["input_ids"]
    tokenizer.split_special_tokens = True
    assert tokenizer(text)["input_ids"] != before
    other = tokenizer_identity(tokenizer)
    assert other["backend"] == plain["backend"]
    assert other != plain


def test_the_key_knows_all_code_that_makes_rows() -> None:
    """What reading and tokenizing imports of Nexus is hashed, but for what only finds files and writes entries."""
    script = (
        "import sys, nexus.data.corpus, nexus.data.synthetic as s\n"
        "[s.GENERATORS[name] for name in s.GENERATORS]\n"
        "print(*(f'{n} {m.__file__}' for n, m in sys.modules.items() if n.split('.')[0] == 'nexus'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    modules = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(modules) > 25
    elsewhere = {name for name in modules if name.split(".")[1:2] not in (["data"], ["text"])} - {"nexus"}
    assert elsewhere == {"nexus.types", "nexus.errors", "nexus.config", "nexus.config.folders", "nexus.storage",
                         "nexus.storage.atomic", "nexus.storage.locks", "nexus.storage.manifest"}  # fmt: skip
    assert set(_code()) == {"nexus", "python", "transformers", "tokenizers", "jinja2", "numpy", "datasets", "pyarrow"}


def test_a_source_that_may_change_is_never_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = card("", kind="hub", revision="main", path="owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert source_identity([], [hub]) is None
    assert source_identity([], [hub | {"revision": None}]) is None
    assert source_identity([], [hub | {"revision": "a" * 40}]) == ["a" * 40]
    assert TokenCache(tmp_path / "c").fetch(lambda: None, some_rows).rows == some_rows().rows
    assert "not used" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text("{}")
    before = source_identity([str(tmp_path / "folder")], [])
    assert source_identity([], [hub | {"path": str(tmp_path / "folder")}]) == before
    monkeypatch.setenv("HOME", str(tmp_path))  # a copy that lies here is read whatever revision the card names
    assert source_identity([], [hub | {"path": "~/folder", "revision": "a" * 40}]) == before
    (tmp_path / "folder" / "b.jsonl").write_text("{}")
    assert source_identity([str(tmp_path / "folder")], []) != before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert source_identity([str(tmp_path / "folder")], []) is None


def test_rows_of_a_file_that_changes_while_it_is_read_are_not_kept(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their key was made of the content before: kept, they would come back for it."""
    path = tmp_path / "own.jsonl"
    before = Path(write_rows(path, 6)).read_text()
    corpus = module(tiny_tokenizer, train=str(path), cache=TokenCache(tmp_path / "c"))
    corpus.setup("fit", before_reading=lambda: path.write_text(before * 2) and None)
    corpus.keep()
    assert "W-DAT-41  not kept" in capsys.readouterr().err
    path.write_text(before)
    again = module(tiny_tokenizer, train=str(path), cache=TokenCache(tmp_path / "c"))
    again.setup("fit")
    assert (len(corpus.rows), len(again.rows)) == (10, 5)  # one content of six is held out, with its copy
    assert "miss" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["rows.input_ids.npy", "rows.json", "manifest.json", "held_out_rows.names.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "pickle"])
def test_damaged_entries_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    cache = TokenCache(tmp_path)
    cache.fetch(lambda: {"a": 1}, some_rows)
    cache.keep()
    [entry] = entries(tmp_path)
    victim = entry / file
    content = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if file != "manifest.json" else b"[" + content)
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        victim.unlink()
    else:
        np.save(victim.with_suffix(".x.npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
        victim.with_suffix(".x.npy").rename(victim)
    capsys.readouterr()
    found = cache.fetch(lambda: {"a": 1}, some_rows)
    cache.keep()
    assert found.rows == some_rows().rows
    said = capsys.readouterr().err
    assert "damaged entry is made again" in said
    assert "kept for the next time" in said
    again = cache.fetch(lambda: {"a": 1}, refuse)
    assert again.rows == some_rows().rows
    assert [str(error) for error in again.bad_rows] == [str(error) for error in some_rows().bad_rows]
    assert again.bad_rows[0].status == 9
    assert "hit" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TokenCache(tmp_path / "file" / "tokens")
    rows = cache.fetch(dict, some_rows)
    cache.keep()
    assert rows.rows == some_rows().rows
    assert "W-DAT-40  not kept" in capsys.readouterr().err


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from nexus.data.token_cache import CorpusRows, TokenCache
from nexus.data.token_rows import TokenRows
from nexus.types import TokenizedExample
def build():
    print("building", flush=True)
    sys.stdin.readline()
    rows = [TokenizedExample(str(n), "s", [n] * 50, [True] * 50) for n in range(2000)]
    return CorpusRows(TokenRows.of(rows), TokenRows.of(()), [])
cache = TokenCache(Path(sys.argv[1]))
print(cache.fetch(lambda: {"a": 2}, build).rows.sha256())
cache.keep()
"""


def writer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def test_two_writers_at_once_and_one_that_was_killed(tmp_path: Path) -> None:
    leftover = tmp_path / ".tmp-0123-99999-1"
    leftover.mkdir()
    (leftover / "rows.input_ids.npy").write_bytes(b"half")
    both = [writer(tmp_path), writer(tmp_path)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
    results = [process.communicate("go\n", timeout=300) for process in both]
    assert results[0][0] == results[1][0]
    said = " ".join(errors for _, errors in results)
    assert said.count("kept for the next time") == 1
    assert said.count("another process kept the same rows") == 1
    [entry] = entries(tmp_path)
    assert not leftover.exists()
    assert json.loads((entry / "rows.json").read_text())["sources"]["rows"] == ["s"]


def test_a_writer_killed_at_any_moment_leaves_nothing_half(tmp_path: Path) -> None:
    code = _WRITER.replace(
        "cache = TokenCache", "import nexus.data.token_cache as t, os, signal\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.write_manifest = die\n"
        "cache = TokenCache",
    )  # fmt: skip
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input="go\n",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [path.name.startswith(".tmp-") for path in entries(tmp_path)] == [True]
    cache = TokenCache(tmp_path)
    cache.fetch(lambda: {"a": 1}, some_rows)
    cache.keep()
    assert [path.name.startswith(".tmp-") for path in entries(tmp_path)] == [False]
