"""Pairs to tokens: where the prompt ends, what is refused and counted, long pairs, and answers judged on their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.data.masked_sample import LEARNED, masked_sample
from nexus.data.pairs import judged_rows, limit_pairs, longest_row, tokenize_pairs, whole_pairs
from nexus.data.template import RowCounts, encode_prompts
from nexus.errors import NexusError
from nexus.types import Example, TokenizedGroup
from tests import small


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair(name: str = "p", question: str = "What is it?", chosen: str = "A cat", rejected: str = "A dog") -> Example:
    answers = [(turn("assistant", said),) for said in (chosen, rejected)]
    return Example(id=name, source="s", messages=(turn("user", question),), chosen=answers[0], rejected=answers[1])


def tokenize(*examples: Example, refused: list[NexusError] | None = None) -> tuple[list[TokenizedGroup], RowCounts]:
    counts = RowCounts()

    def refuse(error: NexusError) -> None:
        if refused is None:
            raise error
        refused.append(error)

    return list(tokenize_pairs(small.make_tokenizer(), examples, refuse=refuse, counts=counts)), counts


def test_a_pair_is_its_prompt_and_two_answers() -> None:
    tokenizer = small.make_tokenizer()
    earlier = (turn("user", "Hello"), turn("assistant", "Good day"), turn("user", "What is it?"))
    example = replace(pair(), messages=earlier)
    [group], _ = tokenize(example)
    # second implementation: the template's own generation prompt, and the answers' text alone
    assert group.prompt_ids == encode_prompts(tokenizer, [replace(example, chosen=(), rejected=())])[0]
    assert [tokenizer.decode(ids) for ids in group.completions] == ["A cat<|im_end|>", "A dog<|im_end|>"]
    assert all(all(mask) for mask in group.loss_masks), "the earlier answer belongs to the prompt"
    assert group.values == {"desirable": (1.0, 0.0)}
    assert whole_pairs([group])[0].values == {}


def test_an_answer_of_several_turns_counts_what_the_assistant_says() -> None:
    answer = (turn("assistant", "Wait"), turn("user", "Why?"), turn("assistant", "A cat"))
    [group], _ = tokenize(replace(pair(), chosen=answer))
    tokenizer = small.make_tokenizer()
    said = [i for i, counts in zip(group.completions[0], group.loss_masks[0], strict=True) if counts]
    assert tokenizer.decode(said) == "Wait<|im_end|>A cat<|im_end|>"
    assert "Why" in tokenizer.decode(group.completions[0])


@pytest.mark.parametrize(
    ("wrong", "code", "reason"),
    [
        (pair("w", chosen=" A cat", rejected="A cat "), "E-PREF-01", "equal_answers"),
        (pair("w", rejected=""), "E-PREF-02", "empty_answer"),
        (pair("w", chosen=""), "E-PREF-02", "empty_answer"),
    ],
)
def test_pairs_that_teach_nothing_are_refused_and_counted(wrong: Example, code: str, reason: str) -> None:
    if code == "E-PREF-01":  # different as text, the same as tokens once the template has trimmed them
        tokenizer = small.make_tokenizer()
        if "trim" not in tokenizer.chat_template:
            wrong = replace(wrong, rejected=wrong.chosen)
    refused: list[NexusError] = []
    groups, counts = tokenize(pair("a"), wrong, pair("b"), refused=refused)
    assert [group.id for group in groups] == ["a", "b"]
    assert counts.dropped == {reason: 1}
    assert [(error.code, error.where) for error in refused] == [(code, "w")]
    with pytest.raises(NexusError):
        tokenize(wrong)


def test_answers_to_different_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template may write the beginning of a conversation according to its end."""
    tokenizer = small.make_tokenizer()
    template = "{% if messages[-1]['content'] == 'A dog' %}dogs {% endif %}" + tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", template)
    refused: list[NexusError] = []
    groups, counts = tokenize(pair(), refused=refused)
    assert (groups, counts.dropped) == ([], {"prompt_mismatch": 1})
    assert refused[0].code == "E-PREF-03"


