"""Tool-calling rows: a request, the tools on offer, and the one right answer.

A task is sampled once from (split, seed, index); the three views `sft`, `preference` and `prompts` only show it in
different ways; `sft` adds up to three further requests on the same tools to it, because their schemas are most of what
there is to read. A task is one call, two calls or a request that no offered tool fits: 75, 18 and 7 % of the evaluation
rows. In the training rows no tool fits in 16 %, or the model learns to call something always. Functions, their
argument sets and all values belong to one split each (see `tools_catalog` and `words`); only booleans, whose two
values exist once in the world, occur in both.

An answer first says what is asked for, in the words of the request ("rent cabin"), and then calls, or says that no tool
does that. Without those words a small model has to choose a function, or none, before it has written anything that it
could look up among the tools.

The calls follow from the prompt alone: every value is announced by the name of its argument or by a preposition
that no other argument of the function uses, arguments stand in the order of the signature, optional ones appear only
if the request mentions them, and calls come in the order of the request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from nexus.data.synthetic import words
from nexus.data.synthetic.tools_catalog import VERBS, Function, Parameter, functions

VIEWS = ("sft", "preference", "prompts")
NO_TOOL_ANSWER = "none of the tools can do that."
KINDS = {
    "train": {"single": 62, "parallel": 22, "none": 16},
    "eval": {"single": 75, "parallel": 18, "none": 7},
}
OFFERED = {1: 14, 2: 46, 3: 28, 4: 9, 5: 3}
#: Requests in one conversation of the training rows.
REQUESTS = {1: 30, 2: 30, 3: 25, 4: 15}

_IMPERATIVE = ("{V} {o} {c}.", "Now {v} {o} {c}.", "{V} {o} {c} for me.", "{V} {o}, {c}.", "{C}, {v} {o}.")
_POLITE = (
    "Please {v} {o} {c}.", "Could you please {v} {o} {c}?", "Would you {v} {o} {c}, please?", "Kindly {v} {o} {c}.",
    "I would like to {v} {o} {c}.", "I want to {v} {o} {c}, thank you.",
)  # fmt: skip
_QUESTION = (
    "Can you {v} {o} {c}?",
    "Could you {v} {o} {c}?",
    "Is it possible to {v} {o} {c}?",
    "Will you {v} {o} {c}?",
)
_TERSE = ("{v} {n}: {k}", "{V} {n} ({k})", "{v} {n}, {k}", "Task: {v} {n}. {K}")
_STORY = (
    "I am busy today, so {v} {o} {c}.", "My friend asked me to {v} {o} {c}. Can you do it?",
    "We are almost done. I only need to {v} {o} {c}.", "It is late. {V} {o} {c}.", "Hello! I have to {v} {o} {c}.",
    "Things changed again. {V} {o} {c} and tell me when it is done.",
)  # fmt: skip
_STYLES = (_IMPERATIVE, _POLITE, _QUESTION, _TERSE, _STORY)
_STYLE_WEIGHTS = (30, 22, 18, 16, 14)
_TWICE = (
    "{V} {o} {c}, and also one {d}.", "{V} {o} {c}. Then {v} another one {d}.",
    "Please {v} {o} {c}, and a second one {d}.",
    "I need to {v} {o} {c}; then another {d}.", "Can you {v} {o} {c}, then one more {d}?",
)  # fmt: skip
_PAIR = (
    "{V} {o} {c}. Then {v2} {o2} {d}.", "Please {v} {o} {c}, then {v2} {o2} {d}.", "{V} {o} {c}; also {v2} {o2} {d}.",
    "Can you {v} {o} {c} and then {v2} {o2} {d}?", "First {v} {o} {c}. After that {v2} {o2} {d}.",
)  # fmt: skip


#: Share of training tasks whose functions get nouns that no catalog has.
RENAMED_SHARE = 0.9


@dataclass(frozen=True)
class Call:
    """A function with the values of one request.

    Attributes:
        function: the function to call.
        arguments: by name, in signature order.
    """

    function: Function
    arguments: dict[str, Any]

    def as_gold(self) -> dict[str, Any]:
        """The call as metrics compare it."""
        return {"name": self.function.name, "arguments": dict(self.arguments)}

    def as_tool_call(self) -> dict[str, Any]:
        """The call as it stands in a message."""
        return {"type": "function", "function": self.as_gold()}


@dataclass(frozen=True)
class Task:
    """One sampled task, the same for every view.

    Attributes:
        id: stable name of the row.
        request: what the user says.
        plan: what is asked for, in the words of the request; an answer begins with it.
        offered: the functions on offer, in the order shown.
        calls: the right calls in order; empty if no offered function fits.
    """

    id: str
    request: str
    plan: str
    offered: tuple[Function, ...]
    calls: tuple[Call, ...]


def _title(rng: random.Random, split: str) -> str:
    """One to three capitalized words; the title and each of its words are in the split."""
    if rng.random() < 0.2:
        return words.invented_name(rng, split).capitalize()
    pools = (words.ADJECTIVES, words.NOUNS) if rng.random() < 0.75 else (words.ADJECTIVES, words.NOUNS, words.NOUNS)
    return words.draw(rng, split, lambda r: " ".join(words.pick(r, pool, split) for pool in pools).title())


def sample_value(rng: random.Random, parameter: Parameter, split: str) -> Any:
    """A value that fits a parameter.

    Args:
        rng: source of randomness.
        parameter: the parameter to fill.
        split: "train" or "eval".

    Returns:
        str, int, float with one decimal, bool, or a list of two or three distinct str.

    Raises:
        ValueError: the catalog names a kind that nothing fills.
    """
    argument = parameter.argument
    match argument.kind:
        case "boolean":
            return rng.random() < 0.5
        case "enum":
            return rng.choice(parameter.options)
        case "integer":
            return int(words.draw(rng, split, lambda r: str(r.randint(argument.low, argument.high))))
        case "number":
            return float(
                words.draw(rng, split, lambda r: f"{r.randint(argument.low, argument.high)}.{r.randint(1, 9)}")
            )
        case "items":
            return rng.sample(words.of_split(words.NOUNS, split), rng.choice((2, 2, 3)))
        case "title":
            return _title(rng, split)
        case "city" | "country" | "person" | "code" | "email" | "date":
            return getattr(words, argument.kind)(rng, split)  # each has its function there
    raise ValueError(f"argument {argument.name} has the unknown kind {argument.kind!r}")


def _call(rng: random.Random, function: Function, split: str) -> Call:
    arguments: dict[str, Any] = {}
    for parameter in function.parameters:
        if not parameter.required and rng.random() < 0.5:
            continue
        value = sample_value(rng, parameter, split)
        while not isinstance(value, bool) and value in arguments.values():
            value = sample_value(rng, parameter, split)
        arguments[parameter.argument.name] = value
    return Call(function, arguments)


def _said(value: Any) -> str:
    """A value as a request writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value[:-1]) + f" and {value[-1]}"
    return str(value)


