"""From prompts to groups of rewarded answers.

A group is a prompt with `num_generations` answers; it carries the reward of each answer, every component of it, and,
where a loss reads them, log-probabilities under the policy that sampled and under the reference.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nexus.models.head import target_logprobs
from nexus.rewards.registry import Rewarded, Rewards, Sample
from nexus.rollout.engines import Engine, Sampling
from nexus.rollout.environment import Conversation, Environment, converse
from nexus.types import Generation, MicroBatch, TokenizedGroup, TokenizedPrompt

#: Values of a group that are rewards: `reward` is the weighted sum, `reward/NAME` what one function gave.
REWARD = "reward"
_CHUNK = 1024  # target positions whose logits exist at one time; bounds memory, changes no value


@dataclass(frozen=True)
class Visit:
    """A prompt and how often it was seen before.

    Attributes:
        prompt: the prompt.
        epoch: passes over all prompts before this one.
    """

    prompt: TokenizedPrompt
    epoch: int


def sample_seed(*, seed: int, visit: Visit, sample: int, turn: int = 0) -> int:
    """Seed of one answer: the same run gives the same answer to a prompt, whatever else is answered beside it.

    Args:
        seed: of the run.
        visit: the prompt and its epoch.
        sample: index within the group.
        turn: of a conversation with an environment, from 0.

    Returns:
        63 bits.
    """
    text = f"nexus/rollout/{seed}/{visit.epoch}/{visit.prompt.id}/{sample}" + (f"/{turn}" if turn else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class Task:
    """What is asked of the prompts of one source.

    Attributes:
        rewards: what an answer earns.
        max_new_tokens: limit of an answer, or of a conversation with an environment.
        environment: executes what an answer calls; None ends every answer where it ends.
    """

    rewards: Rewards
    max_new_tokens: int
    environment: Environment | None = None


class Critic(Protocol):
    """A method that judges every token of a rollout before it is used."""

    def observe(self, batch: MicroBatch) -> Mapping[str, Tensor]:
        """Numbers [N] of a micro-batch's targets by name, under the weights that sampled them."""

    def credit(self, groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
        """The groups of a whole rollout with what each token is learned by."""


def split_tokens(groups: Sequence[TokenizedGroup], values: Sequence[float]) -> list[tuple[list[float], ...]]:
    """Numbers of all tokens that count, completion after completion, by group and completion.

    Args:
        groups: any number.
        values: as many as their tokens that count.

    Returns:
        What stands in `token_values` of each group.
    """
    given, at = [], 0
    for group in groups:
        rows = []
        for mask in group.loss_masks:
            count = sum(mask)
            rows.append(list(values[at : at + count]))
            at += count
        given.append(tuple(rows))
    return given


class Collector:
    """Answers prompts and rewards the answers.

    Args:
        tasks: by name of the source.
        tokenizer: decodes the answers.
        engine: who answers.
        num_generations: answers to each prompt.
        temperature: of the sampling.
        top_p: nucleus; None draws from all tokens.
        batch_size: answers at a time.
        seed: of the run.
        autocast: number format of the policy's products as in training, by device kind; None for the weights' own.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task],
        tokenizer: Any,
        engine: Engine,
        num_generations: int,
        temperature: float,
        top_p: float | None,
        batch_size: int,
        seed: int,
        autocast: tuple[str, torch.dtype] | None,
    ) -> None:
        if num_generations < 1 or temperature <= 0 or batch_size < 1:
            raise ValueError("num_generations and batch_size must be at least 1, temperature above 0")
        self.tasks = tasks
        self.tokenizer = tokenizer
        self.engine = engine
        self.num_generations = num_generations
        self.temperature = temperature
        self.top_p = top_p
        self.batch_size = batch_size
        self.seed = seed
        self.autocast = autocast
        self.names = list(dict.fromkeys(f.name for task in tasks.values() for f in task.rewards.functions))
        self.seconds = {"answering": 0.0, "rewarding": 0.0}  # of this process

    def collect(self, model: Any, visits: Sequence[Visit]) -> list[TokenizedGroup]:
        """Groups of rewarded answers.

        Args:
            model: the policy as it is now; left in the mode that it was in.
            visits: prompts to answer.

        Returns:
            One group for each visit, in order, with `values` by `REWARD` and component, and `finished`.

        Raises:
            NexusError: `E-DAT-31`, `E-RL-02` or `E-RL-04` of a reward, with row and reward.
        """
        started = time.perf_counter()
        answers = self._answer(model, visits)
        answered = time.perf_counter()
        groups = [self._group(visit, group) for visit, group in zip(visits, answers, strict=True)]
        self.seconds["answering"] += answered - started
        self.seconds["rewarding"] += time.perf_counter() - answered
        return groups

    def _answer(self, model: Any, visits: Sequence[Visit]) -> list[list[Conversation]]:
        """`num_generations` answers to each prompt; one call of the engine for each limit of the answers and turn."""
        each = self.num_generations
        found: dict[int, list[Conversation]] = {}
        kinds = [(task.max_new_tokens, task.environment) for task in self.tasks.values()]
        for kind in sorted(dict.fromkeys(kinds), key=lambda kind: kind[0]):
            tasks = {name for name, own in zip(self.tasks, kinds, strict=True) if own == kind}
            chosen = [i for i, visit in enumerate(visits) if visit.prompt.source in tasks]
            if not chosen:
                continue
            asked = [(visits[i], sample) for i in chosen for sample in range(each)]
            said = converse(
                answer=functools.partial(self._turn, model, asked),
                tokenizer=self.tokenizer,
                prompts=[visit.prompt.input_ids for visit, _ in asked],
                tools=[visit.prompt.example.tools for visit, _ in asked],
                environment=kind[1],
                max_new_tokens=kind[0],
            )
            found.update((i, said[k * each : (k + 1) * each]) for k, i in enumerate(chosen))
        return [found[i] for i in range(len(visits))]

    def _turn(
        self,
        model: Any,
        asked: Sequence[tuple[Visit, int]],
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        turn: int,
        limit: int,
    ) -> list[Generation]:
        """The answers of some rows of `asked`, which are a visit and a sample each."""
        seeds = [
            sample_seed(seed=self.seed, visit=visit, sample=sample, turn=turn)
            for visit, sample in (asked[row] for row in rows)
        ]
        with self._precision():
            return self.engine(
                model=model,
                tokenizer=self.tokenizer,
                prompts=prompts,
                seeds=seeds,
                sampling=Sampling(limit, self.temperature, self.top_p, self.batch_size),
            )

    def _precision(self) -> Any:
        device, dtype = self.autocast or ("cpu", torch.bfloat16)
        return torch.autocast(device, dtype=dtype, enabled=self.autocast is not None)

    def _group(self, visit: Visit, answers: Sequence[Conversation]) -> TokenizedGroup:
        prompt = visit.prompt
        samples = [
            Sample.of(
                prompt.example,
                completion=answer.text,
                finished=answer.finished,
                num_tokens=sum(answer.loss_mask),
                turns=answer.turns,
            )
            for answer in answers
        ]
        rewarded = self.tasks[prompt.source].rewards.score(samples)
        return TokenizedGroup(
            id=prompt.id,
            source=prompt.source,
            prompt_ids=prompt.input_ids,
            completions=tuple(list(answer.token_ids) for answer in answers),
            loss_masks=tuple(list(answer.loss_mask) for answer in answers),
            values=self._values(rewarded) | {"finished": tuple(float(answer.finished) for answer in answers)},
        )

    def _values(self, rewarded: Sequence[Rewarded]) -> dict[str, tuple[float, ...]]:
        """Rewards by log key; NaN for a function that this source does not have."""
        components = {
            f"{REWARD}/{name}": tuple(one.components.get(name, math.nan) for one in rewarded) for name in self.names
        }
        return {REWARD: tuple(one.total for one in rewarded)} | components

    def with_logprobs(
        self, model: Any, groups: Sequence[TokenizedGroup], batches: Sequence[MicroBatch], *, name: str
    ) -> list[TokenizedGroup]:
        """Groups with the log-probability of each of their tokens, computed as training computes it.

        Args:
            model: the policy, or the reference.
            groups: what `batches` was made of.
            batches: micro-batches of the groups, in their order.
            name: under which `token_values` they go.

        Returns:
            Copies of the groups.
        """

        def logprobs(batch: MicroBatch) -> dict[str, Tensor]:
            return {name: target_logprobs(model, batch, chunk_size=_CHUNK, temperature=self.temperature).logprobs}

        return self.with_token_values(model, groups, batches, logprobs)

    @torch.no_grad()
    def with_token_values(
        self,
        model: Any,
        groups: Sequence[TokenizedGroup],
        batches: Sequence[MicroBatch],
        values_of: Callable[[MicroBatch], Mapping[str, Tensor]],
    ) -> list[TokenizedGroup]:
        """Groups with numbers for each of their tokens, computed as training computes them, without dropout.

        Args:
            model: what computes them.
            groups: what `batches` was made of.
            batches: micro-batches of the groups, in their order.
            values_of: gives numbers [N] of a micro-batch's targets by their names among `token_values`.

        Returns:
            Copies of the groups.
        """
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        found: dict[str, list[float]] = {}
        try:
            with self._precision():
                for batch in batches:
                    for name, values in values_of(batch.to(device)).items():
                        found.setdefault(name, []).extend(values.tolist())
        finally:
            model.train(was_training)
        rows = {name: split_tokens(groups, values) for name, values in found.items()}
        return [
            replace(group, token_values=group.token_values | {name: given[index] for name, given in rows.items()})
            for index, group in enumerate(groups)
        ]
