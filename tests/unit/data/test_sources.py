"""Files are read with a place for every row, and every damage has a code and a place."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from nexus.data.formats import to_example
from nexus.data.hub import read_hub
from nexus.data.sources import BadRows, data_files, generate_rows, read_file, read_path
from nexus.errors import NexusError

GOOD = {"prompt": "a", "completion": "b"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, limit: int = 0) -> list[tuple[str, dict]]:
    return list(read_file(path, BadRows(limit)))


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", json.dumps(GOOD) + "\n\n" + json.dumps(GOOD), ["a.jsonl:1", "a.jsonl:3"]),
        ("a.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), ["a.jsonl:1"]),
        ("a.json", json.dumps([GOOD, GOOD]), ["a.json:row 1", "a.json:row 2"]),
        ("a.csv", 'prompt,completion\na,b\n"a",b\n', ["a.csv:2", "a.csv:3"]),
        ("a.tsv", "prompt\tcompletion\na\tb\n", ["a.tsv:2"]),
        ("a.json", json.dumps({"x": GOOD, "7": GOOD}), ["a.json:x", "a.json:7"]),
        ("a.jsonl.gz", gzip.compress(json.dumps(GOOD).encode() + b"\n", mtime=0), ["a.jsonl.gz:1"]),
        ("a.json.gz", gzip.compress(json.dumps([GOOD]).encode(), mtime=0), ["a.json.gz:row 1"]),
        ("a.csv.gz", gzip.compress(b"prompt,completion\na,b\n", mtime=0), ["a.csv.gz:2"]),
    ],
)
def test_good_files(tmp_path: Path, name: str, content: str | bytes, places: list[str]) -> None:
    rows = read(write(tmp_path, name, content))
    assert [place for place, _ in rows] == places
    assert all(row == GOOD for _, row in rows)


def test_csv_cells_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "a.csv", 'prompt,completion\n"x, ""y""\nz",b\nlast,row\n'))
    assert rows == [
        ("a.csv:2", {"prompt": 'x, "y"\nz', "completion": "b"}),
        ("a.csv:4", {"prompt": "last", "completion": "row"}),
    ]


def test_text_gives_a_row_for_each_paragraph(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "a.txt", "one\ntwo\n\n\nthree\n"))
    assert rows == [("a.txt:1", {"text": "one\ntwo"}), ("a.txt:5", {"text": "three"})]


@pytest.mark.parametrize(
    ("name", "content", "code", "where", "words"),
    [
        ("a.jsonl", json.dumps(GOOD) + '\n{"prompt": oops}\n', "E-DAT-02", "a.jsonl:2", "oops"),
        ("a.jsonl", json.dumps(GOOD) + '\n{"prompt": "cut', "E-DAT-02", "a.jsonl:2", "cut"),
        ("a.jsonl", "[" + json.dumps(GOOD) + "]", "E-DAT-08", "a.jsonl:1", "array"),
        ("a.jsonl", json.dumps(GOOD) + "\n3\n", "E-DAT-05", "a.jsonl:2", "int"),
        ("a.jsonl", json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}', "E-DAT-06", "a.jsonl:2", "byte 15"),
        ("a.jsonl", '{"prompt": NaN}', "E-DAT-07", "a.jsonl:1", "NaN"),
        ("a.jsonl", "", "E-DAT-04", "a.jsonl", "no rows"),
        ("a.jsonl", "\n\n", "E-DAT-04", "a.jsonl", "no rows"),
        ("a.json", "", "E-DAT-04", "a.json", "no rows"),
        ("a.json", "[]", "E-DAT-04", "a.json", "no rows"),
        ("a.json", "{}\n{}", "E-DAT-08", "a.json:2", "more than one"),
        ("a.json", '{"data": []}', "E-DAT-08", "a.json", "data"),
        ("a.json", '[{"a": 1},\n{"a" 2}]', "E-DAT-02", "a.json:2", "column 6"),
        ("a.json", "[1]", "E-DAT-05", "a.json:row 1", "int"),
        ("a.csv", "prompt,completion\na,b,c\n", "E-DAT-02", "a.csv:2", "3 cells"),
        ("a.csv", "prompt,completion\na\n", "E-DAT-02", "a.csv:2", "1 cells"),
        ("a.csv", "prompt;completion\na, b;c\n", "E-DAT-02", "a.csv:1", "separated by ';'"),
        ("a.tsv", "prompt,completion\na,b\n", "E-DAT-02", "a.tsv:1", "separated by ','"),
        ("a.csv", "prompt,prompt,completion\na,b,c\n", "E-DAT-02", "a.csv:1", "names 'prompt' more than once"),
        ("a.tsv", "prompt\tcompletion\tcompletion\na\tb\tc\n", "E-DAT-02", "a.tsv:1", "'completion' more than once"),
        ("a.csv", "prompt,completion\n", "E-DAT-04", "a.csv", "no rows"),
        ("a.parquet", "PAR1", "E-DAT-10", "a.parquet", "damaged"),
        ("a.parquet.gz", "PAR1", "E-DAT-08", "a.parquet.gz", ".gz"),
        ("a.xlsx", "PK", "E-DAT-08", "a.xlsx", ".xlsx"),
        ("a.jsonl.gz", b"{}", "E-DAT-10", "a.jsonl.gz", "gzip file is damaged"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9, mtime=0)[:-9], "E-DAT-10", "a.jsonl.gz", "gzip file is damaged"),
    ],
)
def test_damage_has_a_code_and_a_place(
    tmp_path: Path, name: str, content: str | bytes, code: str, where: str, words: str
) -> None:
    with pytest.raises(NexusError) as caught:
        read(write(tmp_path, name, content))
    assert caught.value.code == code
    assert caught.value.where.endswith(where)
    assert words in caught.value.message
    assert caught.value.remedy
    assert caught.value.status == 65


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "chats.jsonl", "{}")
    with pytest.raises(NexusError, match=r"did you mean chats\.jsonl") as caught:
        read(tmp_path / "chat.jsonl")
    assert (caught.value.code, caught.value.status) == ("E-DAT-01", 66)
    with pytest.raises(NexusError, match="folder does not exist"):
        read(tmp_path / "nowhere" / "chat.jsonl")


def test_some_bad_rows_may_be_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "oops\n" + json.dumps(GOOD) + "\noops\n")
    allowed = BadRows(2)
    assert [place for place, _ in read_file(path, allowed)] == ["a.jsonl:2"]
    assert [error.where for error in allowed.errors] == ["a.jsonl:1", "a.jsonl:3"]
    with pytest.raises(NexusError, match="2 bad rows, more than data.max_bad_rows=1") as caught:
        read(path, limit=1)
    assert caught.value.code == "E-DAT-15"


def test_generators_by_name() -> None:
    rows = list(generate_rows("tools", view="sft", split="train", count=3, seed=1))
    assert len(rows) == 3
    assert all("messages" in row for _, row in rows)
    assert len({place for place, _ in rows}) == 3
    with pytest.raises(NexusError, match="did you mean tools"):
        list(generate_rows("tool", view="sft", split="train", count=3, seed=1))


def test_parquet_is_read_as_pandas_wrote_it(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"prompt": [f"p{i}" for i in range(2500)], "completion": ["é\n"] * 2500, "n": range(2500)})
    frame.to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [row for _, row in rows] == frame.to_dict("records")
    assert (rows[0][0], rows[-1][0]) == ("a.parquet:row 1", "a.parquet:row 2500")


def test_nulls_that_arrow_fills_in_are_taken_out_again(tmp_path: Path) -> None:
    def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"function": {"name": name, "arguments": arguments}}
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": turns}

    written = [row("f", {"a": 1}), row("g", {"b": [{"c": 2}, {"d": 3}]})]
    pandas.DataFrame(written).to_parquet(tmp_path / "a.parquet")
    filled = pandas.read_parquet(tmp_path / "a.parquet")["messages"][0][1]["tool_calls"][0]["function"]["arguments"]
    assert filled == {"a": 1, "b": None}, "Arrow no longer fills structs, so this reader need not undo it"
    examples = [
        to_example(found, place=place, source="s", view="sft", fields={})
        for place, found in read(tmp_path / "a.parquet")
    ]
    calls = [example.messages[1]["tool_calls"][0]["function"]["arguments"] for example in examples]
    assert calls == [{"a": 1}, {"b": [{"c": 2}, {"d": 3}]}]


def test_folders_are_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/two.jsonl", "a/one.jsonl", ".git/x.jsonl", "a/.hidden.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, json.dumps(GOOD) + "\n")
    write(tmp_path, "c.csv", "prompt,completion\na,b\n")
    rows = list(read_path(tmp_path, BadRows(0)))
    assert [place for place, _ in rows] == ["a/one.jsonl:1", "b/two.jsonl:1", "c.csv:2"]
    assert all(row == GOOD for _, row in rows)
    assert [place for place, _ in read_path(tmp_path / "c.csv", BadRows(0))] == ["c.csv:2"]


@pytest.mark.parametrize("names", [["data/train-0.jsonl", "data/test-0.jsonl"], ["a.jsonl", "validation/a.jsonl"]])
def test_folders_that_mix_splits_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, json.dumps(GOOD) + "\n")
    with pytest.raises(NexusError, match="1 of its 2 files are named for evaluation") as caught:
        list(read_path(tmp_path, BadRows(0)))
    assert (caught.value.code, caught.value.status) == ("E-DAT-17", 65)
    (tmp_path / names[0]).unlink()
    assert len(data_files(tmp_path)) == 1  # one split alone is what the user named
    (tmp_path / "contest.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / names[1]).unlink()
    assert len(data_files(tmp_path)) == 1, "contest is no test"


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "# nothing")
    with pytest.raises(NexusError, match="holds no data file") as caught:
        list(read_path(tmp_path, BadRows(0)))
    assert (caught.value.code, caught.value.status) == ("E-DAT-01", 66)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A local copy of a repository of the hub: two splits in Parquet files."""
    (tmp_path / "data").mkdir()
    for split, count in (("train", 5), ("test", 2)):
        frame = pandas.DataFrame({"question": [f"{split} {i}?" for i in range(count)], "answer": ["#### 1"] * count})
        frame.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path