def _cues(function: Function, parameter: Parameter) -> tuple[str, ...]:
    """The cues of a parameter, without a bare preposition that another parameter of the function may use, too."""

    def bare(cue: str) -> str:
        head, _, tail = cue.partition(" {v}")
        return head if not tail and " " not in head else ""

    others = {bare(cue) for p in function.parameters if p is not parameter for cue in p.argument.cues if bare(cue)}
    own = tuple(cue for cue in parameter.argument.cues if bare(cue) not in others)
    return (*own, f"with the {parameter.argument.spoken} {{v}}")


def _mentions(rng: random.Random, call: Call) -> str:
    """All values of a call, each with its cue."""
    parameters = {p.argument.name: p for p in call.function.parameters}
    names = list(call.arguments)
    if rng.random() < 0.4:
        rng.shuffle(names)
    parts = []
    for name in names:
        value, parameter = call.arguments[name], parameters[name]
        if isinstance(value, bool):
            parts.append(parameter.argument.cues[0 if value else 1])
            continue
        said = _said(value)
        if parameter.argument.kind == "title" and rng.random() < 0.3:
            said = f'"{said}"'
        parts.append(rng.choice(_cues(call.function, parameter)).replace("{v}", said))
    return " ".join(parts)


def _pairs(rng: random.Random, call: Call) -> str:
    """All values of a call as `name: value` pairs."""
    names = list(call.arguments)
    if rng.random() < 0.4:
        rng.shuffle(names)
    mark = rng.choice((": ", ": ", "=", " "))
    raw = rng.random() < 0.3
    return "; ".join(f"{n if raw else n.replace('_', ' ')}{mark}{_said(call.arguments[n])}" for n in names)


