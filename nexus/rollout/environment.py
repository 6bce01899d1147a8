"""Conversations with an environment: it executes the functions that an answer calls and hands their results back.

The model goes on until it answers without a call, has had all its turns, or the limit of tokens is reached. What the
environment wrote is read by the model like a prompt and is no action of it: it counts in no loss, no sum of
log-probabilities and no length. Imports no torch.

Signature:
    converse(*, answer, tokenizer, prompts, tools, environment, max_new_tokens) -> list[Conversation]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from nexus.data.synthetic.tool_results import call_result
from nexus.data.template import encode_prompts
from nexus.errors import NexusError
from nexus.text.call_match import parameters_of
from nexus.text.think import split_think
from nexus.text.tool_calls import ToolCall, parse_answer
from nexus.types import Example, Generation, Message

Tools = Sequence[Mapping[str, Any]]
Execute = Callable[[ToolCall, Tools], Mapping[str, Any]]
Answer = Callable[[Sequence[int], Sequence[Sequence[int]], int, int], Sequence[Generation]]
"""(rows, what each of them has read and written so far, turn from 0, limit of new tokens) to one answer for each."""

#: What executes a call, by the name of the environment.
EXECUTE: dict[str, Execute] = {"tools": call_result}
#: A call that cannot be read has no function that could say what is wrong with it.
_MALFORMED = {"error": "not a call"}
_NO_NAME = "unknown"
_PROBE = "probe_function"


@dataclass(frozen=True)
class Environment:
    """Who executes calls, and how often an answer may be continued.

    Attributes:
        execute: gives the result of a call among the offered tools; nothing that the model wrote may stand in it.
        max_turns: answers of a conversation, at least 1; the calls of the last one are not executed.
    """

    execute: Execute
    max_turns: int


@dataclass(frozen=True)
class Conversation:
    """What came after a prompt.

    Attributes:
        token_ids: of all turns in order, the environment's and the template's between them included.
        loss_mask: True for the tokens that the model wrote.
        logprobs: of these, under the distribution that they were drawn from.
        turns: what was said, as chat turns: `assistant` as the model wrote it, `tool` for every result.
        finished: False if the limit of tokens ended it.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    turns: tuple[Message, ...]
    finished: bool

    @property
    def text(self) -> str:
        """What the model wrote, turn after turn in a line of its own; of earlier turns without the thinking."""
        said = [str(turn["content"]) for turn in self.turns if turn["role"] == "assistant"]
        return "\n".join([*(split_think(text).answer for text in said[:-1]), said[-1]])


def make_environment(settings: Mapping[str, Any] | None) -> Environment | None:
    """The environment of a capability.

    Args:
        settings: `capabilities.NAME.environment`: `name` and `max_turns`, or None.

    Returns:
        The environment; None without one.
    """
    return None if settings is None else Environment(EXECUTE[settings["name"]], settings["max_turns"])


@dataclass
class _Talk:
    """A conversation that is going on."""

    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    finished: bool = False

    def hear(self, answer: Generation, *, room: int, tokenizer: Any) -> None:
        """Add a turn of the model, as far as there is room for it."""
        tokens, text = answer.token_ids[:room], answer.text
        self.finished = answer.finished and len(answer.token_ids) <= room
        if len(tokens) < len(answer.token_ids):
            text = tokenizer.decode(list(tokens), skip_special_tokens=False)
        self.token_ids += tokens
        self.loss_mask += [True] * len(tokens)
        self.logprobs += answer.logprobs[:room]
        self.turns.append({"role": "assistant", "content": text})

    def read(self, results: Sequence[Message], token_ids: Sequence[int]) -> None:
        """Add what the environment says."""
        self.token_ids += token_ids
        self.loss_mask += [False] * len(token_ids)
        self.turns += results


