"""Files are read with a place for every row, and every damage has a code and a place."""

import json
from pathlib import Path

import pytest

from nexus.data.sources import BadRows, generate_rows, read_file
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
        ("a.csv", "prompt,completion\n", "E-DAT-04", "a.csv", "no rows"),
        ("a.parquet", "PAR1", "E-DAT-08", "a.parquet", ".parquet"),
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
    with pytest.raises(NexusError, match="it holds chats.jsonl"):
        read(tmp_path)


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
