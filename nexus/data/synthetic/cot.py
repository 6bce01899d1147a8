"""Word arithmetic in two or three steps: a story, one equation a line, and the answer.

The numbers stay below a hundred and a step asks for little at once: a change is a single digit, or its digits can be
added and taken away one by one, without a carry. So a small model can learn the arithmetic itself instead of its form
alone.

Evaluation stories are new in every respect: their templates, names and objects, and every single equation
(operands and operator) never occur in training rows. Names and objects are split by `words.split_of`, equations by the
same hash over their text, templates by the two lists below.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nexus.data.synthetic import words

VIEWS = ("sft", "preference", "prompts")
LARGEST = 99
OPERATORS = {"+": 55, "-": 45}
#: Share of changes by a single digit, which may carry.
DIGIT_SHARE = 0.6

_THING_WORDS = (
    "apples books coins pens shells stamps eggs cards lemons buttons tickets marbles stones plums cups keys bottles "
    "pencils flowers cookies roses nuts balls candles feathers beads boxes spoons ribbons pears bricks maps"
)
_THINGS = tuple(_THING_WORDS.split())

_OPENINGS = {
    "train": (
        "{p} has {n} {t}.", "{p} starts with {n} {t}.", "There are {n} {t} on the table of {p}.", "{p} counts {n} {t}.",
        "{p} owns {n} {t}.", "In the bag of {p} there are {n} {t}.", "{p} packs {n} {t}.",
    ),
    "eval": ("At first {p} holds {n} {t}.", "{p} brings {n} {t} to school.", "The shelf of {p} carries {n} {t}."),
}  # fmt: skip
_CHANGES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "+": ("{p} buys {n} more.", "{q} gives {p} {n} more.", "Then {n} more arrive.", "{p} finds {n} more.",
              "Later {p} gets {n} more from {q}.", "{p} adds {n} more."),
        "-": ("{p} loses {n} of them.", "{p} gives {n} of them to {q}.", "{q} takes {n} of them.", "{p} sells {n}.",
              "Then {n} of them break.", "{p} gives away {n}."),
    },
    "eval": {
        "+": ("After that {q} hands {p} {n} more.", "{p} picks up {n} more.", "{n} more come by mail."),
        "-": ("After that {p} throws away {n} of them.", "{q} borrows {n} of them.", "{n} of them go missing."),
    },
}  # fmt: skip
_QUESTIONS = {
    "train": ("How many {t} does {p} have now?", "How many {t} are there now?", "How many {t} are left in the end?",
              "What is the number of {t} now?"),
    "eval": ("In the end, how many {t} are with {p}?", "Count the {t} of {p} at the end."),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a calculation.

    Attributes:
        left: number before the step.
        operator: `+` or `-`.
        right: the change.
        result: number after the step.
    """

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """One story.

    Attributes:
        id: stable name of the row.
        question: what the user asks.
        steps: the calculation in order.
    """

    id: str
    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        """The result of the last step."""
        return str(self.steps[-1].result)


def _step(rng: random.Random, left: int, split: str) -> Step:
    """A step whose equation belongs to the split and whose result lies in 1..`LARGEST`."""
    while True:
        operator = rng.choices(tuple(OPERATORS), tuple(OPERATORS.values()))[0]
        right = rng.randint(1, 9) if rng.random() < DIGIT_SHARE else rng.randint(10, 88)
        result = left + right if operator == "+" else left - right
        easy = right < 10 or not carries(left, operator, right)
        if easy and 1 <= result <= LARGEST and words.in_split(f"{left} {operator} {right}", split):
            return Step(left, operator, right, result)


def carries(left: int, operator: str, right: int) -> bool:
    """Whether a sum carries or a difference borrows at the last digit."""
    return left % 10 + right % 10 > 9 if operator == "+" else left % 10 < right % 10


def sample_problem(split: str, seed: int, index: int) -> Problem:
    """The problem number `index`; it depends on nothing else.

    Args:
        split: "train" or "eval".
        seed: seed of the rows.
        index: number of the row from 0.

    Returns:
        The problem.
    """
    rng = random.Random(f"nexus-cot:{split}:{seed}:{index}")
    number = rng.randint(3, 95)
    first = number
    steps: list[Step] = []
    for _ in range(rng.choice((2, 2, 2, 3))):
        steps.append(_step(rng, number, split))
        number = steps[-1].result
    person = words.pick(rng, words.FIRST_NAMES, split)
    names = words.of_split(words.FIRST_NAMES, split)
    slots = {"p": person, "t": words.pick(rng, _THINGS, split)}
    lines = [rng.choice(_OPENINGS[split]).format(n=first, **slots)]
    for step in steps:
        other = rng.choice(names)
        while other == person:
            other = rng.choice(names)
        lines.append(rng.choice(_CHANGES[split][step.operator]).format(n=step.right, q=other, **slots))
    lines.append(rng.choice(_QUESTIONS[split]).format(**slots))
    return Problem(f"cot-{split}-{seed}-{index}", " ".join(lines), tuple(steps))


def _written(steps: tuple[Step, ...], answer: str) -> dict[str, Any]:
    lines = [*map(str, steps), f"<answer>{answer}</answer>"]
    return {"role": "assistant", "content": "\n".join(lines)}


def _rejected(rng: random.Random, problem: Problem) -> dict[str, Any]:
    """A realistic wrong answer: a slip in a step and what follows from it, a missing step, or a guess."""
    steps, answer = problem.steps, problem.answer
    kind = rng.choice(("slip", "slip", "missing", "guess"))
    if kind == "guess":
        wrong = str(int(answer) + rng.choice((-3, -2, -1, 1, 2, 3, 10)))
        return {"role": "assistant", "content": f"<answer>{wrong}</answer>"}
    if kind == "missing":  # stops one step early, with a number that is not the answer
        early = steps[:-1]
        return _written(early, str(early[-1].result))
    at = rng.randrange(len(steps))
    shift = rng.choice((-10, -2, -1, 1, 2, 10))
    slipped = [*steps[:at]]
    number = steps[at].left
    for step in steps[at:]:
        change = number + step.right if step.operator == "+" else number - step.right
        slipped.append(Step(number, step.operator, step.right, change + shift))
        number, shift = change + shift, 0
    return _written(tuple(slipped), str(number))


def rows(*, view: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the embedded word arithmetic.

    Args:
        view: "sft", "preference" or "prompts".
        split: "train" or "eval".
        count: number of rows; row i does not depend on it.
        seed: seed of the problems.

    Yields:
        Rows as the project's data contract describes them; gold is `{"answer", "steps"}`.

    Raises:
        ValueError: an unknown view or split, or a negative count.
    """
    if view not in VIEWS or split not in words.SPLITS or count < 0:
        raise ValueError(f"no rows for view={view!r} (of {VIEWS}), split={split!r} (of {words.SPLITS}), count={count}")
    for index in range(count):
        problem = sample_problem(split, seed, index)
        prompt = [{"role": "user", "content": problem.question}]
        answer = _written(problem.steps, problem.answer)
        row: dict[str, Any] = {"id": problem.id}
        if view == "sft":
            row["messages"] = [*prompt, answer]
        elif view == "prompts":
            gold = {"answer": problem.answer, "steps": [str(step) for step in problem.steps]}
            row |= {"prompt": prompt, "gold": gold}
        else:
            rng = random.Random(f"nexus-cot-rejected:{problem.id}")
            row |= {"prompt": prompt, "chosen": [answer], "rejected": [_rejected(rng, problem)]}
        yield row
