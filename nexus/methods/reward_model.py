"""Reward model: a scalar head on a decoder learns from pairs which answer is the better one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nexus.functional.preference import pair_values
from nexus.functional.reward_model import reward_model_loss
from nexus.methods.base import Method
from nexus.models.reward_model import refuse_without_classifier
from nexus.models.value_head import ScalarHead, completion_rewards, hidden_width
from nexus.types import LossOutput, LossUnit, MicroBatch


class RewardModel(Method):
    """The Bradley-Terry model of arXiv 2203.02155, section 3.5; the reward is read at the last token of an answer.

    Args:
        margin: by which the chosen answer must lead before its probability is one half; a row's own `margin` is added.
        center_coef: weight of the term that draws the sum of both rewards to 0.
        head_lr_ratio: learning rate of the head over that of the rest.
        **common: arguments of `Method`.
    """

    loss_unit = LossUnit.GROUP

    def __init__(self, *, margin: float, center_coef: float, head_lr_ratio: float, **common: Any) -> None:
        super().__init__(**common)
        self.margin = margin
        self.center_coef = center_coef
        self.head_lr_ratio = head_lr_ratio
        self.reward_head: ScalarHead | None = None

    def configure_model(self) -> None:
        """As every method, and the head; its first rewards are of the order of 1 (arXiv 2009.01325, section C.1)."""
        super().configure_model()
        if self.reward_head is None:
            refuse_without_classifier(self.policy)
            width = hidden_width(self.policy)
            self.reward_head = ScalarHead(width, std=(width + 1) ** -0.5, seed=self.seed)

    def scaled_rates(self) -> list[tuple[nn.Module, float]]:
        """The head starts from random weights, so it may learn faster."""
        assert self.reward_head is not None
        return [(self.reward_head, self.head_lr_ratio)]

    def rewards(self, batch: MicroBatch) -> Tensor:
        """What each completion is worth, [R]; of pairs chosen and rejected in turn."""
        assert self.reward_head is not None, "configure_model() has not run"
        return completion_rewards(self.policy, self.reward_head, batch)

    def loss(self, batch: MicroBatch) -> LossOutput:
        """Rewards of both answers, then the loss on their difference."""
        chosen, rejected = pair_values(self.rewards(batch))
        margins = torch.full_like(chosen, self.margin)
        if "margin" in batch.completion_values:
            margins = margins + pair_values(batch.completion_values["margin"])[0]
        return reward_model_loss(
            chosen_rewards=chosen,
            rejected_rewards=rejected,
            margins=margins,
            center_coef=self.center_coef,
        )
