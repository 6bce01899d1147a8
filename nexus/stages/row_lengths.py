"""How long the rows are that a method computes: of its data once it is tokenized, else what the limits allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nexus.data.token_rows import AnyRow, TokenRows
from nexus.types import TokenizedGroup, TokenizedPrompt

#: Methods that compute log-probabilities of all rows once, before training (`Method.needs_reference`).
REFERENCE_METHODS = frozenset({"dpo", "kto"})


@dataclass(frozen=True)
class RowLengths:
    """What the plan needs to know about rows as a backward pass computes them; a group counts as one row.

    Attributes:
        mean: tokens of a row.
        spread: standard deviation of the tokens.
        longest: tokens of the longest row.
        learned: share of the tokens that is learned.
    """

    mean: float
    spread: float
    longest: int
    learned: float

    @classmethod
    def of(cls, tokens: Sequence[int] | NDArray[np.int64], targets: Sequence[int] | NDArray[np.int64]) -> RowLengths:
        """From the tokens of each row, and those of them that are learned; at least one row."""
        lengths = np.asarray(tokens)
        learned = int(np.sum(targets)) / int(lengths.sum())
        return cls(float(lengths.mean()), float(lengths.std()), int(lengths.max()), learned)

    @classmethod
    def at_most(cls, max_seq_len: int) -> RowLengths:
        """Rows of which only the limit is known, every token learned."""
        return cls(float(max_seq_len), 0.0, max_seq_len, 1.0)


def longest_rows(config: Mapping[str, Any]) -> RowLengths:
    """Rows of which only the limit is known; a pair may hold two answers that have next to no prompt in common.

    Of a judged row only one answer has a backward pass (`KTO.prepare_step`), but without packing it stays padded to the
    answer beside it, which belongs to another prompt and may be as long again.
    """
    most, view = config["data"]["max_seq_len"], config["method"]["view"]
    if "rollout" in config["method"]:
        return _group_lengths(config, [most - longest_answer(config)])
    alone = view == "sft" or (view == "judged" and config["data"]["packing"])
    return RowLengths.at_most(most if alone else 2 * most)


def lengths_of(config: Mapping[str, Any], rows: Sequence[AnyRow | TokenizedPrompt]) -> RowLengths:
    """Lengths of rows as they are trained on; a prompt with answers that all come to their limit, the worst case.

    Args:
        config: checked and resolved.
        rows: tokenized rows, at least one.

    Returns:
        The lengths.
    """
    if isinstance(rows, TokenRows):
        return RowLengths.of(rows.lengths, rows.targets)
    if "rollout" in config["method"]:
        return _group_lengths(config, [len(row.input_ids) for row in rows])
    groups = [row for row in rows if isinstance(row, TokenizedGroup)]
    trained = 1 if config["method"]["view"] == "judged" else 2  # completions of a group that have a backward pass
    if config["data"]["packing"]:
        tokens = [len(group.prompt_ids) + sum(map(len, group.completions[:trained])) for group in groups]
    else:  # padded to the longest completion, the prompt repeated
        tokens = [trained * (len(group.prompt_ids) + max(map(len, group.completions))) for group in groups]
    return RowLengths.of(tokens, [sum(map(sum, group.loss_masks[:trained])) for group in groups])


def forward_tokens(config: Mapping[str, Any], lengths: RowLengths, *, rows: int, seen: int) -> float:
    """Tokens that are computed without a backward pass.

    Args:
        config: checked and resolved.
        lengths: of its rows.
        rows: of the data, each of which meets the reference once.
        seen: rows of all steps. KTO takes its baseline from the answer beside each, about as long as the judged one.

    Returns:
        Their number; 0 for methods without a reference.
    """
    if config["method"]["name"] not in REFERENCE_METHODS:
        return 0.0
    if config["method"]["view"] == "judged":
        return lengths.mean * (rows * (1 + lengths.learned) + seen)
    return lengths.mean * rows


def longest_answer(config: Mapping[str, Any]) -> int:
    """Largest limit of an answer, in tokens; 0 without a capability."""
    return max((int(entry["max_new_tokens"]) for entry in config["capabilities"].values()), default=0)


def _group_lengths(config: Mapping[str, Any], prompts: Sequence[int]) -> RowLengths:
    """Lengths of whole groups, the prompt once, from those of the prompts."""
    answers = config["method"]["rollout"]["num_generations"] * longest_answer(config)
    mean = sum(prompts) / len(prompts)
    spread = math.sqrt(sum((length - mean) ** 2 for length in prompts) / len(prompts))
    return RowLengths(mean + answers, spread, max(prompts) + answers, answers / (mean + answers))