def _verb(rng: random.Random, function: Function) -> str:
    said = VERBS[function.verb]
    return rng.choice(said) if said and rng.random() < 0.3 else function.verb


def _object(rng: random.Random, noun: str) -> str:
    article = rng.choice(("a", "a", "the", "my"))
    return f"{'an' if article == 'a' and noun[0] in 'aeiou' else article} {noun}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _request(rng: random.Random, calls: tuple[Call, ...]) -> tuple[str, str]:
    first = calls[0]
    verb = _verb(rng, first.function)
    slots = {"v": verb, "V": _upper(verb), "n": first.function.noun, "o": _object(rng, first.function.noun)}
    slots["c"] = _mentions(rng, first)
    plan = f"{verb} {first.function.noun}"
    if len(calls) == 1:
        slots |= {"C": _upper(slots["c"]), "k": _pairs(rng, first)}
        slots["K"] = _upper(slots["k"])
        return rng.choice(rng.choices(_STYLES, _STYLE_WEIGHTS)[0]).format(**slots), plan
    slots["d"] = _mentions(rng, calls[1])
    if calls[1].function == first.function:
        return rng.choice(_TWICE).format(**slots), f"{plan}, {plan}"
    slots |= {"v2": _verb(rng, calls[1].function), "o2": _object(rng, calls[1].function.noun)}
    plan += f", {slots['v2']} {calls[1].function.noun}"
    return rng.choice(_PAIR).format(**slots), plan


@lru_cache(maxsize=1024)
def _neighbors(split: str, domain: str, verb: str, noun: str) -> tuple[tuple[Function, ...], tuple[Function, ...]]:
    """Functions of the same domain or verb, and functions of the same object."""
    pool = functions(split)
    near = tuple(f for f in pool if f.domain == domain or f.verb == verb)
    return near, tuple(f for f in pool if f.noun == noun)


@lru_cache(maxsize=2)
def _short(split: str) -> tuple[Function, ...]:
    """Functions of at most two arguments; two calls with three each would make a row too long."""
    return tuple(f for f in functions(split) if len(f.parameters) < 3)


def _distractors(rng: random.Random, split: str, wanted: tuple[Function, ...], count: int) -> list[Function]:
    """Other functions; half of them near: the same verb, the same object or the same domain."""
    pool = functions(split)
    groups = [_neighbors(split, f.domain, f.verb, f.noun) for f in wanted]
    found: list[Function] = []
    while len(found) < count:
        kind = rng.random()
        near, close = rng.choice(groups)
        pick = rng.choice(close if kind < 0.2 else near if kind < 0.55 else pool)
        if pick not in wanted and pick not in found:
            found.append(pick)
    return found


@lru_cache(maxsize=1)
def _held_out_nouns() -> frozenset[str]:
    """Objects of the evaluation catalog, which no training function may have."""
    return frozenset(function.noun for function in functions("eval"))


def _rename(rng: random.Random, split: str, taken: Container[str]) -> str:
    """A noun that no catalog has: invented, or one or two English words of the split."""
    nouns = (words.NOUNS, words.OFFICE_NOUNS)
    while True:
        kind = rng.random()
        noun = words.pick(rng, rng.choice(nouns), split)
        if kind < 0.4:
            noun = words.invented_name(rng, split)
        elif kind < 0.7:
            noun = f"{words.pick(rng, rng.choice((words.ADJECTIVES, *nouns, words.OFFICE_NOUNS)), split)} {noun}"
        if noun not in taken and noun not in _held_out_nouns():
            return noun


def _renamed(split: str, seed: int, index: int, functions_of_task: Sequence[Function]) -> dict[Function, Function]:
    """The functions of a training task under other nouns, in a share of the tasks; the same functions else.

    The catalog has some hundred names. A small model learns them by heart within minutes and then writes the most
    similar one where it should copy; names that never come back leave it nothing to learn but copying.
    """
    same = {function: function for function in functions_of_task}
    rng = random.Random(f"nexus-tools-names:{split}:{seed}:{index}")
    if split != "train" or rng.random() >= RENAMED_SHARE:
        return same
    nouns: dict[str, str] = {}
    for noun in dict.fromkeys(function.noun for function in functions_of_task):
        nouns[noun] = _rename(rng, split, nouns.values())
    return {function: _with_noun(function, nouns[function.noun]) for function in same}


