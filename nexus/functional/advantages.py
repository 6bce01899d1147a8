"""From rewards to advantages: within the group of answers to one prompt, or over time with a value function.

None of these has a gradient, and all belong before a step is cut into micro-batches.

Signatures:
    equal_groups(*, rewards, num_generations) -> Tensor
    group_advantages(*, rewards, num_generations, scale) -> Tensor
    leave_one_out_advantages(*, rewards, num_generations) -> Tensor
    reward_metrics(*, rewards, num_generations) -> dict[str, Tensor]
    generalized_advantages(*, rewards, values, completion_mask, gamma, gae_lambda) -> AdvantagesAndReturns
    whiten(*, values, mask, shift_mean) -> Tensor
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from nexus.functional.masking import check_mask, masked_mean
from nexus.functional.shapes import ShapeError, check_shapes

#: Added to standard deviations, as in TRL: large enough that a group of nearly equal rewards is not blown up.
_STD_EPSILON = 1e-4
#: Added to the variance when whitening, as in TRL's former PPO.
_VARIANCE_EPSILON = 1e-8


class AdvantageScale(StrEnum):
    """What the difference from the group's mean reward is divided by.

    GROUP: standard deviation of the group, GRPO (arXiv 2402.03300, section 4.1.2).
    BATCH: standard deviation of all rewards (arXiv 2508.08221).
    NONE: nothing, Dr. GRPO (arXiv 2503.20783): dividing gives groups that are nearly all right or wrong more weight.
    """

    GROUP = "group"
    BATCH = "batch"
    NONE = "none"


@dataclass(frozen=True)
class AdvantagesAndReturns:
    """Result of `generalized_advantages`.

    Attributes:
        advantages: [B, T] float32, 0 where nothing was sampled.
        returns: [B, T] float32, the targets of the value function; 0 where nothing was sampled.
    """

    advantages: Tensor
    returns: Tensor


def _groups(rewards: Tensor, num_generations: int) -> Tensor:
    """[N] rewards as [N / G, G] float32, after the checks that all functions of a group share."""
    check_shapes("N", rewards=rewards)
    if num_generations < 2:
        raise ValueError(f"a group needs at least 2 answers to be compared, got num_generations={num_generations}")
    if not rewards.numel() or rewards.shape[0] % num_generations:
        raise ShapeError(f"rewards must be whole groups of {num_generations}, got {list(rewards.shape)}")
    bad = ~torch.isfinite(rewards)
    if bad.any():
        first = int(bad.int().argmax())
        raise ValueError(f"rewards must be finite, {int(bad.sum())} are not, first rewards[{first}] = {rewards[first]}")
    return rewards.detach().float().view(-1, num_generations)


def _equal(groups: Tensor) -> Tensor:
    return groups.amax(1) == groups.amin(1)


def equal_groups(*, rewards: Tensor, num_generations: int) -> Tensor:
    """Which groups teach nothing, since all their answers earned the same.

    Args:
        rewards: [N], the answers of a prompt one after the other.
        num_generations: G, answers per prompt, at least 2.

    Returns:
        [N / G] bool.

    Raises:
        ShapeError: if N is not a multiple of G, or 0.
        ValueError: if a reward is not finite or G is below 2.
    """
    return _equal(_groups(rewards, num_generations))


def group_advantages(*, rewards: Tensor, num_generations: int, scale: AdvantageScale) -> Tensor:
    """`(r - mean of the group) / (std + 1e-4)`; GRPO, arXiv 2402.03300, section 4.1.2.

    The standard deviation divides by n - 1. A group of equal rewards has advantages of exactly 0.

    Example: rewards 0 and 1 of one group give -/+ 0.5 / 0.7072 = -/+ 0.707, unscaled -/+ 0.5.

    Args:
        rewards: [N], the answers of a prompt one after the other.
        num_generations: G, answers per prompt, at least 2.
        scale: what to divide by.

    Returns:
        [N] float32.

    Raises:
        ShapeError: if N is not a multiple of G, or 0.
        ValueError: if a reward is not finite or G is below 2.
    """
    groups = _groups(rewards, num_generations)
    # rounding of the mean would otherwise be divided by 1e-4
    centered = (groups - groups.mean(1, keepdim=True)).masked_fill(_equal(groups)[:, None], 0.0)
    if scale is AdvantageScale.GROUP:
        centered = centered / (groups.std(1, keepdim=True) + _STD_EPSILON)
    elif scale is AdvantageScale.BATCH:
        centered = centered / (groups.std() + _STD_EPSILON)
    return centered.flatten()


def leave_one_out_advantages(*, rewards: Tensor, num_generations: int) -> Tensor:
    """`r - mean of the other rewards of the group`; RLOO, arXiv 2402.14740, section 3 (Kool et al. 2019).

    It is `G / (G - 1)` times the difference from the group's mean. A group of equal rewards has exactly 0.

    Example: rewards 0, 0 and 3 give -1.5, -1.5 and 3.

    Args:
        rewards: [N], the answers of a prompt one after the other, penalties included (`kl.penalized_scores`).
        num_generations: G, answers per prompt, at least 2.

    Returns:
        [N] float32.

    Raises:
        ShapeError: if N is not a multiple of G, or 0.
        ValueError: if a reward is not finite or G is below 2.
    """
    groups = _groups(rewards, num_generations)
    others = (groups.sum(1, keepdim=True) - groups) / (num_generations - 1)
    return (groups - others).masked_fill(_equal(groups)[:, None], 0.0).flatten()


def reward_metrics(*, rewards: Tensor, num_generations: int) -> dict[str, Tensor]:
    """What a run with rewards is watched by.

    Args:
        rewards: [N], the answers of a prompt one after the other.
        num_generations: G, answers per prompt, at least 2.

    Returns:
        Scalars `reward/mean`, `reward/std` (of all rewards), `reward/group_std` (mean over the groups) and
        `reward/frac_zero_std` (share of the groups whose rewards are equal).

    Raises:
        ShapeError: if N is not a multiple of G, or 0.
        ValueError: if a reward is not finite or G is below 2.
    """
    groups = _groups(rewards, num_generations)
    return {
        "reward/mean": groups.mean(),
        "reward/std": groups.std(),
        "reward/group_std": groups.std(1).mean(),
        "reward/frac_zero_std": _equal(groups).float().mean(),
    }


@torch.no_grad()
def generalized_advantages(
    *, rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, gae_lambda: float
) -> AdvantagesAndReturns:
    """`A_t = delta_t + gamma * lambda * A_(t+1)`, `delta_t = r_t + gamma * V_(t+1) - V_t`; arXiv 1506.02438, eq. 16.

    The next position is the next one that was sampled: what lies between (the result of a tool) is no action and takes
    no time. Behind the last one the value is 0, also for an answer that the token limit cut off.

    Example: rewards 0 and 1, values 0.5 and 0.25, gamma 1, lambda 0.5: deltas -0.25 and 0.75, so advantages
    0.125 and 0.75, returns 0.625 and 1.

    Args:
        rewards: [B, T] per token.
        values: [B, T] of the states before each token.
        completion_mask: [B, T] bool, True for sampled tokens.
        gamma: discount, 0 to 1.
        gae_lambda: 0 trusts the values, 1 the rewards.

    Returns:
        Advantages and returns (`advantages + values`).

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if a number is out of its range.
    """
    check_shapes("B T", rewards=rewards, values=values, completion_mask=completion_mask)
    check_mask(completion_mask=completion_mask)
    if not (0.0 <= gamma <= 1.0 and 0.0 <= gae_lambda <= 1.0):
        raise ValueError(f"gamma and gae_lambda must be in 0..1, got {gamma} and {gae_lambda}")
    rewards = rewards.float().masked_fill(~completion_mask, 0.0)
    values = values.float().masked_fill(~completion_mask, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        sampled = completion_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(sampled, delta + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(sampled, values[:, t], next_value)
        advantages[:, t] = advantage
    advantages = advantages.masked_fill(~completion_mask, 0.0)
    return AdvantagesAndReturns(advantages=advantages, returns=advantages + values)


@torch.no_grad()
def whiten(*, values: Tensor, mask: Tensor, shift_mean: bool) -> Tensor:
    """`(x - mean) / sqrt(var + 1e-8)` over all that counts; the variance divides by n - 1, as in TRL's former PPO.

    Args:
        values: [B, T], for example advantages of the whole rollout.
        mask: [B, T] bool, True where a value counts; at least two do.
        shift_mean: False adds the mean again (for rewards, whose sign means something).

    Returns:
        [B, T] float32, 0 where nothing counts.

    Raises:
        ShapeError: if the shapes differ or fewer than two values count.
    """
    check_shapes("B T", values=values, mask=mask)
    count = int(mask.sum())
    if count < 2:
        raise ShapeError(f"whitening needs at least 2 values that count, got {count}")
    values = values.float()
    mean = masked_mean(values=values, mask=mask)
    variance = masked_mean(values=(values - mean).square(), mask=mask) * (count / (count - 1))
    whitened = (values - mean) * torch.rsqrt(variance + _VARIANCE_EPSILON)
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)
