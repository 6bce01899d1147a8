"""Suites that capabilities name: which metrics an answer gets, and how rows become scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nexus.evaluation.metrics import (
    COT_METRICS,
    TOOL_RESULTS_METRICS,
    TOOLS_METRICS,
    cot_metrics,
    tool_results_metrics,
    tools_metrics,
)
from nexus.evaluation.refusal_metrics import REFUSAL_METRICS, refusal_metrics
from nexus.evaluation.statistics import bootstrap_interval, wilson_interval
from nexus.evaluation.thought_metrics import (
    REASONING_METRICS,
    THINKING_METRICS,
    reasoning_metrics,
    thinking_metrics,
)
from nexus.types import Score


class RowScorer(Protocol):
    """Scores one answer."""

    def __call__(self, prompt_row: Mapping[str, Any], answer_text: str, *, finished: bool) -> dict[str, float]:
        """Metric values of one answer; see `nexus.evaluation.metrics` and `thought_metrics`."""


@dataclass(frozen=True)
class Suite:
    """The metrics of a capability.

    Attributes:
        name: as in `capability.metrics`.
        metrics: names of all metrics that `score` may return; the first one is the primary one.
        score: scores one answer.
        compared: metrics whose change a report tests beside that of the primary one.
        lower_is_better: metrics of which 0 is best.
    """

    name: str
    metrics: tuple[str, ...]
    score: RowScorer
    compared: tuple[str, ...] = ()
    lower_is_better: tuple[str, ...] = ()


SUITES: dict[str, Suite] = {
    "tools": Suite("tools", TOOLS_METRICS, tools_metrics),
    "tool_results": Suite("tool_results", TOOL_RESULTS_METRICS, tool_results_metrics, compared=TOOL_RESULTS_METRICS),
    "cot": Suite("cot", COT_METRICS, cot_metrics),
    "reasoning": Suite("reasoning", REASONING_METRICS, reasoning_metrics),
    "thinking": Suite("thinking", THINKING_METRICS, thinking_metrics),
    "refusal": Suite(
        "refusal",
        REFUSAL_METRICS,
        refusal_metrics,
        compared=REFUSAL_METRICS,
        lower_is_better=("harmful_compliance", "false_refusal"),
    ),
}


def best_value(suite: str, metric: str) -> float:
    """What a metric of 0s and 1s is where all went well.

    Args:
        suite: as in `capability.metrics`; `streaming` has no suite here, and none of its metrics is best at 0.
        metric: one of its metrics.

    Returns:
        1, or 0 where lower is better.
    """
    return 0.0 if suite in SUITES and metric in SUITES[suite].lower_is_better else 1.0


def aggregate(rows: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    """Means over rows, each metric over the rows that have it.

    Args:
        rows: metric values of every answer.

    Returns:
        One score for each metric that occurs, in order of first occurrence: with Wilson's interval if all its values
        are 0 or 1, else with a bootstrap interval.

    Raises:
        ValueError: there are no rows; a score of nothing is no score.
    """
    if not rows:
        raise ValueError("no answers were scored")
    values: dict[str, list[float]] = {}
    for row in rows:
        for metric, value in row.items():
            values.setdefault(metric, []).append(float(value))
    return {metric: _score(found) for metric, found in values.items()}


def _score(values: Sequence[float]) -> Score:
    n = len(values)
    mean = sum(values) / n
    if all(value in (0.0, 1.0) for value in values):
        return Score(mean, n, wilson_interval(int(sum(values)), n))
    if n == 1:
        return Score(mean, n, None)  # one value says nothing about the spread
    return Score(mean, n, bootstrap_interval(values))
