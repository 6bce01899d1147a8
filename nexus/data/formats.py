"""Recognizes the schema of a row by its columns and converts it to an `Example`.

A schema is a row of the table `SCHEMAS`: the columns it needs, the view that reads it, and a function. The first schema
whose needs are met wins, so the table goes from the most specific to the most general. What a row would teach wrongly,
because it holds more than its text says, is refused by name (`REFUSED`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from nexus.data.dialects import Wrong, glaive_turns, hh_turns, is_hh, without_calculator
from nexus.data.turns import assistant, calls_of, conversation_of, json_or, text_of, tools_of, turns_of
from nexus.data.whole_row import whole
from nexus.errors import NexusError
from nexus.text.answers import marked_answer, normalize_number
from nexus.types import Example, Message

Row = dict[str, Any]
Convert = Callable[[Row], dict[str, Any]]

_EXTRAS = ("input", "context")
VIEWS = ("sft", "preference", "prompts")
_OTHER_MODALITIES = ("image", "images", "video", "videos", "audio", "audios")


@dataclass(frozen=True)
class Schema:
    """A kind of row.

    Attributes:
        name: what users call it.
        needs: columns that make a row this kind.
        view: which view reads it.
        convert: makes the fields of an `Example` from the row.
    """

    name: str
    needs: tuple[str, ...]
    view: str
    convert: Convert


@dataclass(frozen=True)
class Refused:
    """A kind of row that looks like a known one and must not be read as such.

    Attributes:
        name: what users call it.
        needs: columns that make a row this kind.
        views: views that refuse it.
        why: what would go wrong.
        remedy: what to do instead.
    """

    name: str
    needs: tuple[str, ...]
    views: tuple[str, ...]
    why: str
    remedy: str


def to_example(row: Row, *, place: str, source: str, view: str, fields: dict[str, str]) -> Example:
    """Convert one row.

    Args:
        row: columns as read.
        place: name of the row, for example `chats.jsonl:12`; becomes the example's id.
        source: name of the data source.
        view: `sft`, `preference` or `prompts`.
        fields: our column name -> the row's column name, for data sets with names of their own.

    Returns:
        The example.

    Raises:
        NexusError: `E-DAT-12` if no schema fits, the schema is not one of this view or is refused by name, `E-DAT-05`
            for a value of the wrong type, `E-DAT-34` for half a character, `E-PREF-01` if chosen and rejected are the
            same.
    """
    _insist_on_unicode(row, place)
    empty = sorted(key for key, value in row.items() if value is None)
    row = {key: value for key, value in row.items() if value is not None}
    for ours, theirs in fields.items():
        if theirs in row:
            row[ours] = row.pop(theirs)
    refused = _refused(row, view)
    if refused is not None:
        name, why, remedy = refused
        raise NexusError("E-DAT-12", f"the row is of schema {name}: {why}", where=place, remedy=remedy)
    schema = next((s for s in SCHEMAS if s.view == view and all(key in row for key in s.needs)), None)
    if schema is None:
        raise _unknown(row, place, view, empty)
    try:
        parts = schema.convert(row)
        if "text" not in parts:
            parts["tools"] = tools_of(row.get("tools") or row.get("functions")) or parts.get("tools", ())
    except Wrong as error:
        raise NexusError(
            "E-DAT-05", f"{error} (schema {schema.name})", where=place, remedy="see the README for the schemas"
        ) from error
    if view == "preference" and parts["chosen"] == parts["rejected"]:
        raise NexusError(
            "E-PREF-01",
            "chosen and rejected are the same, so nothing can be preferred",
            where=place,
            remedy="remove the row, or allow some with data.max_bad_rows",
        )
    return Example(id=place, source=source, **parts)


def _insist_on_unicode(row: Row, place: str) -> None:
    """Refuse half of a character (an unpaired surrogate), which JSON can spell and no tokenizer can read."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start]
        raise NexusError(
            "E-DAT-34",
            f"the row holds half of a character ({half!a}), as a text that was cut in the middle of an emoji does",
            where=place,
            remedy="mend the row, or leave some out with data.max_bad_rows=N",
        ) from error