def test_long_pairs_follow_the_policy() -> None:
    [short, long], _ = tokenize(pair("short"), pair("long", rejected="A dog and a cat and a dog and a cat"))
    limit = longest_row(short) + 2
    assert longest_row(long) == len(long.prompt_ids) + len(long.completions[1]) > limit
    with pytest.raises(NexusError, match=f"1 of 2 rows .* {longest_row(long)} tokens") as caught:
        limit_pairs([short, long], max_seq_len=limit, long_rows="error", counts=RowCounts())
    assert (caught.value.code, caught.value.where) == ("E-LEN-01", "long")
    counts = RowCounts()
    assert limit_pairs([short, long], max_seq_len=limit, long_rows="drop", counts=counts) == [short]
    assert (counts.kept, counts.dropped) == (1, {"too_long": 1})
    counts = RowCounts()
    kept = limit_pairs([short, long], max_seq_len=limit, long_rows="truncate", counts=counts)
    assert (counts.kept, counts.truncated, longest_row(kept[1])) == (2, 1, limit)
    room = limit - len(long.prompt_ids)
    assert kept[1].completions == (long.completions[0], long.completions[1][:room])
    counts = RowCounts()
    too_short = len(short.prompt_ids) + 1  # both answers begin with the same token
    assert limit_pairs([short], max_seq_len=too_short, long_rows="truncate", counts=counts) == []
    assert limit_pairs([short], max_seq_len=too_short - 1, long_rows="truncate", counts=counts) == []
    assert counts.dropped == {"equal_up_to_max_seq_len": 1, "answer_beyond_max_seq_len": 1}


def test_judged_answers_stand_beside_an_answer_to_another_prompt() -> None:
    a, b = pair("a", "One?", "yes", "no"), pair("b", "Two?", "two", "three")
    groups, _ = tokenize(a, replace(a, id="a2"), b)
    rows = judged_rows(groups)
    assert [row.id for row in rows] == ["a:good", "a:bad", "a2:good", "a2:bad", "b:good", "b:bad"]
    assert [row.values["desirable"] for row in rows] == [(1.0, 1.0), (0.0, 0.0)] * 3
    decode = small.make_tokenizer().decode
    beside = [tuple(decode(ids).removesuffix("<|im_end|>") for ids in row.completions) for row in rows]
    # the neighbor of a is a2, which has the same prompt: the one after it is taken
    assert beside == [("yes", "two"), ("no", "three")] * 2 + [("two", "yes"), ("three", "no")]
    with pytest.raises(NexusError) as caught:
        judged_rows(groups[:2])
    assert caught.value.code == "E-PREF-04"


def test_single_answers_are_for_kto() -> None:
    groups, _ = tokenize(replace(pair("a", "One?"), chosen=()), replace(pair("b", "Two?"), rejected=()))
    assert [row.values["desirable"] for row in judged_rows(groups)] == [(0.0, 0.0), (1.0, 1.0)]
    with pytest.raises(NexusError, match="method=kto") as caught:
        whole_pairs(groups)
    assert caught.value.code == "E-PREF-05"


def corpus(tmp_path: Path, view: str, rows: list[dict[str, Any]], **changes: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"sources": {}, "train": str(path), "view": view, "validation_fraction": 0.25, "epochs": 1}
    return small.make_corpus(small.make_tokenizer(), **(settings | changes))


