"""Confidence intervals and a paired test for scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

#: 97.5 % quantile of the normal distribution, to the last bit of a double.
Z95 = 1.959963984540054


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution (closed form: Abramowitz and Stegun 26.7.3 and 26.7.4, inverted).

    Args:
        freedom: degrees of freedom, at least 1.

    Returns:
        12.706 for 1, 2.776 for 4, close to 1.960 for many.

    Raises:
        ValueError: `freedom` is below 1.
    """
    if freedom < 1:
        raise ValueError(f"there is no interval with {freedom} degrees of freedom")
    if freedom > 2000:
        return Z95  # they differ by less than 0.0015
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_two_sided(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _student_two_sided(t: float, freedom: int) -> float:
    """Probability that a t-distributed number lies between -t and t."""
    theta = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0 if odd and freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(theta) ** 2
        total += term
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total


def wilson_interval(successes: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai, DasGupta 2001, eq. 4).

    Unlike the usual normal interval it is sound at 0 % and 100 %, where scores often are.

    Args:
        successes: how many of n.
        n: trials.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper bound, within 0 and 1.

    Raises:
        ValueError: there are no trials, or not 0 <= successes <= n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"no interval for {successes} of {n}")
    share = successes / n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bounds are exactly 0 and 1; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return low, high


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: one for each prompt, any real numbers, at least one.
        confidence: of the interval, between 0 and 1.
        resamples: drawn with replacement.
        seed: of the resampling; equal input gives equal output.

    Returns:
        Lower and upper bound; equal if there is one value or all are the same.

    Raises:
        ValueError: no values, a value is not finite, or `confidence` is not between 0 and 1.
    """
    data = _finite(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    means = _resampled_means(data, resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_groups(
    groups: Sequence[Sequence[float]],
    statistic: Callable[[Vector], float],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic of values that come in groups (Davison and Hinkley 1997, 3.8).

    Whole groups are resampled, because values of one group (latencies of one answer) resemble each other.

    Args:
        groups: values of each group, no group empty.
        statistic: of all values of the resampled groups together.
        confidence: of the interval, between 0 and 1.
        resamples: drawn with replacement.
        seed: of the resampling; equal input gives equal output.

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: no groups or values, a value is not finite, or `confidence` is not between 0 and 1.
    """
    data = [_finite(group) for group in groups]
    if not data:
        raise ValueError("there are no values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    generator = np.random.default_rng(seed)
    found = [
        statistic(np.concatenate([data[i] for i in generator.integers(0, len(data), len(data))]))
        for _ in range(resamples)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """How two systems compare on the same prompts.

    Attributes:
        difference: mean of second minus first.
        ci95: 95 % percentile interval of the difference.
        p_value: two-sided, for no difference.
        n: prompts.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    n: int


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Paired bootstrap test of a difference of means (Efron and Tibshirani 1993, section 16.4; Koehn 2004).

    The differences are shifted to mean zero and resampled; the p-value is the share of resamples that lie as far
    from zero as the observed difference. The observed sample itself counts as one, so p is never zero.

    Args:
        first: values of the first system, one for each prompt.
        second: values of the second system on the same prompts in the same order.
        resamples: drawn with replacement.
        seed: of the resampling; equal input gives equal output.

    Returns:
        The difference, its interval and its p-value.

    Raises:
        ValueError: no values, different numbers of values, or a value that is not finite.
    """
    if len(first) != len(second):
        raise ValueError(f"not the same prompts: {len(first)} and {len(second)} values")
    differences = _finite(second) - _finite(first)
    observed = float(differences.mean())
    means = _resampled_means(differences, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    # Resampling shifted differences gives the same means, shifted; a tolerance forgives their rounding.
    extreme = int((np.abs(means - observed) >= abs(observed) - 1e-12).sum())
    return PairedTest(observed, (float(low), float(high)), (extreme + 1) / (resamples + 1), len(differences))


def _finite(values: Sequence[float]) -> Vector:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError("there are no values")
    if not np.isfinite(data).all():
        raise ValueError("a value is not finite")
    return data


def _resampled_means(data: Vector, resamples: int, seed: int) -> Vector:
    """Means of resamples, one at a time: all at once would take resamples x n numbers of memory."""
    if resamples < 1:
        raise ValueError(f"resamples must be positive, not {resamples}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples, dtype=np.float64)
    for index in range(resamples):
        means[index] = data[generator.integers(0, data.size, data.size)].mean()
    return means
