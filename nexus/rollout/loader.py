"""Optimizer steps over answers that are sampled when they are needed, by the weights that train.

Which prompts a step sees is a formula of (seed, step), as in `data.stream`. Answers that are used in several steps are
kept in a buffer, which is part of the checkpoint; so a resumed run goes on with the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nexus.data.collate import collate_step
from nexus.data.corpus import Corpus
from nexus.data.module import NexusDataModule
from nexus.data.stream import epoch_order
from nexus.errors import NexusError
from nexus.functional.advantages import equal_groups
from nexus.models.snapshot import Snapshot
from nexus.rollout.collect import REWARD, Collector, Critic, Visit
from nexus.rollout.judge import Judge
from nexus.types import LossUnit, MicroBatch, TokenizedGroup, TokenizedPrompt


@dataclass
class RolloutCounts:
    """What the rollouts of a phase came to, over interruptions.

    Attributes:
        rollouts: how many.
        prompts: answered.
        completions: answers.
        tokens: sampled.
        equal_groups: groups whose answers all earned the same, so that nothing was learned from them.
        barren: rollouts in a row, up to now, in which all groups were equal.
    """

    rollouts: int = 0
    prompts: int = 0
    completions: int = 0
    tokens: int = 0
    equal_groups: int = 0
    barren: int = 0

    def add(self, groups: Sequence[TokenizedGroup], *, whole: bool) -> None:
        """Count one rollout.

        Args:
            groups: of the rollout.
            whole: whether all its answers are compared with each other, instead of those of each group.
        """
        rewards = torch.tensor([group.values[REWARD] for group in groups])
        together = rewards.numel() if whole else rewards.shape[1]
        # a single answer has no other to be equal to
        alike = equal_groups(rewards=rewards.flatten(), num_generations=together).sum() if together > 1 else 0
        equal = int(alike) * together // rewards.shape[1]
        self.rollouts += 1
        self.prompts += len(groups)
        self.completions += rewards.numel()
        self.tokens += sum(group.num_target_tokens for group in groups)
        self.equal_groups += equal
        self.barren = self.barren + 1 if equal == len(groups) else 0


class RolloutLoader:
    """Iterates over optimizer steps; one item is the list of micro-batches of one step.

    A rollout answers the prompts of `steps_per_rollout` steps; these steps are taken `num_iterations` times.

    Args:
        prompts: the data set.
        num_steps: optimizer steps of the phase.
        prompts_per_step: prompts of a step.
        steps_per_rollout: steps that the prompts of a rollout are split among.
        num_iterations: times that the answers of a rollout are used.
        patience: rollouts in a row of equal groups alone, after which it makes no sense to go on.
        whole: whether the method compares all answers of a rollout with each other, instead of those of each group.
        seed: seed of the order.
        shuffle: new order every epoch.
        answer: makes groups of prompts, with the policy as it is then.
        collate: makes micro-batches of the groups of a step.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[TokenizedPrompt],
        num_steps: int,
        prompts_per_step: int,
        steps_per_rollout: int,
        num_iterations: int,
        patience: int,
        whole: bool,
        seed: int,
        shuffle: bool,
        answer: Callable[[Sequence[Visit]], list[TokenizedGroup]],
        collate: Callable[[Sequence[TokenizedGroup]], list[MicroBatch]],
    ) -> None:
        self.prompts = prompts
        self.num_steps = num_steps
        self.prompts_per_step = prompts_per_step
        self.steps_per_rollout = steps_per_rollout
        self.num_iterations = num_iterations
        self.patience = patience
        self.whole = whole
        self.seed = seed
        self.shuffle = shuffle
        self.answer = answer
        self.collate = collate
        self.consumed = 0
        self.buffer: list[TokenizedGroup] = []
        self.counts = RolloutCounts()

    def __len__(self) -> int:
        """Steps of the whole phase, also after a resume; with a length, Lightning fetches no step ahead."""
        return self.num_steps

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """The steps that are left; after the last one the loader starts over.

        Yields:
            The micro-batches of one step.

        Raises:
            NexusError: `E-RL-01` if the patience is at its end, and what rewards raise.
        """
        if self.consumed >= self.num_steps:
            self.consumed = 0
        while self.consumed < self.num_steps:
            rollout, at = divmod(self.consumed, self.steps_per_rollout * self.num_iterations)
            if at == 0:
                self.buffer = self.answer(self.visits(rollout))
                self.counts.add(self.buffer, whole=self.whole)
                self._insist_on_lessons()
            first = at % self.steps_per_rollout * self.prompts_per_step
            groups = self.buffer[first : first + self.prompts_per_step]
            self.consumed += 1  # before the yield: a checkpoint inside this step's boundary counts it as done
            if at == self.steps_per_rollout * self.num_iterations - 1:
                self.buffer = []
            yield self.collate(groups)

    def visits(self, rollout: int) -> list[Visit]:
        """Prompts of a rollout (from 0), in the order in which its steps take them."""
        count = self.prompts_per_step * self.steps_per_rollout
        found = []
        orders: dict[int, list[int]] = {}
        for index in range(rollout * count, (rollout + 1) * count):
            epoch, place = divmod(index, len(self.prompts))
            if epoch not in orders:
                orders[epoch] = epoch_order(len(self.prompts), seed=self.seed, epoch=epoch, shuffle=self.shuffle)
            found.append(Visit(self.prompts[orders[epoch][place]], epoch))
        return found

    def _insist_on_lessons(self) -> None:
        """`E-RL-01` after too many rollouts from which nothing can be learned."""
        if self.counts.barren < self.patience:
            return
        rewards = [reward for group in self.buffer for reward in group.values[REWARD]]
        if len(set(rewards)) > 1 or rewards[0] > 0:
            why = "the policy answers every prompt the same way each time, or its rewards do not tell answers apart"
            remedy = "raise method.rollout.temperature, take harder prompts, or grade the reward more finely"
        else:
            why = "no answer earns a reward"
            remedy = (
                "give it a start with method.cold_start.when=always (more method.cold_start.rows if it had one), "
                "or grade the reward so that a part of a right answer earns something"
            )
        raise NexusError(
            "E-RL-01",
            f"{self.counts.barren} rollouts in a row held groups of equal rewards alone, from which nothing is "
            f"learned: {why} (mean reward {sum(rewards) / len(rewards):.3g})",
            where=f"optimizer step {self.consumed}, method.rollout.patience={self.patience}",
            remedy=remedy,
        )

    def state_dict(self) -> dict[str, Any]:
        """Steps handed out, counts, and the answers that further steps will use; plain containers."""
        return {
            "consumed": self.consumed,
            "counts": asdict(self.counts),
            "buffer": [asdict(group) for group in self.buffer],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the steps that a checkpoint counted, with its answers."""
        self.consumed = state["consumed"]
        self.counts = RolloutCounts(**state["counts"])
        self.buffer = [TokenizedGroup(**group) for group in state["buffer"]]


class RolloutDataModule(NexusDataModule):
    """Loaders over prompts whose answers are sampled while training.

    Args:
        corpus: prompts that were set up.
        loss_unit: what the method's loss is a mean over.
        collector: answers and rewards.
        policy: gives the model that is trained.
        reference: the policy as the phase began, where log-probabilities under it are needed; None otherwise.
        with_old_logprobs: whether the method itself reads log-probabilities under the policy that sampled; they are
            also given where a rollout is used in several steps.
        steps_per_rollout: as in `RolloutLoader`.
        num_iterations: as in `RolloutLoader`.
        patience: as in `RolloutLoader`.
        critic: judges every token of a rollout; None for methods that compare the answers of a group.
        judge: a reward model beside the reward functions; None without one.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        loss_unit: LossUnit,
        collector: Collector,
        policy: Callable[[], Any],
        reference: Snapshot | None,
        with_old_logprobs: bool,
        steps_per_rollout: int,
        num_iterations: int,
        patience: int,
        critic: Critic | None = None,
        judge: Judge | None = None,
    ) -> None:
        super().__init__(corpus, loss_unit=loss_unit)
        self.collector = collector
        self.policy = policy
        self.reference = reference
        self.with_old_logprobs = with_old_logprobs or steps_per_rollout * num_iterations > 1
        self.steps_per_rollout = steps_per_rollout
        self.num_iterations = num_iterations
        self.patience = patience
        self.critic = critic
        self.judge = judge
        self.loader: RolloutLoader | None = None

    def train_dataloader(self) -> RolloutLoader:  # type: ignore[override]
        """The loader of the phase, one and the same as often as it is asked for."""
        if self.loader is None:
            self.loader = RolloutLoader(
                prompts=self.corpus.rows,  # type: ignore[arg-type]
                num_steps=self.corpus.num_steps,
                prompts_per_step=self.corpus.global_batch_size,
                steps_per_rollout=self.steps_per_rollout,
                num_iterations=self.num_iterations,
                patience=self.patience,
                whole=self.critic is not None,
                seed=self.corpus.seed,
                shuffle=self.corpus.shuffle,
                answer=self.answer,
                collate=self.collate,
            )
        return self.loader

    def summary(self) -> dict[str, Any]:
        """Counts for the report, and the seconds that this process spent answering and rewarding."""
        assert self.loader is not None, "training asks for the loader"
        seconds = {f"{name}_seconds": round(value, 1) for name, value in self.collector.seconds.items()}
        return asdict(self.loader.counts) | seconds

    def answer(self, visits: Sequence[Visit]) -> list[TokenizedGroup]:
        """Rewarded groups, with the log-probabilities that the loss will read.

        Args:
            visits: prompts to answer.

        Returns:
            One group for each.
        """
        model = self.policy()
        groups = self.collector.collect(model, visits)
        if self.judge is not None:
            groups = self.judge(groups, self.group_batches(groups), device=next(model.parameters()).device)
        if self.critic is not None:
            batches = self.group_batches(groups)
            groups = self.collector.with_token_values(model, groups, batches, self.critic.observe)
        elif self.with_old_logprobs:
            groups = self.collector.with_logprobs(model, groups, self.group_batches(groups), name="old_logprobs")
        if self.reference is not None:
            with torch.no_grad(), self.reference.applied(model):
                groups = self.collector.with_logprobs(model, groups, self.group_batches(groups), name="ref_logprobs")
        return groups if self.critic is None else self.critic.credit(groups)

    def collate(self, groups: Sequence[TokenizedGroup]) -> list[MicroBatch]:
        """Micro-batches of the groups of one optimizer step."""
        return collate_step(
            groups,
            packing=self.packing,
            micro_batch_size=self.corpus.micro_batch_size,
            micro_batch_tokens=self.corpus.micro_batch_tokens,
            pad_token_id=self.pad_token_id,
            world_size=1,
            loss_unit=self.loss_unit,
        )
