"""Reasoning at a chosen depth: the system turn names the level, the thought has that depth, the answer is exact.

The levels `low`, `medium` and `high` write the same way in the three forms of `nexus.text.steps`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nexus.data.synthetic import words
from nexus.data.synthetic.multistep import Problem, Step, answered, astray, sample_problem
from nexus.text.steps import CHECK, LEVELS

VIEWS = ("sft", "preference", "prompts")


@dataclass(frozen=True)
class Task:
    """One problem at one level.

    Attributes:
        id: stable name of the row.
        level: one of `nexus.text.steps.LEVELS`.
        problem: what is asked.
    """

    id: str
    level: str
    problem: Problem


def sample_task(split: str, seed: int, index: int) -> Task:
    """The task number `index`; it depends on nothing else.

    Args:
        split: "train" or "eval".
        seed: seed of the rows.
        index: number of the row from 0.

    Returns:
        The task.
    """
    rng = random.Random(f"nexus-reasoning:{split}:{seed}:{index}")
    return Task(f"reasoning-{split}-{seed}-{index}", rng.choice(LEVELS), sample_problem(rng, split))


def units(level: str, steps: tuple[Step, ...]) -> list[str]:
    """What a level writes of a way: its states (low), or its steps.

    Args:
        level: one of `nexus.text.steps.LEVELS`.
        steps: the way.

    Returns:
        The units in order.
    """
    if level == "low":
        return [steps[0].source, *(step.target for step in steps)]
    return [str(step) for step in steps]


def thought(level: str, steps: tuple[Step, ...]) -> str:
    """A way as a level writes it.

    Args:
        level: one of `nexus.text.steps.LEVELS`.
        steps: the way.

    Returns:
        What stands between the think tags.
    """
    if level == "low":
        return ", ".join(units("low", steps))
    if level == "medium":
        return "\n".join(units("medium", steps))
    lines = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    return "\n".join([*lines, CHECK + ", ".join(units("low", steps))])


def _rejected(rng: random.Random, task: Task) -> dict[str, Any]:
    """A realistic wrong answer: the thought of another level, a way that goes astray, or an answer without thought."""
    problem = task.problem
    kind = rng.choice(("level", "level", "astray", "astray", "guess"))
    if kind == "level":
        other = rng.choice([level for level in LEVELS if level != task.level])
        return answered(thought(other, problem.steps), problem.answer)
    _, steps = astray(rng, problem)
    if kind == "astray":
        return answered(thought(task.level, steps), steps[-1].target)
    return answered(None, steps[-1].target)


def rows(*, view: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of reasoning at three levels.

    Args:
        view: "sft", "preference" or "prompts".
        split: "train" or "eval".
        count: number of rows; row i does not depend on it.
        seed: seed of the tasks.

    Yields:
        Rows as the project's data contract describes them; gold is `{"answer", "level", "states", "steps"}`.

    Raises:
        ValueError: an unknown view or split, or a negative count.
    """
    if view not in VIEWS or split not in words.SPLITS or count < 0:
        raise ValueError(f"no rows for view={view!r} (of {VIEWS}), split={split!r} (of {words.SPLITS}), count={count}")
    for index in range(count):
        task = sample_task(split, seed, index)
        problem = task.problem
        prompt = [
            {"role": "system", "content": f"Reasoning: {task.level}"},
            {"role": "user", "content": f"{problem.facts}\n{problem.question}"},
        ]
        answer = answered(thought(task.level, problem.steps), problem.answer)
        row: dict[str, Any] = {"id": task.id}
        if view == "sft":
            row["messages"] = [*prompt, answer]
        elif view == "prompts":
            gold = {
                "answer": problem.answer,
                "level": task.level,
                "states": units("low", problem.steps),
                "steps": units("high", problem.steps),
            }
            row |= {"prompt": prompt, "gold": gold}
        else:
            rng = random.Random(f"nexus-reasoning-rejected:{task.id}")
            row |= {"prompt": prompt, "chosen": [answer], "rejected": [_rejected(rng, task)]}
        yield row
