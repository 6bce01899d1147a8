"""The tools generator: contract, determinism, one right answer, and nothing shared between the splits."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from nexus.data.synthetic import GENERATORS, words
from nexus.data.synthetic.overlap import overlap_report
from nexus.data.synthetic.tools import NO_TOOL_ANSWER, REQUESTS, further_requests, rows, sample_task
from nexus.data.synthetic.tools_catalog import ARGUMENTS, DOMAINS, VERBS, functions
from nexus.text.call_match import call_problems
from nexus.text.tool_calls import ToolCall, parse_answer

SPLITS = ("train", "eval")


def take(view: str, split: str, count: int, seed: int = 3) -> list[dict]:
    return list(rows(view=view, split=split, count=count, seed=seed))


def answer_text(message: dict) -> str:
    """A message as the chat template writes it."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", [])]
    return message["content"] + "\n".join(f"<tool_call>{call}</tool_call>" for call in calls)


def test_the_catalog_has_hundreds_of_functions_and_every_kind_of_argument():
    assert {split: len(functions(split)) for split in SPLITS} == {"train": 420, "eval": 140}
    for split in SPLITS:
        kinds = Counter(p.argument.kind for f in functions(split) for p in f.parameters)
        assert {
            "city",
            "person",
            "code",
            "title",
            "email",
            "integer",
            "number",
            "boolean",
            "enum",
            "date",
            "items",
        } <= set(kinds)
        assert {len(f.parameters) for f in functions(split)} == {1, 2, 3}
        assert any(not p.required for f in functions(split) for p in f.parameters)
        assert all(f.parameters[0].required for f in functions(split))
        assert all(2 <= len(f.description.split()) <= 5 for f in functions(split))


def test_catalog_is_sound():
    assert len(DOMAINS) == 14
    assert len(ARGUMENTS) == 79
    said = [way for verb, ways in VERBS.items() for way in (verb, *ways)]
    assert len(said) == len(set(said)), "a way of saying belongs to two verbs"
    used = {name for domain in DOMAINS.values() for name in domain.arguments}
    assert used == ARGUMENTS.keys()
    assert {verb for domain in DOMAINS.values() for verb in domain.verbs} == VERBS.keys()
    for argument in ARGUMENTS.values():
        if argument.options:
            assert all(len(words.of_split(argument.options, split)) >= 2 for split in SPLITS), argument.name


def test_functions_are_disjoint_by_name_pair_argument_set_and_object():
    train, held = functions("train"), functions("eval")
    assert len({f.name for f in (*train, *held)}) == 560
    assert not {(f.verb, f.noun) for f in train} & {(f.verb, f.noun) for f in held}
    assert not {f.noun for f in train} & {f.noun for f in held}
    assert not {f.argument_names for f in train} & {f.argument_names for f in held}


def test_evaluation_rows_share_nothing_with_training_rows():
    report = overlap_report(
        itertools.chain(take("preference", "train", 2500, seed=1), take("sft", "train", 500, seed=2)),
        take("prompts", "eval", 800, seed=1),
    )
    assert (report.train_rows, report.eval_rows) == (3000, 800)
    assert report.functions == frozenset()
    assert report.argument_sets == frozenset()
    assert report.values == frozenset()
    assert report.ngrams == frozenset()
    assert report.clean
    assert report.dirty_rows == 0.0


def test_the_overlap_check_finds_what_is_shared():
    train = take("sft", "train", 50)
    called = next(row for row in take("prompts", "train", 50) if row["gold"]["calls"])
    report = overlap_report(train, [*take("prompts", "eval", 50), called])
    assert not report.clean
    assert report.functions
    assert report.argument_sets
    assert 0 < report.dirty_rows <= 1 / 51
    assert overlap_report(train, train).dirty_rows > 0.2
    assert overlap_report(train, take("prompts", "train", 50)).values
    assert overlap_report(train, take("prompts", "eval", 50), n=2).ngrams, "templates are shared, so some pairs are"
    with pytest.raises(ValueError, match="nothing to compare"):
        overlap_report(train, [])