def _with_noun(function: Function, noun: str) -> Function:
    return replace(
        function,
        name=f"{function.verb}_{noun.replace(' ', '_')}",
        noun=noun,
        description=function.description.replace(function.noun, noun),
    )


def sample_task(split: str, seed: int, index: int) -> Task:
    """The task number `index`; it depends on nothing else.

    Args:
        split: "train" or "eval".
        seed: seed of the rows.
        index: number of the row from 0.

    Returns:
        The task.
    """
    rng = random.Random(f"nexus-tools:{split}:{seed}:{index}")
    pool = functions(split)
    kind = rng.choices(tuple(KINDS[split]), tuple(KINDS[split].values()))[0]
    count = rng.choices(tuple(OFFERED), tuple(OFFERED.values()))[0]
    function = rng.choice(pool)
    wanted: tuple[Function, ...] = (function,)
    if kind == "parallel":
        short = _short(split)
        function = rng.choice(short)
        wanted = (function, function) if rng.random() < 0.55 else tuple(rng.sample(short, 2))
    right = () if kind == "none" else tuple(dict.fromkeys(wanted))
    others = _distractors(rng, split, tuple(dict.fromkeys(wanted)), max(count - len(right), 0))
    named = _renamed(split, seed, index, [*wanted, *others])
    wanted = tuple(named[f] for f in wanted)
    calls = _calls(rng, split, wanted)
    request, plan = _request(rng, calls)
    right = () if kind == "none" else tuple(dict.fromkeys(wanted))
    offered = [*right, *(named[f] for f in others)]
    rng.shuffle(offered)
    calls = () if kind == "none" else calls
    return Task(f"tools-{split}-{seed}-{index}", request, plan, tuple(offered), calls)


def _calls(rng: random.Random, split: str, wanted: tuple[Function, ...]) -> tuple[Call, ...]:
    calls = tuple(_call(rng, f, split) for f in wanted)
    while len(calls) == 2 and (calls[0] == calls[1] or _free_values(calls[0]) & _free_values(calls[1])):
        calls = (calls[0], _call(rng, wanted[1], split))
    return calls


def further_requests(task: Task, split: str, seed: int, index: int) -> Iterator[Task]:
    """What the same user asks next, of the same tools.

    Args:
        task: the task that begins the conversation.
        split: "train" or "eval".
        seed: seed of the rows.
        index: number of the row from 0.

    Yields:
        None to three tasks with the tools of the first.
    """
    rng = random.Random(f"nexus-tools-further:{split}:{seed}:{index}")
    short = tuple(f for f in task.offered if len(f.parameters) < 3)
    for _ in range(rng.choices(tuple(REQUESTS), tuple(REQUESTS.values()))[0] - 1):
        kind = rng.choices(tuple(KINDS[split]), tuple(KINDS[split].values()))[0]
        wanted: tuple[Function, ...] = (rng.choice(task.offered),)
        if kind == "none":
            wanted = (_not_offered(rng, split, task.offered),)
        elif kind == "parallel" and short:
            function = rng.choice(short)
            wanted = tuple(rng.sample(short, 2)) if len(short) > 1 and rng.random() < 0.45 else (function, function)
        calls = _calls(rng, split, wanted)
        request, plan = _request(rng, calls)
        yield replace(task, request=request, plan=plan, calls=() if kind == "none" else calls)


def _not_offered(rng: random.Random, split: str, offered: tuple[Function, ...]) -> Function:
    """A function beside the offered ones: as often as not another verb for the object of one of them."""
    taken = {f.noun: {g.verb for g in offered if g.noun == f.noun} for f in offered}
    noun = rng.choice(tuple(taken))
    if rng.random() < 0.5:
        said = {word for other in taken for word in other.split()}
        while said & set(noun.split()):
            noun = _rename(rng, split, taken)
    while True:
        function = rng.choice(functions(split))
        if function.verb not in taken.get(noun, ()):
            return _with_noun(function, noun)


