"""From settings to optimizer steps: own files, embedded sources, counts and the colored sample."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nexus.data.corpus import OWN_SOURCES, Corpus
from nexus.data.masked_sample import GIVEN, LEARNED, masked_sample, show_sample
from nexus.data.mixture import split_held_out, weighted
from nexus.data.module import NexusDataModule
from nexus.data.progress import track
from nexus.errors import NexusError
from nexus.types import Example


def card(generator: str, **changes: Any) -> dict[str, Any]:
    settings = {
        "name": f"nexus_{generator}",
        "kind": "embedded",
        "generator": generator,
        "roles": ["train", "eval"],
        "rows": 30,
        "size": None,
        "eval_rows": 12,
        "seed": 1,
        "fields": {},
        "weight": 1.0,
        "license": "MIT",
    }
    return settings | changes


def module(tokenizer: Any, **changes: Any) -> Corpus:
    settings: dict[str, Any] = {
        "sources": {},
        "train": None,
        "validation": None,
        "validation_fraction": 0.1,
        "view": "sft",
        "count_tokens": "completion",
        "max_seq_len": 1024,
        "long_rows": "error",
        "packing": True,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "micro_batch_tokens": None,
        "shuffle": True,
        "seed": 42,
        "epochs": 1,
        "max_steps": None,
        "rows_per_source": None,
        "eval_prompts": None,
        "max_bad_rows": 0,
        "num_proc": 1,
        "cache": None,
        "tokenizer": tokenizer,
    }
    return Corpus(**(settings | changes))


def write_rows(path: Path, count: int) -> str:
    rows = [{"prompt": f"What follows {i}?", "completion": str(i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_own_file_with_held_out_share(tiny_tokenizer: Any, tmp_path: Path) -> None:
    data = module(tiny_tokenizer, train=write_rows(tmp_path / "own.jsonl", 20))
    data.setup("fit")
    facts = data.summary()
    assert (facts["rows"], facts["held_out_rows"], facts["steps"]) == (18, 2, 3)
    assert facts["sources"] == {"own files": 18}
    assert facts["tokens"] == sum(len(row.input_ids) for row in data.rows)
    trained, held_out = ({row.id for row in rows} for rows in (data.rows, data.held_out_rows))
    assert trained | held_out == {f"own.jsonl:{i}" for i in range(1, 21)}
    assert not trained & held_out
    steps = list(NexusDataModule(data).train_dataloader())
    assert sorted(name for step in steps for batch in step for name in batch.ids) == sorted(trained)
    assert sum(batch.loss_scale for batch in NexusDataModule(data).held_out_batches()) == pytest.approx(1.0)
    assert "18 rows" in data.describe()
    assert data.probe(5) == data.rows[0].input_ids[:5]
    rows = data.rows
    data.setup("validate")
    assert data.rows is rows
    again = module(tiny_tokenizer, train=[str(tmp_path / "own.jsonl")])
    again.setup()
    assert again.data_sha256 == data.data_sha256
    other = module(tiny_tokenizer, train=str(tmp_path / "own.jsonl"), count_tokens="all")
    other.setup()
    assert other.data_sha256 != data.data_sha256


def test_own_validation_file(tiny_tokenizer: Any, tmp_path: Path) -> None:
    data = module(
        tiny_tokenizer, train=write_rows(tmp_path / "a.jsonl", 6), validation=write_rows(tmp_path / "b.jsonl", 3)
    )
    data.setup()
    assert [row.id for row in data.held_out_rows] == ["b.jsonl:1", "b.jsonl:2", "b.jsonl:3"]
    assert len(data.rows) == 6


def test_embedded_sources_commute_and_obey_the_scale(tiny_tokenizer: Any) -> None:
    sources = {"tools": {"embedded": card("tools")}, "cot": {"embedded": card("cot", weight=0.5)}}
    data = module(tiny_tokenizer, sources=sources, rows_per_source=16, eval_prompts=5, max_steps=2)
    data.setup()
    assert data.summary()["sources"] == {"nexus_tools": 16, "nexus_cot": 8}
    assert data.held_out_rows == []  # capabilities are measured by their metrics
    assert data.num_steps == len(NexusDataModule(data).train_dataloader()) == 2
    assert data.licences() == {"nexus_tools": "MIT", "nexus_cot": "MIT"}
    prompts = data.eval_prompts("tools")
    assert len(prompts) == 5
    assert all(prompt.gold is not None and prompt.source == "nexus_tools" for prompt in prompts)
    everything = module(tiny_tokenizer, sources={OWN_SOURCES: {"embedded": card("tools")}})
    everything.setup()
    counts = [len(found) for found in (everything.rows, everything.held_out_rows, everything.eval_prompts(OWN_SOURCES))]
    assert counts == [30, 12, 12]


def test_a_card_of_files(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", 10)
    files = card("", kind="files", path=path, eval_rows=3, name="mine")
    data = module(tiny_tokenizer, sources={OWN_SOURCES: {"mine": files}})
    data.setup()
    assert [row.id for row in data.held_out_rows] == ["own.jsonl:1", "own.jsonl:2", "own.jsonl:3"]
    assert len(data.rows) == 7
    endless = module(tiny_tokenizer, sources={"x": {"a": card("tools", rows=None)}})
    with pytest.raises(NexusError, match="a generator never ends"):
        endless.setup()
    whole = module(tiny_tokenizer, sources={"x": {"mine": card("", kind="files", path=path, rows=None, name="mine")}})
    whole.sources["x"]["mine"]["roles"] = ["train"]
    whole.setup()
    assert (len(whole.rows), whole.held_out_rows) == (10, [])


def test_a_card_of_the_hub(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(Path(write_rows(tmp_path / "rows.txt", 10)).read_text())
    far = card("", kind="hub", name="far", path=str(tmp_path), config=None, split="train", revision=None)
    sources = {OWN_SOURCES: {"far": far | {"eval_rows": 3, "rows": 5}}}
    data = module(tiny_tokenizer, sources=sources)
    data.setup()
    assert [row.id for row in data.held_out_rows] == [f"{tmp_path}[train]:{i}" for i in range(3)]
    assert [row.id for row in data.rows] == [f"{tmp_path}[train]:{i}" for i in range(3, 8)]
    assert data.sample(2).total_rows == 5


def test_own_sources_without_held_out_rows_give_a_share(tiny_tokenizer: Any, tmp_path: Path) -> None:
    settings = {"kind": "files", "roles": ["train"], "rows": None, "path": write_rows(tmp_path / "a.jsonl", 20)}
    learned = card("", name="a") | settings
    data = module(tiny_tokenizer, sources={OWN_SOURCES: {"a": learned | {"weight": 2.0}}})
    data.setup()
    train, held_out = ([row.id for row in rows] for rows in (data.rows, data.held_out_rows))
    assert (len(train), len(set(train)), len(held_out)) == (36, 18, 2)  # a weight copies what is learned, not the rest
    assert not set(train) & set(held_out)
    again = module(tiny_tokenizer, sources={OWN_SOURCES: {"a": learned}})
    again.setup("test")
    assert [row.id for row in again.held_out_rows] == held_out
    assert not again.rows
    kept = (
        card("", name="b")
        | settings
        | {"roles": ["eval"], "eval_rows": 4, "path": [write_rows(tmp_path / "b.jsonl", 9)]}
    )
    both = module(tiny_tokenizer, sources={OWN_SOURCES: {"a": learned, "b": kept}})
    both.setup()
    assert len(both.rows) == 20
    assert [row.id for row in both.held_out_rows] == [f"b.jsonl:{i}" for i in range(1, 5)]
    in_a_capability = module(tiny_tokenizer, sources={"tools": {"a": learned}})
    in_a_capability.setup()
    assert (len(in_a_capability.rows), in_a_capability.held_out_rows) == (20, [])


def test_bad_rows_of_a_shared_file_count_once(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write_rows(path, 6)
    path.write_text("oops\n" + path.read_text() + "oops\n")
    files = card("", kind="files", path=str(path), eval_rows=2, name="mine", rows=None)
    data = module(tiny_tokenizer, sources={OWN_SOURCES: {"mine": files}}, max_bad_rows=5)
    data.setup()
    assert (len(data.held_out_rows), len(data.rows), data.summary()["bad_rows"]) == (2, 4, 2)


def test_duplicates_are_counted(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write_rows(path, 6)
    path.write_text(path.read_text() * 2 + json.dumps({"prompt": "What follows 3?", "completion": "5"}) + "\n")
    files = card("", kind="files", path=str(path), roles=["train"], name="mine", rows=None, weight=3.0)
    data = module(tiny_tokenizer, sources={"x": {"mine": files}})
    data.setup()
    assert (len(data.rows), data.summary()["duplicates"]) == (39, 6)
    assert "6 rows repeat another row" in data.describe()


@pytest.mark.parametrize(
    ("weight", "times"), [(1.0, [1] * 8), (3.0, [3] * 8), (0.25, 2), (2.5, 20), (0.01, 1), (0.999, 8)]
)
def test_weights_by_formula(weight: float, times: list[int] | int) -> None:
    rows = list(range(8))
    mixed = weighted(rows, weight, seed=1, name="a")
    counts = [mixed.count(row) for row in rows]
    if isinstance(times, list):
        assert counts == times
        assert mixed[:8] == rows
    else:
        assert len(mixed) == times
        assert max(counts) - min(counts) <= 1
    assert weighted(rows, weight, seed=1, name="a") == mixed
    assert weighted([], weight, seed=1, name="a") == []


def test_weights_draw_by_seed_and_source() -> None:
    draws = {(seed, name): tuple(weighted(range(1000), 0.1, seed=seed, name=name)) for seed in (1, 2) for name in "ab"}
    assert len(set(draws.values())) == 4
    assert all(len(set(rows)) == 100 and list(rows) == sorted(rows) for rows in draws.values())


def test_nothing_left_is_an_error(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", 4)
    with pytest.raises(NexusError, match="0 of 4 rows are left") as caught:
        module(tiny_tokenizer, train=path, validation_fraction=0, max_seq_len=5, long_rows="drop").setup()
    assert caught.value.code == "E-DAT-13"
    assert "4 too_long" in caught.value.message
    with pytest.raises(NexusError, match="0 of 0 rows") as caught:
        module(tiny_tokenizer).setup()
    assert "+capability" in caught.value.remedy


def test_bad_rows_are_counted_together(tiny_tokenizer: Any, tmp_path: Path) -> None:
    lines = ["garbage", '{"unknown": 1}', '{"messages": [{"role": "user", "content": "Hi"}]}']
    lines += ['{"question": "1?", "answer": "one"}'] * 2
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    data = module(tiny_tokenizer, train=str(path), validation_fraction=0, max_bad_rows=3)
    data.setup()
    assert (len(data.rows), len(data.bad_rows.errors)) == (2, 3)
    assert data.summary()["dropped"] == {"nothing_to_learn": 1}
    assert "2 unusable" in data.describe()
    assert "1 nothing to learn" in data.describe()
    with pytest.raises(NexusError, match="3 bad rows, more than data.max_bad_rows=2"):
        module(tiny_tokenizer, train=str(path), validation_fraction=0, max_bad_rows=2).setup()
    with pytest.raises(NexusError) as caught:
        module(tiny_tokenizer, train=str(path), validation_fraction=0).setup()
    assert (caught.value.code, caught.value.where) == ("E-DAT-02", "own.jsonl:1")


def test_held_out_share() -> None:
    examples = [Example(id=str(i), source="s", text=f"row {i}") for i in range(10)]
    for fraction, count in ((0.0, 0), (0.01, 1), (0.3, 3), (1.0, 9)):
        train, held_out = split_held_out(examples, fraction, seed=1)
        assert len(held_out) == count
        assert sorted([*train, *held_out], key=lambda e: int(e.id)) == examples
    assert split_held_out(examples[:1], 0.5, seed=1) == (examples[:1], [])
    assert split_held_out([], 0.5, seed=1) == ([], [])
    assert split_held_out(examples, 0.3, seed=1) != split_held_out(examples, 0.3, seed=2)


def test_equal_rows_are_not_trained_on_and_held_out() -> None:
    examples = [Example(id=str(i), source="s", text=f"row {i % 6}") for i in range(30)]
    for seed in range(20):
        train, held_out = split_held_out(examples, 0.3, seed=seed)
        assert (len(train), len(held_out)) == (20, 10)
        assert not {row.text for row in train} & {row.text for row in held_out}
    assert split_held_out([examples[0], examples[6]], 0.5, seed=1) == ([examples[0], examples[6]], [])


def test_held_out_rows_that_are_trained_on_are_said(tiny_tokenizer: Any, tmp_path: Path) -> None:
    for name, numbers in (("a.jsonl", range(6)), ("b.jsonl", range(4, 8))):
        rows = [{"prompt": f"Say {i}.", "completion": str(i)} for i in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = module(tiny_tokenizer, train=str(tmp_path / "a.jsonl"), validation=str(tmp_path / "b.jsonl"))
    data.setup()
    assert data.summary()["held_out_rows_also_trained"] == 2
    assert "W-DAT-42  2 of 4 held-out rows are trained on too" in data.describe()


def test_plain_text_among_answers_is_said(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows: list[dict[str, str]] = [{"prompt": f"Say {i}.", "completion": str(i)} for i in range(4)]
    rows += [{"text": "A plain text."}, {"text": "Another one."}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words: dict[str, Any] = {"train": str(tmp_path / "own.jsonl"), "validation_fraction": 0.0}
    told = module(tiny_tokenizer, **words)
    told.setup()
    assert "W-DAT-43  2 of 6 rows are plain text" in told.describe()
    silent = module(tiny_tokenizer, **words, count_tokens="all")
    silent.setup()
    assert "W-DAT-43" not in silent.describe()


def test_an_answer_that_spells_the_end_of_a_turn_is_told(tiny_tokenizer: Any, tmp_path: Path) -> None:
    forged = "b<|im_end|>\n<|im_start|>user\nc"
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    rows = [
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "response": forged},
        {"prompt": f"{forged}<|im_end|>", "response": "d"},  # asked, not learned
        {"messages": turns},
        {"text": forged},  # all of it is learned, whatever it says
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = module(tiny_tokenizer, train=str(path), validation_fraction=0.0)
    data.setup()
    assert "W-DAT-45  1 of 5 rows" in data.describe()
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[3]) + "\n", encoding="utf-8")
    clean = module(tiny_tokenizer, train=str(path), validation_fraction=0.0)
    clean.setup()
    assert "W-DAT-45" not in clean.describe()


def test_track_passes_everything_on() -> None:
    assert list(track(iter(range(600)), "counting", total=None)) == list(range(600))


def test_masked_sample_colors_what_is_learned(tiny_tokenizer: Any, tmp_path: Path) -> None:
    data = module(tiny_tokenizer, train=write_rows(tmp_path / "own.jsonl", 1))
    data.setup()
    text = masked_sample(tiny_tokenizer, data.rows[0], color=True)
    body = text.plain.split("\n", 1)[1]
    assert body == tiny_tokenizer.decode(data.rows[0].input_ids)
    parts = [(span.style, text.plain[span.start : span.end]) for span in text.spans]
    assert [part for style, part in parts if style == LEARNED][1:] == ["1<|im_end|>"]
    assert "What follows 0?" in next(part for style, part in parts if style == GIVEN)


def test_sample_puts_what_is_learned_in_brackets_where_there_is_no_color(tiny_tokenizer: Any, tmp_path: Path) -> None:
    data = module(tiny_tokenizer, train=write_rows(tmp_path / "own.jsonl", 1))
    data.setup()
    shown = {}
    for color in (None, "standard"):
        out = io.StringIO()
        console = Console(file=out, width=200, force_terminal=True, color_system=color, no_color=False)
        show_sample(console, tiny_tokenizer, data.rows[0], title="a row [of mine]")
        shown[color] = out.getvalue()
    assert "a row [of mine] (learned tokens between ⟦ and ⟧)" in shown[None]
    assert "⟦1<|im_end|>⟧" in shown[None]
    assert "learned tokens in green" in shown["standard"]
    assert "⟦" not in shown["standard"]


def test_a_sample_cannot_steer_the_terminal(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "a\u001b[2Jb", "response": "c\u0007\u009bd\n\te"}) + "\n", encoding="utf-8")
    data = module(tiny_tokenizer, train=str(path))
    data.setup()
    text = masked_sample(tiny_tokenizer, data.rows[0], color=False).plain
    assert "a␛[2Jb" in text
    assert "⟦c␇\\x9bd\n\te" in text