@pytest.mark.parametrize("split", SPLITS)
def test_views_show_the_same_task(split: str):
    seen = Counter()
    for sft, pair, prompt in zip(*(take(v, split, 300) for v in ("sft", "preference", "prompts")), strict=True):
        assert sft["id"] == pair["id"] == prompt["id"]
        assert sft["tools"] == pair["tools"] == prompt["tools"]
        assert sft["messages"][:1] == pair["prompt"] == prompt["prompt"]
        assert sft["messages"][1:2] == pair["chosen"]
        parsed = parse_answer(answer_text(sft["messages"][1]))
        assert [{"name": c.name, "arguments": c.arguments} for c in parsed.calls] == prompt["gold"]["calls"]
        assert not parsed.malformed
        request = prompt["prompt"][0]["content"].lower()
        plan = parsed.text if parsed.calls else parsed.text.removesuffix(f": {NO_TOOL_ANSWER}")
        deeds = plan.split(", ")
        assert len(deeds) == (len(parsed.calls) or len(deeds))
        assert all(word in request for deed in deeds for word in deed.split()), (plan, request)
        assert pair["rejected"] != pair["chosen"]
        seen[len(parsed.calls)] += 1
    assert set(seen) == {0, 1, 2}


def test_rows_are_deterministic_and_do_not_depend_on_count():
    assert take("sft", "train", 20) == take("sft", "train", 40)[:20]
    assert take("sft", "train", 5, seed=1) != take("sft", "train", 5, seed=2)
    assert list(GENERATORS["tools"](view="sft", split="eval", count=5, seed=3)) == take("sft", "eval", 5)
    assert json.loads(json.dumps(take("preference", "eval", 50))) == take("preference", "eval", 50)
    # Pinned, so that a change of the data is seen: it changes every score that was measured on it.
    assert take("prompts", "eval", 1, seed=0)[0]["prompt"][0]["content"] == (
        "Hello! I have to purchase the phone case in giant size with the quantity 226 with the color white."
    )


@pytest.mark.parametrize("split", SPLITS)
def test_gold_calls_fit_their_schemas_and_the_request(split: str):
    checked = 0
    for row in take("prompts", split, 600):
        request = row["prompt"][0]["content"]
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        assert 1 <= len(row["tools"]) <= 5
        assert len(offered) == len(row["tools"])
        for call in row["gold"]["calls"]:
            assert call_problems(ToolCall(call["name"], call["arguments"]), row["tools"]) == []
            properties = list(offered[call["name"]]["properties"])
            assert list(call["arguments"]) == [name for name in properties if name in call["arguments"]]
            assert set(offered[call["name"]]["required"]) <= call["arguments"].keys()
            for value in call["arguments"].values():
                parts = value if isinstance(value, list) else [value]
                if not isinstance(value, bool):
                    assert all(str(part).lower() in request.lower() for part in parts), (request, value)
                checked += 1
    assert checked > 800


def test_optional_arguments_appear_only_if_they_are_mentioned():
    left_out = 0
    for index in range(600):
        task = sample_task("train", 5, index)
        if len(task.calls) != 1:
            continue
        call = task.calls[0]
        for parameter in call.function.parameters:
            name = parameter.argument.name
            if name not in call.arguments:
                assert not parameter.required
                left_out += 1
    assert left_out > 30


@pytest.mark.parametrize("split", SPLITS)
def test_a_request_without_a_tool_has_none_that_fits(split: str):
    found = 0
    for index in range(1500):
        task = sample_task(split, 7, index)
        if task.calls:
            continue
        found += 1
        said = [f for f in task.offered if f.noun in task.request.lower()]
        for function in said:  # same object: then another verb, in no way of saying it
            start = f"{task.request.lower()} "
            ways = (function.verb, *VERBS[function.verb])
            assert not any(
                f"{way} {article}{function.noun}" in start
                for way in ways
                for article in ("a ", "an ", "the ", "my ", "")
            )
    assert found / 1500 == pytest.approx({"train": 0.16, "eval": 0.07}[split], abs=0.03)


def test_further_requests_are_answered_with_the_same_tools():
    counts: Counter[int] = Counter()
    shares: Counter[int] = Counter()
    for index in range(1000):
        task = sample_task("train", 7, index)
        later = list(further_requests(task, "train", 7, index))
        counts[1 + len(later)] += 1
        for further in later:
            shares[len(further.calls)] += 1
            assert further.offered == task.offered
            assert {call.function for call in further.calls} <= set(task.offered)
            for call in further.calls:
                values = [v for v in call.arguments.values() if not isinstance(v, bool)]
                parts = [str(part) for v in values for part in (v if isinstance(v, list) else [v])]
                assert all(part.lower() in further.request.lower() for part in parts)
            if not further.calls:
                asked = {f"{way} {f.noun}" for f in task.offered for way in (f.verb, *VERBS[f.verb])}
                assert further.plan not in asked
    assert [counts[n] / 1000 for n in REQUESTS] == pytest.approx([share / 100 for share in REQUESTS.values()], abs=0.05)
    total = sum(shares.values())
    assert [shares[n] / total for n in range(3)] == pytest.approx([0.16, 0.62, 0.22], abs=0.05)