def _refused(row: Row, view: str) -> tuple[str, str, str] | None:
    """Name, reason and remedy, if the row must not be read."""
    media = [key for key in _OTHER_MODALITIES if row.get(key) not in ("", [], {}, None)]
    if media:
        return (
            f"{'+'.join(media)} and text",
            "only its text would be read, and an answer about something unseen teaches to invent",
            "such rows come with encoders; leave the column out if the answer does not rest on it",
        )
    found = next((r for r in REFUSED if view in r.views and all(key in row for key in r.needs)), None)
    return None if found is None else (found.name, found.why, found.remedy)


_RENAME = "rename the columns (fields of a dataset card do)"


def _unknown(row: Row, place: str, view: str, empty: Sequence[str]) -> NexusError:
    """What to say of a row that no schema fits; `empty` are its columns without a value."""
    other = next((s for s in SCHEMAS if all(key in row for key in s.needs)), None)
    keys = ", ".join(sorted(row)) or "none"
    if other is not None:
        return NexusError(
            "E-DAT-12",
            f"the row is of schema {other.name} (view {other.view}), but the method reads view {view}",
            where=place,
            remedy=f"needs {' or '.join(sorted({'+'.join(s.needs) for s in SCHEMAS if s.view == view}))}",
        )
    candidates = [s for s in SCHEMAS if s.view == view]

    def likeness(schema: Schema) -> float:
        best = [
            max((SequenceMatcher(None, need, key.lower()).ratio() for key in row), default=0.0) for need in schema.needs
        ]
        return sum(best) / len(best)

    if empty:
        return NexusError(
            "E-DAT-12",
            f"the row has no value in {', '.join(empty)}, and what is left ({keys}) is no known schema",
            where=place,
            remedy="fill it in, or leave some rows out with data.max_bad_rows=N",
        )
    near = max(candidates, key=likeness)
    missing = ", ".join(key for key in near.needs if key not in row)
    others = "; ".join("+".join(s.needs) for s in candidates if s is not near)
    return NexusError(
        "E-DAT-12",
        f"no known schema has these columns: {keys}; the nearest is {'+'.join(near.needs)}, missing: {missing}",
        where=place,
        remedy=f"{'give gold, what a right answer is, to every prompt' if missing == 'gold' else _RENAME}; also known: "
        f"{others}",
    )


def _system(row: Row) -> tuple[Message, ...]:
    column = "system" if "system" in row else "system_prompt"
    text = row.get(column)
    return ({"role": "system", "content": text_of(text, column)},) if text else ()


def _asked(row: Row, column: str, extras: Sequence[str] = ()) -> tuple[Message, ...]:
    """System text, question, and below it what the question is about; extras may be absent or empty."""
    prompt = turns_of(row[column], column, "user")
    for extra in extras:
        if row.get(extra):
            prompt = ({"role": "user", "content": f"{prompt[0]['content']}\n\n{text_of(row[extra], extra)}"},)
    return (*_system(row), *prompt)


def _conversation(column: str) -> Convert:
    def convert(row: Row) -> dict[str, Any]:
        system = row.get("system") or row.get("system_prompt")
        messages, tools = conversation_of(row[column], column, system=system)
        return {"messages": messages, "tools": tools}

    return convert


def _pair(question: str, answer: str, *extras: str, reasoning: str = "") -> Convert:
    """A question and an answer, each a text or turns; the columns of extras and reasoning may be absent or empty."""

    def convert(row: Row) -> dict[str, Any]:
        prompt = _asked(row, question, extras)
        said, thought = row[answer], row.get(reasoning) if reasoning else None
        if thought:
            told = assistant(text_of(said, answer), reasoning=text_of(thought, reasoning), what=answer)
            return {"messages": (*prompt, told)}
        return {"messages": (*prompt, *turns_of(said, answer, "assistant"))}

    return whole(convert)