def test_a_corpus_of_pairs_counts_rows_held_out_pairs_and_steps(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": f"It is {i}", "rejected": f"It is {i + 1}"} for i in range(8)]
    rows.append({"prompt": "Say it.", "chosen": "Yes", "rejected": "Yes"})
    pairs = corpus(tmp_path, "preference", rows, max_bad_rows=1)
    assert (len(pairs.rows), len(pairs.held_out_rows), pairs.num_steps) == (6, 2, 2)
    assert pairs.summary()["bad_rows"] == 1
    assert "1 unusable" in pairs.describe()
    assert pairs.summary()["tokens"] == sum(len(row.input_ids) for row in pairs.rows)
    judged = corpus(tmp_path, "judged", rows, max_bad_rows=2)
    assert (len(judged.rows), len(judged.held_out_rows), judged.num_steps) == (12, 2, 3)
    assert judged.sample(4).total_rows == 12
    assert judged.data_sha256 != pairs.data_sha256
    assert judged.held_out_rows == pairs.held_out_rows


def test_margins_of_rows_are_read_and_hashed(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": f"It is {i}", "rejected": f"It is {i + 1}"} for i in range(4)]
    plain = corpus(tmp_path, "preference", rows, validation_fraction=0.0)
    assert all(row.values == {} for row in plain.rows)
    given: list[dict[str, Any]] = [row | {"margin": i / 2} for i, row in enumerate(rows)]
    found = corpus(tmp_path, "preference", given, validation_fraction=0.0)
    assert [row.values for row in found.rows] == [{"margin": (i / 2, i / 2)} for i in range(4)]
    assert [row.completions for row in found.rows] == [row.completions for row in plain.rows]
    given[2] = rows[2] | {"margin": None}  # a row among them that does not say
    mixed = corpus(tmp_path, "preference", given, validation_fraction=0.0)
    assert [row.values["margin"][0] for row in mixed.rows] == [0.0, 0.5, 0.0, 1.5]
    assert len({plain.data_sha256, found.data_sha256, mixed.data_sha256}) == 3
    judged = corpus(tmp_path, "judged", given, validation_fraction=0.0)
    assert all(set(row.values) == {"desirable"} for row in judged.rows)


def test_a_look_ahead_does_not_count_bad_rows_twice(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": "Yes", "rejected": "No" if i else "Yes"} for i in range(4)]
    found = corpus(tmp_path, "preference", rows, max_bad_rows=1, setup=False)
    found.sample(2)
    found.setup("fit")
    assert found.summary()["bad_rows"] == 1


def test_capabilities_hold_pairs_out_too() -> None:
    pairs = small.make_corpus(small.make_tokenizer(), view="preference")
    assert (len(pairs.rows), len(pairs.held_out_rows)) == (12, 2)
    assert not {row.id for row in pairs.rows} & {row.id for row in pairs.held_out_rows}


def test_the_sample_shows_both_answers_in_color() -> None:
    [group], _ = tokenize(pair())
    text = masked_sample(small.make_tokenizer(), group, color=True)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == LEARNED)
    assert green == f"{group.num_target_tokens} learnedA cat<|im_end|>A dog<|im_end|>"


def labeled(count: int) -> list[dict[str, Any]]:
    """Single answers, good and bad by turns."""
    return [{"prompt": f"Say {i}.", "completion": f"It is {i}", "label": i % 2 == 0} for i in range(count)]


def test_single_answers_are_all_trained_on_and_said_to_be_unmeasured(tmp_path: Path) -> None:
    judged = corpus(tmp_path, "judged", labeled(8))
    assert (len(judged.rows), judged.held_out_rows) == (8, [])
    assert "W-PREF-08  no held-out preference is measured" in judged.describe()
    assert judged.sample(4).total_rows == 8
    pairs = [{"prompt": f"Tell {i}.", "chosen": f"It is {i}", "rejected": "No"} for i in range(4)]
    mixed = corpus(tmp_path, "judged", labeled(8) + pairs)
    assert (len(mixed.rows), len(mixed.held_out_rows)) == (8 + 2 * 3, 1)
    assert "W-PREF" not in mixed.describe()
    held_out = tmp_path / "held.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in [*labeled(3), pairs[0]]))
    given = corpus(tmp_path, "judged", labeled(8), validation=str(held_out))
    assert (len(given.rows), len(given.held_out_rows)) == (8, 1)
    assert "W-PREF-07  3 held-out rows have a single answer" in given.describe()
    held_out.write_text(json.dumps(labeled(1)[0]) + "\n")
    measured = corpus(tmp_path, "judged", labeled(1), train=None, validation=str(held_out), setup=False)
    with pytest.raises(NexusError, match="all 1 held-out rows have one answer") as caught:
        measured.setup("test")
    assert caught.value.code == "E-PREF-05"


@pytest.mark.parametrize(("label", "missing"), [(True, "false"), (False, "true")])
def test_labels_that_are_all_alike_are_refused(tmp_path: Path, label: bool, missing: str) -> None:
    with pytest.raises(NexusError, match=f"none has {missing}") as caught:
        corpus(tmp_path, "judged", [row | {"label": label} for row in labeled(6)])
    assert caught.value.code == "E-PREF-06"
    assert f"label is {missing} too" in caught.value.remedy