def test_only_the_rows_for_imitation_are_conversations():
    [sft], [prompt] = take("sft", "train", 30)[3:4], take("prompts", "train", 30)[3:4]
    assert sft["messages"][0] == prompt["prompt"][0]
    assert {len(row["messages"]) for row in take("sft", "train", 60)} == {2, 4, 6, 8}
    assert {len(row["messages"]) for row in take("sft", "eval", 60)} == {2}


@pytest.mark.parametrize(("split", "shares"), [("train", (0.16, 0.62, 0.22)), ("eval", (0.07, 0.75, 0.18))])
def test_kinds_have_their_shares(split: str, shares: tuple[float, ...]):
    calls = Counter(len(sample_task(split, 11, index).calls) for index in range(3000))
    assert [calls[n] / 3000 for n in range(3)] == pytest.approx(shares, abs=0.03)


def test_offers_have_their_shares():
    tasks = [sample_task("train", 11, index) for index in range(3000)]
    assert set(Counter(len(task.offered) for task in tasks)) == {1, 2, 3, 4, 5}
    twice = [task for task in tasks if len(task.calls) == 2]
    assert 0.4 < sum(task.calls[0].function == task.calls[1].function for task in twice) / len(twice) < 0.7
    assert all(task.calls[0] != task.calls[1] for task in twice)
    positions = Counter(task.offered.index(task.calls[0].function) for task in tasks if len(task.calls) == 1)
    assert positions[0] < 0.6 * sum(positions.values()), "the right tool must not always stand first"
    catalog = {f.name for f in functions("train")}
    seen = {f.name for task in tasks for f in task.offered}
    assert len(catalog) == 420
    assert len(catalog & seen) > 350
    assert len(seen) > 4000, "most training tasks bring names of their own"
    assert not seen & {f.name for f in functions("eval")}


@pytest.mark.parametrize("split", SPLITS)
def test_rejected_answers_are_wrong_and_varied(split: str):
    seen = Counter()
    pairs = take("preference", split, 800)
    for pair, prompt in zip(pairs, take("prompts", split, 800), strict=True):
        rejected = parse_answer(answer_text(pair["rejected"][0]))
        gold = prompt["gold"]["calls"]
        calls = [{"name": c.name, "arguments": c.arguments} for c in rejected.calls]
        if rejected.malformed:
            seen["malformed"] += 1
            continue
        assert calls != gold
        if not calls:
            seen["refusal"] += 1
        elif not gold:
            seen["called"] += 1
        elif len(calls) < len(gold):
            seen["half"] += 1
        elif [c["name"] for c in calls] != [c["name"] for c in gold]:
            seen["function"] += 1
        elif any(len(c["arguments"]) < len(g["arguments"]) for c, g in zip(calls, gold, strict=True)):
            seen["missing"] += 1
        else:
            seen["value"] += 1
    assert min(seen[k] for k in ("malformed", "refusal", "called", "half", "function", "missing", "value")) >= 15, seen


def test_rows_are_short():
    lengths = sorted(len(row["prompt"][0]["content"].split()) for row in take("prompts", "eval", 500))
    assert lengths[250] <= 14
    assert lengths[-1] <= 45


@pytest.mark.parametrize(("view", "split", "count"), [("dpo", "train", 1), ("sft", "test", 1), ("sft", "train", -1)])
def test_unknown_views_and_splits_are_refused(view: str, split: str, count: int):
    with pytest.raises(ValueError, match="no rows for"):
        list(rows(view=view, split=split, count=count, seed=0))


def test_registry_names_what_is_there():
    assert set(GENERATORS) == {
        "tools",
        "cot",
        "reasoning",
        "thinking",
        "tool_results",
        "safety",
        "over_refusal",
        "pretrain",
        "pretrain_more",
        "pretrain_pieces",
    }
