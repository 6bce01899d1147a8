"""Answers that say the same, and such that only look like it; algebra beside sympy."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest
import sympy

from nexus.text.algebra import read_expression
from nexus.text.equality import close, same_answer

SAME = [
    ("19", "19"), ("19.0", "19"), (" 19. ", "19"), ("+19", "19"), ("−7", "-7"), ("1,234.5", "1234.5"),
    ("3/4", "0.75"), (r"\frac{3}{4}", "0.75"), (r"-\frac{3}{4}", "-0.75"), ("1 1/2", "1.5"), (r"1\frac{1}{2}", "3/2"),
    ("$\\frac34$", "3/4"), ("25%", "25"), ("25%", "0.25"), ("25", "25%"), (r"25\%", "1/4"), ("19 apples", "19"),
    ("19 apples", "19 apple"), ("19 red apples", "19 apples"), ("the result is 19", "19"), ("$12", "12"),
    ("$12", "12 dollars"), ("1200 cents", "$12"), ("5 km", "5000 m"), ("5", "5 km"), ("5 km", "5"), ("5km", "5 km"),
    ("90 min", "1.5 hours"), ("2 hours", "2 h"), (r"90^\circ", "90 degrees"), (r"5\text{ cm}", "5 cm"),
    ("x = 5", "5"), ("2(x+1)", "2x + 2"), ("2x+2", r"2\left(x+1\right)"), ("(x+1)^2", "x^2+2x+1"),
    ("(x^2-1)/(x-1)", "x+1"), (r"\frac{x}{2}", "x/2"), (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{1}{\sqrt{2}}", "√2/2"),
    (r"\sqrt{2}\cdot\sqrt{3}", r"\sqrt{6}"), ("2pi", r"2\pi"), ("2**3", "8"), ("10^3", "1000"), ("2^-1", "0.5"),
    ("16^(1/2)", "4"), ("y*x", "xy+0"), ("(1, 2)", "(1,2.0)"), ("[1/2, x+x]", "[0.5, 2x]"), ("Paris", "paris"),
    ("(B)", "B"), (r"\(7\)", "7"), ("(3)", "3"), ("-(-3)", "3"), ("x²", "x^2"),
]  # fmt: skip
DIFFERENT = [
    ("", "19"), ("19", ""), ("18", "19"), ("19 or 20", "19"), ("19, 20", "19"), ("1.9", "19"), ("-19", "19"),
    ("5 m", "5 km"), ("5 kg", "5 km"), ("12 euros", "$12"), ("19 pears", "19 apples"), ("25%", "2.5"), ("2x", "2"),
    ("2 x", "2"), (r"\sqrt{2}", "2"), ("x^2", "2"), ("2x+1", "2x+2"), ("(x+1)^2", "x^2+1"), ("1/0", "0"),
    ("(1, 2)", "(2, 1)"), ("(1, 2)", "[1, 2]"), ("(1, 2, 3)", "(1, 2)"), ("Pairs", "Paris"), ("on", "no"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}"), (r"\sqrt{-1}", "1"), ("1 2", "2"), ("0/0", "1"), ("B", "A"),
    ("5 % 3", "5"), ("import os", "19"), ("__import__('os')", "1"), ("(x", "x"), ("x-x", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_same(answer: str, gold: str) -> None:
    assert same_answer(answer, gold, 0.0)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert not same_answer(answer, gold, 0.0)


def test_tolerance_is_a_share_of_the_right_number() -> None:
    assert same_answer("3.14", "3.14159", 0.001)
    assert not same_answer("3.14", "3.14159", 0.0001)
    assert same_answer("101 km", "100 km", 0.01)
    assert not same_answer("101.1 km", "100 km", 0.01)
    assert not same_answer("99", "-99", 0.5)
    assert close(Fraction(1, 100), Fraction(0), 0.01)
    assert same_answer(r"\frac{22}{7}", "3.14159", 0.001)


def _random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(["x", "y", "2", "3", "7", "1/2", "sqrt(2)", "sqrt(12)", "0.5", "pi"])
    left, right = _random_expression(rng, depth - 1), _random_expression(rng, depth - 1)
    form = rng.choice(["({})+({})", "({})-({})", "({})*({})", "({})/(({})+5)", "-({})+({})", "({})^2-({})"])
    return form.format(left, right)


def test_algebra_agrees_with_sympy() -> None:
    rng = random.Random(3)
    read = agreed = 0
    for _ in range(60):
        one = _random_expression(rng, 2)
        ours = read_expression(one)
        if ours is None:
            continue
        read += 1
        theirs = sympy.sympify(one.replace("^", "**"), rational=True)
        written = str(sympy.expand(theirs)).replace("**", "^")
        again = read_expression(written)
        changed = read_expression(f"{written} + x/97")
        if again is None or changed is None:
            continue
        assert ours.equals(again), (one, written)
        assert not ours.equals(changed), one
        other_text = _random_expression(rng, 1)
        other = read_expression(other_text)
        assert other is not None
        same = sympy.simplify(theirs - sympy.sympify(other_text.replace("^", "**"), rational=True)) == 0
        assert ours.equals(other) == same, (one, other_text)
        agreed += 1
    assert read >= 50
    assert agreed >= 40


@pytest.mark.parametrize(
    "text",
    ["9^9^9^9^9", "(((9^12)^12)^12)^12", "(a+b+c+d+e+f)^12", "(" * 150 + "1" + ")" * 150, "-" * 200 + "1",
     "1" * 5000, "sqrt(" * 40 + "2" + ")" * 40, "x^999999999999", "sqrt(999999999999999989)", "frac " * 40],
)  # fmt: skip
def test_hostile_expressions_cost_little(text: str) -> None:
    started = time.process_time()
    same_answer(text, "x + 1", 0.0)
    same_answer("x + 1", text, 0.0)
    assert time.process_time() - started < 1.0
