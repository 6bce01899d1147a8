"""Small problems of one to four steps, the stuff of `reasoning` and `thinking`: chains to follow, numbers to track.

A chain leads from thing to thing until one of them holds the answer; facts of other chains stand between its own. A
number is changed a few times and stays a single digit; a second person's number changes in between.

Things and names belong to one split each. Of single equations there are only ninety in this small world, so both splits
use them, but no two that follow each other: each pair of consecutive steps belongs to one split. The sentences are the
same in both splits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from nexus.data.synthetic import words
from nexus.text.answers import ANSWER_CLOSE, ANSWER_OPEN
from nexus.text.think import THINK_CLOSE, THINK_OPEN

CHAIN_SHARE = 0.6
#: Number of steps and its weight.
LENGTHS = {1: 15, 2: 35, 3: 35, 4: 15}
LARGEST = 9


@dataclass(frozen=True)
class Step:
    """One step of the way to the answer.

    Attributes:
        source: where one stands: a thing, a person, or a digit.
        sign: `->` leads on, `=` ends a chain, `+ 2 =` changes a number.
        target: where the step leads.
    """

    source: str
    sign: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} {self.sign} {self.target}"


@dataclass(frozen=True)
class Problem:
    """Facts, a question, and the way to its answer.

    Attributes:
        facts: what is given, in the order shown.
        question: what is asked.
        steps: the way.
        others: steps of the same world that do not belong to the way; empty for numbers.
    """

    facts: str
    question: str
    steps: tuple[Step, ...]
    others: tuple[Step, ...]

    @property
    def states(self) -> tuple[str, ...]:
        """Where one stands from the start to the answer."""
        return (self.steps[0].source, *(step.target for step in self.steps))

    @property
    def answer(self) -> str:
        """The last state."""
        return self.steps[-1].target


@dataclass(frozen=True)
class _World:
    """How the facts of a chain are told.

    Attributes:
        link: a thing that leads to another.
        end: a thing that holds an answer.
        question: where to start.
        between: stands between two facts.
        people: links are persons.
    """

    link: str
    end: str
    question: str
    between: str = " "
    people: bool = False


_WORLDS = (
    _World("{a} -> {b}", "{a} = {b}", "Start at {s}. What is the value?", "\n"),
    _World("{a} -> {b}", "{a} = {b}", "What does {s} lead to in the end?", "; "),
    _World("The {a} leads to the {b}.", "The {a} hides the {b}.", "Start at the {s}. What is hidden at the end?"),
    _World("{a} points to {b}.", "{a} holds {b}.", "Follow {s}. What do you find?"),
    _World("The {a} is a door to the {b}.", "The {a} has the {b} in it.", "We go in at the {s}. What do we find?"),
    _World("{a} sends us to {b}.", "{a} has the {b}.", "We ask {s} first. What do we get?", people=True),
    _World("{a} calls {b}.", "{a} finds the {b}.", "{s} starts. What is found?", people=True),
)
_NUMBERS = (
    ("{p} has {n} points.", ("{p} gets {n}.", "{p} finds {n} more."), ("{p} loses {n}.", "{p} gives away {n}."),
     "How many points has {p} now?"),
    ("{p} starts with {n} coins.", ("{p} adds {n}.", "{p} buys {n}."), ("{p} removes {n}.", "{p} sells {n}."),
     "How many coins has {p} at the end?"),
    ("{p} = {n}", ("{p} + {n}",), ("{p} - {n}",), "{p}?"),
)  # fmt: skip


def sample_problem(rng: random.Random, split: str) -> Problem:
    """One problem.

    Args:
        rng: source of randomness.
        split: "train" or "eval".

    Returns:
        A chain or a number with its way to the answer.

    Raises:
        ValueError: `split` is not a split.
    """
    length = rng.choices(tuple(LENGTHS), tuple(LENGTHS.values()))[0]
    return _chain(rng, split, length) if rng.random() < CHAIN_SHARE else _number(rng, split, length)


def _way(nodes: list[str], end: str) -> list[Step]:
    """Links from node to node, and what the last one holds."""
    links = [Step(a, "->", b) for a, b in zip(nodes, nodes[1:], strict=False)]
    return [*links, Step(nodes[-1], "=", end)]


def _chain(rng: random.Random, split: str, length: int) -> Problem:
    world = rng.choice(_WORLDS)
    others = rng.randint(2, 4)
    things = rng.sample(words.of_split(words.NOUNS, split), length + others + 2)
    nodes = rng.sample(words.of_split(words.FIRST_NAMES, split), length + others) if world.people else things[2:]
    own, other = _way(nodes[:length], things[0]), _way(nodes[length:], things[1])
    facts = [*own, *other]
    rng.shuffle(facts)
    told = [(world.link if step.sign == "->" else world.end).format(a=step.source, b=step.target) for step in facts]
    question = world.question.format(s=nodes[0])
    return Problem(world.between.join(told), question, tuple(own), tuple(other))


def _changes(rng: random.Random, split: str, length: int) -> tuple[Step, ...]:
    """Changes of a digit that stay digits; each pair of consecutive ones is in the split."""
    while True:
        steps: list[Step] = []
        number = rng.randint(0, LARGEST)
        for _ in range(length):
            steps.append(_change(rng, number))
            number = int(steps[-1].target)
        pairs = (f"{one}, {other}" for one, other in zip(steps, steps[1:], strict=False))
        if all(words.in_split(pair, split) for pair in pairs):
            return tuple(steps)


def _change(rng: random.Random, number: int) -> Step:
    """A change of a digit to another digit.

    Args:
        rng: source of randomness.
        number: 0 to 9.

    Returns:
        For instance `3 + 2 = 5`.
    """
    result = rng.choice([other for other in range(LARGEST + 1) if other != number])
    sign = "+" if result > number else "-"
    return Step(str(number), f"{sign} {abs(result - number)} =", str(result))


def _number(rng: random.Random, split: str, length: int) -> Problem:
    start, more, less, question = rng.choice(_NUMBERS)
    person, other = rng.sample(words.of_split(words.FIRST_NAMES, split), 2)

    def told(name: str, steps: tuple[Step, ...]) -> list[str]:
        first = start.format(p=name, n=steps[0].source)
        spoken = []
        for step in steps:
            sign, amount, _ = step.sign.split()
            spoken.append(rng.choice(more if sign == "+" else less).format(p=name, n=amount))
        return [first, *spoken]

    own = _changes(rng, split, length)
    facts = told(person, own)
    if rng.random() < 0.5:
        facts = _merged(rng, facts, told(other, _changes(rng, split, rng.randint(1, 2))))
    between = "; " if question == "{p}?" else " "
    return Problem(between.join(facts), question.format(p=person), own, ())


def _merged(rng: random.Random, one: list[str], other: list[str]) -> list[str]:
    """Two lists as one, at random, each in its own order."""
    turns = [True] * len(one) + [False] * len(other)
    rng.shuffle(turns)
    lines = {True: iter(one), False: iter(other)}
    return [next(lines[turn]) for turn in turns]


def answered(thinking: str | None, answer: str) -> dict[str, Any]:
    """An assistant's turn that thinks and answers.

    Args:
        thinking: what stands between the think tags; None for an answer without thought.
        answer: what stands between the answer tags.

    Returns:
        The message.
    """
    thought = "" if thinking is None else f"{THINK_OPEN}{thinking}{THINK_CLOSE}\n"
    return {"role": "assistant", "content": f"{thought}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"}


def astray(rng: random.Random, problem: Problem) -> tuple[int, tuple[Step, ...]]:
    """The way with one wrong step, and what follows from it; it ends at another answer.

    Args:
        rng: source of randomness.
        problem: the problem.

    Returns:
        Place of the wrong step from 0, and the steps.
    """
    right = problem.steps
    while True:
        at = rng.randrange(len(right))
        if right[at].sign in ("->", "="):
            jump = rng.randrange(len(problem.others))
            way: tuple[Step, ...] = (Step(right[at].source, problem.others[jump].sign, problem.others[jump].target),)
            way += problem.others[jump + 1 :]
        else:
            way = _other_number(rng, right, at)
        if way and way[-1].target != problem.answer:
            return at, (*right[:at], *way)


def _other_number(rng: random.Random, right: tuple[Step, ...], at: int) -> tuple[Step, ...]:
    """The steps from `at` on with a wrong result at first; empty where a number would leave the digits."""
    wrong = _change(rng, int(right[at].target)).target
    shift = int(wrong) - int(right[at].target)
    moved = [Step(right[at].source, right[at].sign, wrong)]
    for step in right[at + 1 :]:
        result = int(step.target) + shift
        if not 0 <= result <= LARGEST:
            return ()
        moved.append(Step(moved[-1].target, step.sign, str(result)))
    return tuple(moved)