def _question_answer(row: Row) -> dict[str, Any]:
    if isinstance(row["answer"], str) and "####" in row["answer"]:  # gsm8k
        row = row | {"answer": without_calculator(row["answer"])}
    return _pair("question", "answer", "context")(row)


def _first_trajectory(row: Row) -> dict[str, Any]:
    """s1K, whose trajectories are a list of one text."""
    given = row["thinking_trajectories"]
    if not isinstance(given, list) or not given:
        raise Wrong("thinking_trajectories must be a list with a text")
    return _pair("question", "attempt", reasoning="thinking")(row | {"thinking": given[0]})


def _alternating(row: Row) -> dict[str, Any]:
    """Pure-Dove: a list of {input, output}."""
    given = json_or(row["conversation"], "conversation")
    if not isinstance(given, list) or not given:
        raise Wrong("conversation must be a list of turns")
    turns: list[Message] = list(_system(row))
    for i, pair in enumerate(given):
        if not isinstance(pair, dict) or not {"input", "output"} <= set(pair):
            raise Wrong(f"conversation[{i}] must be an object with input and output")
        turns += turns_of(pair["input"], f"conversation[{i}].input", "user")
        turns += turns_of(pair["output"], f"conversation[{i}].output", "assistant")
    return {"messages": tuple(turns)}


def _xlam(row: Row) -> dict[str, Any]:
    calls = calls_of(row["answers"], "answers")
    if not calls:
        raise Wrong("answers is empty")
    prompt = turns_of(row["query"], "query", "user")
    return {"messages": (*_system(row), *prompt, {"role": "assistant", "content": "", "tool_calls": calls})}


def _glaive(row: Row) -> dict[str, Any]:
    turns, tools = glaive_turns(text_of(row["system"], "system"), text_of(row["chat"], "chat"))
    messages, _ = conversation_of(turns, "chat")
    return {"messages": messages, "tools": tools_of(tools, "system")}


def _preference(row: Row) -> dict[str, Any]:
    """Pairs in their published shapes: whole conversations (`Human:`/`Assistant:` text too), or answers to a prompt."""
    sides = []
    for key in ("chosen", "rejected"):
        given = hh_turns(row[key], key) if is_hh(row[key]) else row[key]
        sides.append(turns_of(given, key, "assistant", keep_broken=key == "rejected"))
    chosen, rejected = sides
    asked = next((key for key in ("prompt", "question", "instruction", "conversations", "messages") if key in row), "")
    prompt: tuple[Message, ...] = ()
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        if not asked:
            raise Wrong("chosen and rejected have no turn in common, and there is no prompt")
        given = hh_turns(row[asked], asked) if is_hh(row[asked]) else row[asked]
        if asked in ("conversations", "messages"):
            prompt, _ = conversation_of(given, asked, system=row.get("system"))
        else:
            extras = _EXTRAS if asked == "instruction" else ()
            prompt = whole(lambda row: _asked(row, asked, extras))(row | {asked: given})
    else:  # whole conversations: the prompt is what they have in common, whatever else the row repeats of it
        common = 0
        while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
            common += 1
        prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
        if not prompt:
            raise Wrong("chosen and rejected have no turn in common, and there is no prompt")
        prompt = prompt if prompt[0]["role"] == "system" else (*_system(row), *prompt)
    return {"messages": prompt, "chosen": chosen, "rejected": rejected, "margin": _margin(row)}


def _margin(row: Row) -> float | None:
    """By how much the chosen answer is better, for `method=reward_model`; CSV files hold numbers as text."""
    given = row.get("margin", "")
    if given == "":
        return None
    try:
        margin = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        margin = math.nan
    if not 0.0 <= margin < math.inf:
        raise Wrong(f"margin must be a number of at least 0, this is {given!r}")
    return margin


