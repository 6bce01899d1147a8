"""Rows with the columns and shapes of public data sets: recognized and converted exactly, or refused by name.

Each fixture in `schemas/` names the set and holds rows written for this test; what they must become stands beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexus.data.formats import REFUSED, SCHEMAS, to_example
from nexus.errors import NexusError

FOLDER = Path(__file__).parent / "schemas"
FIXTURES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
KNOWN = [name for name, fixture in FIXTURES.items() if "schema" in fixture]


def test_there_are_enough_of_them() -> None:
    assert len(FIXTURES) >= 45
    assert len({fixture["dataset"].partition(" ")[0] for fixture in FIXTURES.values()}) >= 40
    refusals = [fixture["refused"] for fixture in FIXTURES.values() if "refused" in fixture]
    assert len(KNOWN) + len(refusals) == len(FIXTURES)
    for kind in REFUSED:
        assert any(words in kind.name for words in refusals), f"no fixture is refused as {kind.name}"


@pytest.mark.parametrize("name", KNOWN)
def test_recognized_and_converted(name: str) -> None:
    fixture = FIXTURES[name]
    view = fixture["view"]
    for index, (row, expected) in enumerate(zip(fixture["rows"], fixture["expected"], strict=True)):
        before = json.dumps(row)
        example = to_example(row, place=f"{name}:{index}", source=name, view=view, fields={})
        assert json.dumps(row) == before, "the row itself was changed"
        found = next(s for s in SCHEMAS if s.view == view and all(row.get(key) is not None for key in s.needs))
        assert found.name == fixture["schema"]
        assert list(example.messages) == expected.get("messages", [])
        assert list(example.chosen) == expected.get("chosen", [])
        assert list(example.rejected) == expected.get("rejected", [])
        assert list(example.tools) == expected.get("tools", [])
        assert example.gold == expected.get("gold")
        assert example.text == expected.get("text")


@pytest.mark.parametrize("name", [name for name in FIXTURES if name not in KNOWN])
def test_refused_by_name(name: str) -> None:
    fixture = FIXTURES[name]
    for row in fixture["rows"]:
        with pytest.raises(NexusError) as caught:
            to_example(row, place="rows.jsonl:3", source="s", view=fixture["view"], fields={})
        assert (caught.value.code, caught.value.where, caught.value.status) == ("E-DAT-12", "rows.jsonl:3", 65)
        assert fixture["refused"] in caught.value.message
        assert caught.value.remedy


def test_every_schema_has_a_fixture_or_a_test_of_its_own() -> None:
    covered = {FIXTURES[name]["schema"] for name in KNOWN}
    elsewhere = {"prompts with gold", "prompt/completion", "problem/solution", "problem/solution with a number"}
    assert {schema.name for schema in SCHEMAS} - covered == elsewhere