def _free_values(call: Call) -> set[str]:
    """Values that two calls of one request must not share; flags and enums have too few to forbid it."""
    free = {p.argument.name for p in call.function.parameters if p.argument.kind not in ("boolean", "enum")}
    return {str(value) for name, value in call.arguments.items() if name in free}


def _other_value(rng: random.Random, task: Task, split: str, which: int) -> dict[str, Any]:
    call = task.calls[which]
    arguments = dict(call.arguments)
    parameters = {p.argument.name: p for p in call.function.parameters}
    name = rng.choice(tuple(arguments))
    value = arguments[name]
    while value == arguments[name]:
        value = sample_value(rng, parameters[name], split)
    return {"name": call.function.name, "arguments": arguments | {name: value}}


def _message(plan: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": plan, "tool_calls": [{"type": "function", "function": c} for c in calls]}


def _rejected(rng: random.Random, task: Task, split: str) -> dict[str, Any]:
    """A realistic wrong answer: value, function, argument, number of calls, form, or a refusal."""
    if not task.calls:
        return _message(task.plan, [_call(rng, rng.choice(task.offered), split).as_gold()])
    gold = [call.as_gold() for call in task.calls]
    which = rng.randrange(len(gold))
    kinds = ["value", "value", "value", "malformed", "refusal", "missing"]
    kinds += ["function", "function"] if len(task.offered) > 1 else []
    kinds += ["half", "half"] if len(gold) > 1 else []
    match rng.choice(kinds):
        case "value":
            gold[which] = _other_value(rng, task, split, which)
        case "function":
            others = [f.name for f in task.offered if f.name != gold[which]["name"]]
            gold[which]["name"] = rng.choice(others)
        case "missing":
            gold[which]["arguments"].pop(rng.choice(tuple(gold[which]["arguments"])))
        case "half":
            gold.pop(which)
        case "malformed":
            text = json.dumps(gold[which], ensure_ascii=False)
            cut = text[: rng.randint(len(text) // 2, len(text) - 2)]
            return {"role": "assistant", "content": f"{task.plan}<tool_call>{cut}</tool_call>"}
        case "refusal":
            return {"role": "assistant", "content": f"{task.plan}: {NO_TOOL_ANSWER}"}
    return _message(task.plan, gold)


def _answer(task: Task) -> dict[str, Any]:
    if not task.calls:
        return {"role": "assistant", "content": f"{task.plan}: {NO_TOOL_ANSWER}"}
    return _message(task.plan, [call.as_gold() for call in task.calls])


def _row(task: Task, view: str, split: str, later: Iterable[Task] = ()) -> dict[str, Any]:
    prompt = [{"role": "user", "content": task.request}]
    answer = _answer(task)
    row: dict[str, Any] = {"id": task.id}
    if view == "sft":
        row["messages"] = [*prompt, answer]
        for further in later:
            row["messages"] += [{"role": "user", "content": further.request}, _answer(further)]
    elif view == "prompts":
        row |= {"prompt": prompt, "gold": {"calls": [call.as_gold() for call in task.calls]}}
    else:
        rng = random.Random(f"nexus-tools-rejected:{task.id}")
        row |= {"prompt": prompt, "chosen": [answer], "rejected": [_rejected(rng, task, split)]}
    row["tools"] = [function.schema() for function in task.offered]
    return row


def rows(*, view: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the embedded tools data.

    Args:
        view: "sft", "preference" or "prompts".
        split: "train" or "eval".
        count: number of rows; row i does not depend on it.
        seed: seed of the tasks; the functions do not depend on it.

    Yields:
        Rows as the project's data contract describes them.

    Raises:
        ValueError: an unknown view or split, or a negative count.
    """
    if view not in VIEWS or split not in words.SPLITS or count < 0:
        raise ValueError(f"no rows for view={view!r} (of {VIEWS}), split={split!r} (of {words.SPLITS}), count={count}")
    for index in range(count):
        task = sample_task(split, seed, index)
        later = further_requests(task, split, seed, index) if (view, split) == ("sft", "train") else ()
        yield _row(task, view, split, later)