def converse(
    *,
    answer: Answer,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    tools: Sequence[Tools],
    environment: Environment | None,
    max_new_tokens: int,
) -> list[Conversation]:
    """Answer every prompt, and go on with the results of what was called.

    Args:
        answer: gives one answer for each row it is asked for; the first turn asks for all rows in order.
        tokenizer: with a chat template that writes results.
        prompts: token ids of each row.
        tools: definitions that each row has on offer.
        environment: executes the calls; None leaves it at one turn.
        max_new_tokens: limit of a whole conversation, results included.

    Returns:
        One conversation for each prompt.

    Raises:
        NexusError: `E-TOK-12` if the chat template cannot go on after an answer.
    """
    talks = [_Talk() for _ in prompts]
    active = list(range(len(prompts)))
    for turn in range(environment.max_turns if environment else 1):
        # one limit for all of a batch; what is longer than its own row allows is cut off afterwards
        room = {i: max_new_tokens - len(talks[i].token_ids) for i in active}
        heard = answer(active, [[*prompts[i], *talks[i].token_ids] for i in active], turn, max(room.values()))
        for i, generation in zip(active, heard, strict=True):
            talks[i].hear(generation, room=room[i], tokenizer=tokenizer)
        if environment is None or turn + 1 == environment.max_turns:
            break
        results = {i: _results(talks[i], tools[i], environment) for i in active if talks[i].finished}
        active = [i for i, found in results.items() if found]
        if not active:
            break
        written = result_tokens(tokenizer, [results[i] for i in active])
        for i, token_ids in zip(list(active), written, strict=True):
            if len(talks[i].token_ids) + len(token_ids) < max_new_tokens:
                talks[i].read(results[i], token_ids)
            else:
                talks[i].finished = False  # the limit leaves no room for what it asked for
                active.remove(i)
        if not active:
            break
    return [
        Conversation(tuple(t.token_ids), tuple(t.loss_mask), tuple(t.logprobs), tuple(t.turns), t.finished)
        for t in talks
    ]


def _results(talk: _Talk, tools: Tools, environment: Environment) -> list[Message]:
    """One turn for everything that the last answer called; none if it called nothing."""
    parsed = parse_answer(str(talk.turns[-1]["content"]))
    offered = parameters_of(tools)
    turns = [
        # a name that the model made up must not come back to it as if it were the template's
        _tool_turn(call.name if call.name in offered else _NO_NAME, environment.execute(call, tools))
        for call in parsed.calls
    ]
    return turns + [_tool_turn(_NO_NAME, _MALFORMED)] * len(parsed.malformed)


def _tool_turn(name: str, result: Mapping[str, Any]) -> Message:
    return {"role": "tool", "name": name, "content": json.dumps(dict(result))}


def result_tokens(tokenizer: Any, results: Sequence[Sequence[Message]]) -> list[list[int]]:
    """What the chat template writes between the end of an answer and the next one.

    It is read off a conversation of a word and a call, since it does not depend on what was said before.

    Args:
        tokenizer: with a chat template.
        results: for each conversation its turns of role `tool`, at least one.

    Returns:
        Token ids behind the answer's end-of-turn token, the generation prompt included.

    Raises:
        NexusError: `E-TOK-12` if the answer's end cannot be found; `E-TOK-06` if the template takes no results.
    """
    function = {"name": _PROBE, "description": "A probe", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "id": "call00001", "function": {"name": _PROBE, "arguments": {}}}
    opening: list[Message] = [
        {"role": "user", "content": "Begin."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    tools = ({"type": "function", "function": function},)
    examples = [
        Example(
            "results", "environment", (*opening, *(turn | {"tool_call_id": call["id"]} for turn in turns)), tools=tools
        )
        for turns in ([], *results)
    ]
    before, *through = encode_prompts(tokenizer, examples)
    return [_behind_answer(tokenizer, before, ids) for ids in through]


def _behind_answer(tokenizer: Any, before: list[int], ids: list[int]) -> list[int]:
    """What follows the answer that both rows have in common; only the second one goes on with results."""
    common = commonprefix([before, ids])
    ends = [at for at, token in enumerate(common) if token == tokenizer.eos_token_id]
    rest = ids[ends[-1] + 1 :] if ends else []
    if not rest or _PROBE in tokenizer.decode(common[ends[-1] + 1 :], skip_special_tokens=False):
        raise NexusError(
            "E-TOK-12",
            "the chat template does not end an answer with the tokenizer's end-of-sequence token before a result, so a "
            "conversation cannot go on behind it",
            where="base_model.chat_template",
            remedy="choose a model whose template does, or leave capabilities.NAME.environment at null",
        )
    return rest


def insist_on_results(tokenizer: Any) -> None:
    """Refuse a chat template that cannot carry results, before anything is trained.

    Args:
        tokenizer: with a chat template.

    Raises:
        NexusError: `E-TOK-12`, or `E-TOK-06` if the template refuses such turns.
    """
    figures = ("31337", "27182")
    [ids] = result_tokens(tokenizer, [[_tool_turn(_PROBE, {"total": int(figure)}) for figure in figures]])
    written = tokenizer.decode(ids, skip_special_tokens=False)
    if not all(figure in written for figure in figures):
        raise NexusError(
            "E-TOK-12",
            "the chat template leaves out what a function gave back",
            where="base_model.chat_template",
            remedy="choose a model whose template writes tool turns, or leave capabilities.NAME.environment at null",
        )