@whole
def _judged(row: Row) -> dict[str, Any]:
    """A single answer and whether it is a good one; the other answer of the pair does not exist."""
    good = row["label"]
    if good not in (True, False):
        raise Wrong(f"label must be true or false, this is {good!r}")
    prompt = (*_system(row), *turns_of(row["prompt"], "prompt", "user"))
    answer = turns_of(row["completion"], "completion", "assistant", keep_broken=not good)
    return {"messages": prompt, "chosen": answer if good else (), "rejected": () if good else answer}


def _two_responses(row: Row) -> dict[str, Any]:
    """PKU-SafeRLHF: two responses and the number of the better one."""
    better = row["better_response_id"]
    if better not in (0, 1):
        raise Wrong(f"better_response_id must be 0 or 1, this is {better!r}")
    return _preference(row | {"chosen": row[f"response_{better}"], "rejected": row[f"response_{1 - better}"]})


@whole
def _prompt(row: Row) -> dict[str, Any]:
    gold = json_or(row["gold"], "gold")
    if not isinstance(gold, dict):
        raise Wrong(f"gold must be an object, this is a {type(gold).__name__}")
    return {"messages": (*_system(row), *turns_of(row["prompt"], "prompt", "user")), "gold": gold}


def _prompt_to_refuse(row: Row) -> dict[str, Any]:
    """XSTest: a prompt and whether it is safe to answer."""
    if row["label"] not in ("safe", "unsafe"):
        raise Wrong(f"label must be safe or unsafe, this is {row['label']!r}")
    prompt = (*_system(row), *turns_of(row["prompt"], "prompt", "user"))
    return {"messages": prompt, "gold": {"must_refuse": row["label"] == "unsafe"}}


def _prompt_calls(row: Row) -> dict[str, Any]:
    calls = [call["function"] for call in calls_of(row["answers"], "answers")]
    return {"messages": (*_system(row), *turns_of(row["query"], "query", "user")), "gold": {"calls": calls}}


def _prompt_number(question: str, answer: str) -> Convert:
    """A question whose solution marks a final number, as gsm8k and competition sets do."""

    def convert(row: Row) -> dict[str, Any]:
        said = text_of(row[answer], answer)
        gold = marked_answer(said) or said
        if normalize_number(gold) is None:
            raise Wrong(f"the final answer {gold[:40]!r} is not a number, so answers cannot be compared with it")
        return {"messages": (*_system(row), *turns_of(row[question], question, "user")), "gold": {"answer": gold}}

    return whole(convert)


