"""Reflection: a draft stands in the prompt, and the thought holds it against the facts, step by step.

Most drafts hold one planted mistake and what follows from it; the review has to name it, leave the draft there, and go
on to the right answer. The other drafts are right and have to be kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nexus.data.synthetic import words
from nexus.data.synthetic.multistep import Problem, Step, answered, astray, sample_problem
from nexus.text.steps import NO, YES

VIEWS = ("sft", "preference", "prompts")
PLANTED_SHARE = 0.75
_DRAFTS = ("Draft: {}", "My first try: {}", "Somebody says: {}")


@dataclass(frozen=True)
class Task:
    """One problem with a draft of its way.

    Attributes:
        id: stable name of the row.
        problem: what is asked.
        draft: the way that the prompt claims.
        mistake: place of its wrong step from 0; None if it is right.
        frame: how the prompt introduces the draft.
    """

    id: str
    problem: Problem
    draft: tuple[Step, ...]
    mistake: int | None
    frame: str

    @property
    def prompt(self) -> str:
        """What the user says."""
        way = ", ".join([self.draft[0].source, *(step.target for step in self.draft)])
        return f"{self.problem.facts}\n{self.problem.question}\n{self.frame.format(way)}"


def sample_task(split: str, seed: int, index: int) -> Task:
    """The task number `index`; it depends on nothing else.

    Args:
        split: "train" or "eval".
        seed: seed of the rows.
        index: number of the row from 0.

    Returns:
        The task.
    """
    rng = random.Random(f"nexus-thinking:{split}:{seed}:{index}")
    problem = sample_problem(rng, split)
    mistake, draft = astray(rng, problem) if rng.random() < PLANTED_SHARE else (None, problem.steps)
    return Task(f"thinking-{split}-{seed}-{index}", problem, draft, mistake, rng.choice(_DRAFTS))


def review(task: Task, *, seen: int | None) -> str:
    """The thought that goes through a draft.

    Args:
        task: problem and draft.
        seen: place of the step at which the review says no, from 0; None if it agrees to the end.

    Returns:
        What stands between the think tags: the right one for `seen=task.mistake`, else one that follows the draft.
    """
    lines = []
    right = task.problem.steps
    for place, claim in enumerate(task.draft):
        if place == seen:
            lines.append(f"{claim.source}, {claim.target}? {right[place]}: {NO}")
            return "\n".join([*lines, *map(str, right[place + 1 :])])
        lines.append(f"{claim.source}, {claim.target}? {claim}: {YES}")
    return "\n".join(lines)


def _rejected(rng: random.Random, task: Task) -> dict[str, Any]:
    """A realistic wrong answer: the mistake overlooked, a good draft spoiled, or no review at all."""
    if task.mistake is None:
        _, steps = astray(rng, task.problem)
        return answered("\n".join(map(str, steps)), steps[-1].target)
    if rng.random() < 0.25:
        return answered(None, task.draft[-1].target)
    return answered(review(task, seen=None), task.draft[-1].target)


def rows(*, view: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of reviewing a draft.

    Args:
        view: "sft", "preference" or "prompts".
        split: "train" or "eval".
        count: number of rows; row i does not depend on it.
        seed: seed of the tasks.

    Yields:
        Rows as the project's data contract describes them; gold is `{"answer", "steps", "draft_answer", "mistake"}`,
        the last one None where the draft is right.

    Raises:
        ValueError: an unknown view or split, or a negative count.
    """
    if view not in VIEWS or split not in words.SPLITS or count < 0:
        raise ValueError(f"no rows for view={view!r} (of {VIEWS}), split={split!r} (of {words.SPLITS}), count={count}")
    for index in range(count):
        task = sample_task(split, seed, index)
        prompt = [{"role": "user", "content": task.prompt}]
        answer = answered(review(task, seen=task.mistake), task.problem.answer)
        row: dict[str, Any] = {"id": task.id}
        if view == "sft":
            row["messages"] = [*prompt, answer]
        elif view == "prompts":
            gold = {
                "answer": task.problem.answer,
                "steps": [str(step) for step in task.problem.steps],
                "draft_answer": task.draft[-1].target,
                "mistake": task.mistake,
            }
            row |= {"prompt": prompt, "gold": gold}
        else:
            rng = random.Random(f"nexus-thinking-rejected:{task.id}")
            row |= {"prompt": prompt, "chosen": [answer], "rejected": [_rejected(rng, task)]}
        yield row
