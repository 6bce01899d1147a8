"""Scores of one answer, by capability. Every value lies between 0 and 1; a metric that does not apply is absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nexus.text.answers import Equation, equations, final_answer, marked_answer, normalize_number, same_number
from nexus.text.call_match import call_problems, count_matches, declines
from nexus.text.equality import same_answer
from nexus.text.think import split_think
from nexus.text.tool_calls import parse_answer

TOOLS_METRICS = ("exact_match", "name", "arguments", "schema", "irrelevance")
TOOL_RESULTS_METRICS = ("exact_match", "calls", "answer")
COT_METRICS = ("exact_match", "steps", "format")


def tools_metrics(prompt_row: Mapping[str, Any], answer_text: str, *, finished: bool) -> dict[str, float]:
    """Score an answer that may call tools, in the manner of BFCL's AST check.

    An answer counts only if it is finished and holds nothing malformed. Text around calls is tolerated (models of the
    Qwen and Llama families often say a sentence first); a call too many is not.

    - `exact_match`: exactly the right calls, in any order; on a row that no tool fits, the same as `irrelevance`.
    - `name`: the called names are the right ones, each as often as needed.
    - `arguments`: share of the right calls that were made with equal name and arguments.
    - `schema`: there are calls, and each fits the schema of an offered tool.
    - `irrelevance`: only on rows that no tool fits: a finished sentence that calls nothing and is no copy of the
      request.

    Args:
        prompt_row: `gold` = {"calls": [{"name", "arguments"}, ..]}, `tools`, `prompt`.
        answer_text: what the model wrote, tags kept, stop token removed.
        finished: False if the token limit ended the answer.

    Returns:
        Metric values; `irrelevance` is absent where a tool fits, `name`, `arguments` and `schema` where none does.

    Raises:
        NexusError: `E-DAT-30` if an offered schema has an unknown type.
    """
    gold: Sequence[Mapping[str, Any]] = prompt_row["gold"]["calls"]
    tools: Sequence[Mapping[str, Any]] = prompt_row["tools"]
    parsed = parse_answer(answer_text)
    sound = finished and not parsed.malformed
    if not gold:
        declined = float(sound and declines(parsed, tools, prompt_row["prompt"]))
        return {"exact_match": declined, "irrelevance": declined}
    if not sound or not parsed.calls:
        return dict.fromkeys(("exact_match", "name", "arguments", "schema"), 0.0)
    matched = count_matches(parsed.calls, gold, tools)
    right_names = Counter(call.name for call in parsed.calls) == Counter(call["name"] for call in gold)
    return {
        "exact_match": float(matched == len(gold) == len(parsed.calls)),
        "name": float(right_names),
        "arguments": matched / len(gold),
        "schema": float(all(not call_problems(call, tools) for call in parsed.calls)),
    }


def tool_results_metrics(prompt_row: Mapping[str, Any], answer_text: str, *, finished: bool) -> dict[str, float]:
    """Score a conversation in which functions are called and their results are stated.

    - `exact_match`: both of the following.
    - `calls`: exactly the right calls were made, over all turns, in any order (`exact_match` of `tools_metrics`).
    - `answer`: the last turn calls nothing and marks the right answer.

    Args:
        prompt_row: `gold` = {"calls": [..], "answer": text}, `tools`, `prompt`, and `turns`, what came after it.
        answer_text: what the model wrote in all turns.
        finished: False if the token limit ended the conversation.

    Returns:
        Metric values.

    Raises:
        NexusError: `E-DAT-30` if an offered schema has an unknown type.
    """
    last = str(prompt_row["turns"][-1]["content"])
    said, parsed = marked_answer(last), parse_answer(last)
    calls = tools_metrics(prompt_row, answer_text, finished=finished)["exact_match"]
    right = said is not None and same_answer(said, str(prompt_row["gold"]["answer"]), 0.0)
    answer = float(finished and right and not parsed.calls and not parsed.malformed)
    return {"exact_match": calls * answer, "calls": calls, "answer": answer}


def cot_metrics(prompt_row: Mapping[str, Any], answer_text: str, *, finished: bool) -> dict[str, float]:
    """Score an answer that calculates in steps.

    - `exact_match`: the final answer (see `nexus.text.answers.final_answer`) is the right number.
    - `steps`: share of the right equations that were written, in their order; a wrong equation between them, or one
      too many, takes its share away, because it is divided by the longer of both lists. Equations inside the thinking
      count, too.
    - `format`: the answer is marked as such and is a number, and nothing is malformed.

    `steps` is absent where the gold has none.

    Args:
        prompt_row: `gold` = {"answer": "19", "steps": ["12 + 7 = 19", ..]}.
        answer_text: what the model wrote, tags kept, stop token removed.
        finished: False if the token limit ended the answer.

    Returns:
        Metric values.
    """
    gold = prompt_row["gold"]
    said = final_answer(answer_text) if finished else None
    marked = marked_answer(answer_text) if finished else None
    values = {
        "exact_match": float(said is not None and same_number(said, str(gold["answer"]))),
        "format": float(marked is not None and normalize_number(marked) is not None),
    }
    right = equations("\n".join(gold.get("steps", ())))
    if right:
        values["steps"] = _steps_in_order(_all_equations(answer_text), right)
    return values


def _all_equations(answer_text: str) -> list[Equation]:
    thought = split_think(answer_text)
    return equations(f"{thought.thinking or ''}\n{thought.answer}")


def _steps_in_order(written: Sequence[Equation], right: Sequence[Equation]) -> float:
    """Longest common subsequence of true equations, over the longer list."""
    previous = [0] * (len(right) + 1)
    for equation in written:
        current = [0]
        for index, gold in enumerate(right):
            hit = _same_step(equation, gold) and equation.holds
            current.append(previous[index] + 1 if hit else max(previous[index + 1], current[index]))
        previous = current
    return previous[-1] / max(len(right), len(written))


def _same_step(written: Equation, gold: Equation) -> bool:
    """Whether two equations are the same; the operands of + and * may change places."""
    swapped = Equation(written.right, written.operator, written.left, written.result)
    return written == gold or (written.operator in ("+", "*") and swapped == gold)