SCHEMAS: tuple[Schema, ...] = (
    Schema("preference", ("chosen", "rejected"), "preference", _preference),
    Schema("prompt/completion/label", ("prompt", "completion", "label"), "preference", _judged),
    Schema("two responses", ("prompt", "response_0", "response_1", "better_response_id"), "preference", _two_responses),
    Schema("prompts with gold", ("prompt", "gold"), "prompts", _prompt),
    Schema("prompt/type/label (XSTest)", ("prompt", "type", "label"), "prompts", _prompt_to_refuse),
    Schema("query/tools/answers (xlam)", ("query", "tools", "answers"), "prompts", _prompt_calls),
    Schema("question/answer with a number", ("question", "answer"), "prompts", _prompt_number("question", "answer")),
    Schema("problem/answer with a number", ("problem", "answer"), "prompts", _prompt_number("problem", "answer")),
    Schema("problem/solution with a number", ("problem", "solution"), "prompts", _prompt_number("problem", "solution")),
    Schema("messages", ("messages",), "sft", _conversation("messages")),
    Schema("conversations (ShareGPT)", ("conversations",), "sft", _conversation("conversations")),
    Schema("conversation of input/output", ("conversation",), "sft", _alternating),
    Schema("query/tools/answers (xlam)", ("query", "tools", "answers"), "sft", _xlam),
    Schema("system/chat (glaive)", ("system", "chat"), "sft", _glaive),
    Schema(
        "question/trajectory/attempt (s1K-1.1)",
        ("question", "deepseek_thinking_trajectory", "deepseek_attempt"),
        "sft",
        _pair("question", "deepseek_attempt", reasoning="deepseek_thinking_trajectory"),
    ),
    Schema(
        "question/trajectories/attempt (s1K)",
        ("question", "thinking_trajectories", "attempt"),
        "sft",
        _first_trajectory,
    ),
    Schema(
        "source/target/rationale (CoT-Collection)",
        ("source", "target", "rationale"),
        "sft",
        _pair("source", "target", reasoning="rationale"),
    ),
    Schema("query/response/thought", ("query", "response"), "sft", _pair("query", "response", reasoning="thought")),
    Schema("prompt/completion", ("prompt", "completion"), "sft", _pair("prompt", "completion")),
    Schema("prompt/response", ("prompt", "response"), "sft", _pair("prompt", "response", reasoning="thought")),
    Schema("instruction/input/output", ("instruction", "output"), "sft", _pair("instruction", "output", *_EXTRAS)),
    Schema(
        "instruction/context/response", ("instruction", "response"), "sft", _pair("instruction", "response", *_EXTRAS)
    ),
    Schema(
        "problem/reasoning/solution (OpenThoughts metadata)",
        ("problem", "deepseek_reasoning", "deepseek_solution"),
        "sft",
        _pair("problem", "deepseek_solution", reasoning="deepseek_reasoning"),
    ),
    Schema("problem/solution", ("problem", "solution"), "sft", _pair("problem", "solution")),
    Schema(
        "problem/generated_solution", ("problem", "generated_solution"), "sft", _pair("problem", "generated_solution")
    ),
    Schema("question/answer", ("question", "answer"), "sft", _question_answer),
    Schema("question/response", ("question", "response"), "sft", _pair("question", "response")),
    Schema("input/output", ("input", "output"), "sft", _pair("input", "output")),
    Schema("text", ("text",), "sft", whole(lambda row: {"text": text_of(row["text"], "text")})),
)

REFUSED: tuple[Refused, ...] = (
    Refused(
        "prompt/completion/label (unpaired preference)",
        ("prompt", "completion", "label"),
        ("sft",),
        "the label says whether the completion is good, and imitation would learn the bad ones too",
        "method=kto learns from both kinds; or keep the rows whose label is true and leave the label out",
    ),
    Refused(
        "prompt/response/is_safe (answers judged safe or unsafe)",
        ("prompt", "response", "is_safe"),
        ("sft",),
        "imitation would learn the unsafe answers too",
        "method=kto learns from both kinds: dataset beavertails; or keep the safe rows and leave is_safe out",
    ),
    Refused(
        "completions with ratings (UltraFeedback)",
        ("instruction", "completions"),
        VIEWS,
        "it rates several completions and says nowhere which one to learn",
        "take its binarized form with chosen and rejected",
    ),
    Refused(
        "multiple choice (MMLU, ARC)",
        ("question", "choices"),
        VIEWS,
        "it is a benchmark whose answer is a number of a choice",
        "write the choices into the question and the right one into the answer",
    ),
    Refused(
        "multiple choice (LongBench)",
        ("question", "choice_A"),
        VIEWS,
        "it is a benchmark whose answer is the letter of a choice",
        "write the choices into the question and the right one into the answer",
    ),
    Refused(
        "question/function (BFCL)",
        ("question", "function"),
        VIEWS,
        "it is a benchmark without right answers in its rows",
        "train on another set of tool calls, for example dataset xlam_60k",
    ),
    Refused(
        "file before and after a commit (commitpackft)",
        ("old_contents", "new_contents"),
        VIEWS,
        "which of message, instruction and change is the answer is a choice",
        "write prompt and completion",
    ),
)