def from_hub(path: Path | str, **other: Any) -> list[tuple[str, dict[str, Any]]]:
    settings: dict[str, Any] = {"config": None, "split": "train", "revision": None, "start": 0, "count": None}
    return list(read_hub(str(path), **(settings | other)))


def test_hub_repositories_give_the_rows_of_one_split(repository: Path) -> None:
    rows = from_hub(repository)
    assert [row["question"] for _, row in rows] == [f"train {i}?" for i in range(5)]
    assert rows[0][0] == f"{repository}[train]:0"
    assert [row["question"] for _, row in from_hub(repository, start=1, count=2)] == ["train 1?", "train 2?"]
    assert [row["question"] for _, row in from_hub(repository, start=3)] == ["train 3?", "train 4?"]
    assert len(from_hub(repository, split="test", count=9)) == 2


def test_a_limit_reads_only_what_it_needs(tmp_path: Path) -> None:
    """The second file is damaged; rows of the first come through all the same."""
    pandas.DataFrame({"text": ["a"] * 3}).to_parquet(tmp_path / "train-00000.parquet")
    write(tmp_path, "train-00001.parquet", "PAR1")
    assert len(from_hub(tmp_path, count=3)) == 3
    with pytest.raises(NexusError) as caught:
        from_hub(tmp_path)
    assert caught.value.code == "E-DAT-20"


