"""Tries to earn a reward without being right, and tries right answers in other legal forms; for any reward.

A run of reinforcement learning finds every such gap within minutes, and its curve looks like success. So a reward is
probed before it is trusted: on rows with known right answers, none of the cheap answers below may earn more than the
right one, and every legal form of the right one must earn as much as it can earn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexus.rewards.registry import Rewards, Sample

#: Words that rewards by keyword pay for; those of the earlier system are among them.
_KEYWORDS = (
    "therefore because step first second finally let's think carefully answer final result correct verified however "
    "tool call function arguments name parameters JSON reasoning conclusion integration comprehensive"
)
_FORMAT_ONLY = (
    "<answer></answer>", "<answer> </answer>", "<think></think><answer></answer>",
    "<think>I think.</think>\n<answer>the answer</answer>", "\\boxed{}", "#### ", "<tool_call></tool_call>",
    "<tool_call>{}</tool_call>", '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    "```python\n```", "```python\npass\n```", "1 + 1 = 2\n<answer>two</answer>", "1 + 1 = 2",
)  # fmt: skip
_CONSTANT = (
    "0", "1", "<answer>0</answer>", "<answer>1</answer>", "<answer>42</answer>", "1 + 1 = 2\n<answer>2</answer>",
    "yes", "I cannot do that.", "None of the tools can do that.", "ok ok ok ok ok ok ok ok", "\\boxed{7}",
    '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A prompt with what is right, in the form of the data contract.

    Attributes:
        id: name of the row.
        prompt: chat turns.
        gold: what travels with the prompt.
        tools: definitions on offer.
        right: the right answer as the model should write it.
        forms: the same in other legal forms.
    """

    id: str
    prompt: tuple[dict[str, Any], ...]
    gold: Mapping[str, Any]
    tools: tuple[Mapping[str, Any], ...]
    right: str
    forms: tuple[str, ...]


