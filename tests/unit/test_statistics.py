"""Intervals and the paired test against published and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nexus.evaluation.statistics import (
    Z95,
    bootstrap_interval,
    paired_bootstrap,
    student_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_the_published_table(successes: int, n: int, low: float, high: float):
    found = wilson_interval(successes, n)
    assert found == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]), abs=1e-12)


def test_wilson_by_hand():
    # z = 2: (p + 2/n +- 2 sqrt(p(1-p)/n + 1/n^2)) / (1 + 4/n) with p = 1/2, n = 4: (1 +- sqrt(2)/2) / 2
    assert wilson_interval(2, 4, z=2.0) == pytest.approx((0.5 - math.sqrt(2) / 4, 0.5 + math.sqrt(2) / 4), abs=1e-12)
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(0, 10)[1] == pytest.approx(3.841458820694124 / 13.841458820694124, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int):
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(successes, n)


def test_bootstrap_of_two_values_by_enumeration():
    # means are 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_agrees_with_the_central_limit_theorem():
    values = np.random.default_rng(1).normal(3.0, 2.0, 900)
    half = 1.96 * values.std(ddof=1) / 30
    low, high = bootstrap_interval(list(values))
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_interval(list(values)) == (low, high)
    assert bootstrap_interval(list(values), seed=1) != (low, high)
    wide = bootstrap_interval(list(values), confidence=0.99)
    assert wide[0] < low
    assert wide[1] > high


def test_bootstrap_of_one_value_is_a_point():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_bootstrap_refuses_what_is_no_sample(values: list[float]):
    with pytest.raises(ValueError, match="value"):
        bootstrap_interval(values)


def test_bootstrap_refuses_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval([1.0], resamples=0)


def test_paired_bootstrap_by_enumeration():
    # differences 1 and 0: shifted means -1/2, 0, 1/2 with probability 1/4, 1/2, 1/4; |.| >= 1/2 in half the cases
    found = paired_bootstrap([0.0, 0.0], [1.0, 0.0])
    assert found.difference == 0.5
    assert found.n == 2
    assert found.ci95 == (0.0, 1.0)
    assert found.p_value == pytest.approx(0.5, abs=0.02)


def test_paired_bootstrap_at_its_ends():
    same = paired_bootstrap([0.1, 0.7, 1.0], [0.1, 0.7, 1.0])
    assert (same.difference, same.p_value) == (0.0, 1.0)
    better = paired_bootstrap([0.0] * 50, [1.0] * 50)
    assert (better.difference, better.ci95) == (1.0, (1.0, 1.0))
    assert better.p_value == pytest.approx(1 / 10_001)


def test_paired_bootstrap_uses_the_pairing():
    first = np.random.default_rng(2).normal(0.0, 5.0, 200)
    second = first + np.random.default_rng(3).normal(0.5, 0.5, 200)
    assert paired_bootstrap(list(first), list(second)).p_value < 0.001
    assert paired_bootstrap(list(first), list(np.roll(second, 1))).p_value > 0.05


def test_paired_bootstrap_refuses_other_prompts():
    with pytest.raises(ValueError, match="not the same prompts"):
        paired_bootstrap([0.0], [0.0, 1.0])


#: Two-sided 95 % points as printed in Abramowitz and Stegun, table 26.10.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "quantile"), STUDENT.items())
def test_student_quantile_equals_the_printed_table(freedom: int, quantile: float):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_student_quantile_falls_to_the_normal_one():
    values = [student_quantile(freedom) for freedom in (1, 2, 7, 50, 1000, 2000, 2001)]
    assert values == sorted(values, reverse=True)
    assert values[-2] == pytest.approx(Z95, abs=2e-3)
    with pytest.raises(ValueError, match="0 degrees"):
        student_quantile(0)