@pytest.mark.parametrize("count", [None, 2])
def test_wrong_splits_and_configurations_name_what_there_is(repository: Path, count: int | None) -> None:
    with pytest.raises(NexusError, match="no split 'trian'; did you mean train") as caught:
        from_hub(repository, split="trian", count=count)
    assert (caught.value.code, caught.value.status) == ("E-DAT-21", 66)
    assert "train, test" in caught.value.remedy
    with pytest.raises(NexusError, match="no configuration 'socratic'") as caught:
        from_hub(repository, config="socratic", count=count)
    assert caught.value.code == "E-DAT-21"
    assert "default" in caught.value.remedy


@pytest.mark.parametrize("read_it", [from_hub, lambda path: list(read_path(path, BadRows(0)))])
def test_data_sets_that_datasets_saved(tmp_path: Path, read_it: Callable[[Path], list[tuple[str, Any]]]) -> None:
    import datasets

    rows = [GOOD, GOOD | {"prompt": "c"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert [row for _, row in read_it(tmp_path / "one")] == rows
    both = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list([GOOD])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    assert [row for _, row in read_it(tmp_path / "two")] == rows
    assert [row for _, row in from_hub(tmp_path / "two", split="test")] == [GOOD]
    with pytest.raises(NexusError, match="no split 'tests'; did you mean test") as caught:
        from_hub(tmp_path / "two", split="tests")
    assert caught.value.code == "E-DAT-21"
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"oops")
    with pytest.raises(NexusError) as caught:
        from_hub(tmp_path / "one")
    assert caught.value.code == "E-DAT-10"


def test_what_is_no_repository_is_said_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="neither a folder nor a repository") as caught:
        from_hub(f"{tmp_path}/nowhere/at/all")
    assert (caught.value.code, caught.value.status) == ("E-DAT-20", 66)


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be", "utf-32le", "utf-32be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""], ids=["mark", "bare"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt", "a.txt.gz"])
def test_wide_characters_are_named(tmp_path: Path, name: str, mark: str, encoding: str) -> None:
    """Python's own codecs write the files, and the encoding that the remedy names reads them."""
    text = '\n[{"prompt": "Wo?", "completion": "\u0141\u00f3d\u017a \u4e2d\u6587"}]\n'
    content = (mark + text).encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(NexusError, match="not UTF-8") as caught:
        list(read_file(path, BadRows(1000)))  # no row of the file can be right
    assert (caught.value.code, caught.value.where) == ("E-DAT-06", name)
    named = re.search(rf"iconv -f (\S+) -t utf-8 {name}", caught.value.remedy)
    assert named is not None
    assert named[1] == (encoding[:6] if mark else encoding)
    assert content.decode(named[1]) == text


def test_latin_1_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("pr\u00e4mpt,completion\na,b\n".encode("latin1"))
    with pytest.raises(NexusError, match="0xe4") as caught:
        list(read_file(path, BadRows(0)))
    assert "iconv -f latin1" in caught.value.remedy


def test_a_few_nuls_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"C ends its strings with \0, and so on\n" * 9)
    assert len(list(read_file(tmp_path / "a.txt", BadRows(0)))) == 1


@pytest.mark.parametrize("rest", ["", 'e,"f"\n'])
def test_an_open_quote_never_swallows_rows_as_one_bad_row(tmp_path: Path, rest: str) -> None:
    path = write(tmp_path, "a.csv", f'prompt,completion\na,"b\nc,d\ne,f\n{rest}')
    with pytest.raises(NexusError, match="lines are one row") as error:
        list(read_path(path, BadRows(5)))
    assert (error.value.code, error.value.where) == ("E-DAT-02", "a.csv:2")