@dataclass
class Findings:
    """What the probes found, for one reward or for the sum of several.

    Attributes:
        tried: cheap answers that were compared with a right one.
        beaten: (row, kind of probe, answer, what it earned, what the right one earned) where the cheap one earned more.
        tied: number of cheap answers that earned as much as the right one, by kind of probe.
        forms: legal forms that were compared.
        short: (row, form, what it earned, what the right one earned) where a legal form earned less.
    """

    tried: int = 0
    beaten: list[tuple[str, str, str, float, float]] = field(default_factory=list)
    tied: dict[str, int] = field(default_factory=dict)
    forms: int = 0
    short: list[tuple[str, str, float, float]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether something was tried and nothing was found."""
        return bool(self.tried and not self.beaten and not self.short)

    def add(self, row: Row, kind: str, answer: str, earned: float, right: float) -> None:
        """Note what a cheap answer earned beside a right one."""
        self.tried += 1
        if earned > right:
            self.beaten.append((row.id, kind, answer, earned, right))
        elif earned == right:
            self.tied[kind] = self.tied.get(kind, 0) + 1


def cheap_answers(row: Row) -> Iterator[tuple[str, str]]:
    """Answers to a row that are no work.

    Args:
        row: the row.

    Yields:
        Kind of the probe and the answer; an answer that happens to be right is not among them.
    """
    asked = "\n".join(str(turn["content"]) for turn in row.prompt)
    offered = "\n".join(json.dumps(tool) for tool in row.tools)
    keywords = f"{_KEYWORDS} {asked} {_KEYWORDS}"
    names = [tool.get("function", tool)["name"] for tool in row.tools]
    empty_calls = "".join(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in names)
    numbers = re.findall(r"\d+", asked)
    yield from (("empty", text) for text in ("", " ", "\n\n", "."))
    yield from (("constant", text) for text in _CONSTANT)
    yield from (("format", text) for text in _FORMAT_ONLY)
    yield from (("keywords", text) for text in (keywords, f"<answer>{keywords}</answer>", f"{_KEYWORDS} " * 20))
    yield from (("copied", text) for text in (asked, asked * 3, f"<answer>{asked}</answer>", f"{offered}\n{asked}"))
    if names:
        yield from (("copied", text) for text in (offered, f"<tool_call>{offered}</tool_call>", empty_calls, names[0]))
    if numbers:
        yield "copied", f"<answer>{' '.join(numbers)}</answer>"
        yield "copied", "".join(f"<answer>{number}</answer>" for number in numbers)


def probe(rewards: Rewards, rows: Sequence[Row], *, count_tokens: Callable[[str], int]) -> dict[str, Findings]:
    """Run the whole suite.

    Args:
        rewards: what is probed, built-in or your own.
        rows: rows with right answers.
        count_tokens: length of a text in tokens.

    Returns:
        Findings by name of each function, and of the weighted sum under `total`.

    Raises:
        NexusError: as the functions; a reward must stand any text.
    """
    found = {name: Findings() for name in (*(reward.name for reward in rewards.functions), "total")}

    def earned(row: Row, text: str) -> dict[str, float]:
        sample = Sample(row.id, text, row.gold, row.prompt, row.tools, True, count_tokens(text))
        rewarded = rewards.score([sample])[0]
        return rewarded.components | {"total": rewarded.total}

    for row in rows:
        right = earned(row, row.right)
        for kind, text in cheap_answers(row):
            if _is_right(row, text):
                continue
            for name, value in earned(row, text).items():
                found[name].add(row, kind, text, value, right[name])
        for text in row.forms:
            for name, value in earned(row, text).items():
                found[name].forms += 1
                if value < right[name]:
                    found[name].short.append((row.id, text, value, right[name]))
    return found


def _is_right(row: Row, text: str) -> bool:
    """A refusal is right where no tool fits, and a constant may be the answer by chance."""
    if row.gold.get("calls") == []:
        return text in ("I cannot do that.", "None of the tools can do that.") or _mere_words(text)
    answer = re.escape(str(row.gold.get("answer", "")))
    # Not by the function under test: a hole in it would hide itself.
    said = rf"(?:.*<answer>\s*{answer}\s*</answer>|\\boxed\{{{answer}\}}|{answer})"
    return bool(answer) and re.fullmatch(said, text, re.DOTALL) is not None


def _mere_words(text: str) -> bool:
    return "<" not in text and "{" not in text


def tools_row(row: Mapping[str, Any]) -> Row:
    """A row of the view `prompts` of the tools data, with its right answer and its other legal forms.

    Args:
        row: `id`, `prompt`, `tools` and `gold` with `calls`.

    Returns:
        The row for `probe`.
    """
    calls = row["gold"]["calls"]

    def tagged(one: Mapping[str, Any], key: str = "arguments", **form: Any) -> str:
        return f"<tool_call>{json.dumps({'name': one['name'], key: one['arguments']}, **form)}</tool_call>"

    if not calls:
        right = "None of the tools can do that."
        forms: tuple[str, ...] = (
            "I am sorry, no tool fits.",
            "<think>Nothing fits.</think>\nNo tool on offer does this.",
        )
    else:
        right = "\n".join(map(tagged, calls))
        reverse = [{**one, "arguments": dict(reversed(one["arguments"].items()))} for one in reversed(calls)]
        bare = [json.dumps({"name": one["name"], "parameters": one["arguments"]}) for one in calls]
        text = [{"name": one["name"], "arguments": json.dumps(one["arguments"])} for one in calls]
        forms = (
            "".join(map(tagged, reverse)),
            "\n".join(tagged(one, indent=2) for one in calls),
            "\n".join(tagged(one, "parameters") for one in calls),
            "\n".join(map(tagged, text)),
            "; ".join(bare),
            f"<think>I will call it.</think>\nHere it is:\n{right}",
        )
    return Row(row["id"], tuple(row["prompt"]), row["gold"], tuple(row["tools"]), right, forms)


def cot_row(row: Mapping[str, Any]) -> Row:
    """A row of the view `prompts` of the word arithmetic, with its right answer and its other legal forms.

    Args:
        row: `id`, `prompt` and `gold` with `answer` and `steps`.

    Returns:
        The row for `probe`.
    """
    answer, steps = row["gold"]["answer"], list(row["gold"]["steps"])
    lines = "\n".join(steps)
    times = lines.replace(" * ", " × ")
    forms = (
        f"{times}\n<answer>{answer}</answer>",
        f"{lines}\n<answer> {answer}.0 </answer>",
        f"{lines}\n<answer>{answer} in the end</answer>",
        f"Let us see.\n{lines}\nSo:\n<answer>\n{answer}\n</answer>\n",
        f"{lines.replace(' ', '')}\n<answer>{int(answer) * 2}/2</answer>",
    )
    return Row(row["id"], tuple(row["prompt"]), row["gold"], (), f"{lines}\n<answer>{answer}</answer>", forms)
