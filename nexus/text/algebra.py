r"""Reads an algebraic expression and decides whether two are the same, exactly and without running anything.

An expression is a quotient of two polynomials in one-letter variables (`pi` is one more variable) whose coefficients
are fractions times square roots of whole numbers. Every product of square roots is kept as one root of a square-free
number; those are linearly independent over the fractions (Besicovitch 1940), so two polynomials are equal exactly if
their tables of terms are. What is not of this kind (functions, variable exponents, equations) is not read at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

_T = TypeVar("_T")

#: A hostile text must not cost more than a glance.
MAX_CHARACTERS = 240
MAX_DEPTH = 40
MAX_EXPONENT = 12
MAX_TERMS = 120
MAX_BITS = 2048
MAX_RADICAND = 10**9

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(pi|sqrt|frac)(?![a-zA-Z])|([a-zA-Z])(?![a-zA-Z]{2})|([-+*/^()]))")
_WRITTEN = (
    (re.compile(r"\\(?:left|right|,|;|!|quad|displaystyle)|[$\u00a0]"), " "),
    (re.compile(r"\\[dt]?frac(\d)(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\[dt]?frac"), " frac "),
    (re.compile(r"\\sqrt(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt|√"), " sqrt "),
    (re.compile(r"\\pi|π"), " pi "),
    (re.compile(r"\\(?:cdot|times)|[×·]|\*"), " * "),
    (re.compile(r"\\div|÷"), " / "),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\* *\*"), "^"),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"[{\[]"), "("),
    (re.compile(r"[}\]]"), ")"),
)
_MIXED = re.compile(r"(-?)(\d+) +(\d+)/(\d+)")

Term = tuple[tuple[tuple[str, int], ...], int]
"""Variables with their exponents in alphabetical order, and the square-free number under the root."""

Polynomial = dict[Term, Fraction]
_ONE: Term = ((), 1)


class _Unreadable(Exception):
    """The text is no expression that this module knows, or too large."""


@dataclass(frozen=True)
class Expression:
    """A quotient of polynomials.

    Attributes:
        top: the polynomial above the line.
        bottom: the polynomial below it, never zero.
    """

    top: Polynomial
    bottom: Polynomial

    def equals(self, other: Expression) -> bool:
        """Whether both are the same function; False also if it would cost too much to know."""
        try:
            return _times(self.top, other.bottom) == _times(other.top, self.bottom)
        except _Unreadable:
            return False

    def constant(self) -> Fraction | None:
        """The fraction that the expression is; None if it holds a variable or a root."""
        if set(self.top) | set(self.bottom) <= {_ONE}:
            return self.top.get(_ONE, Fraction(0)) / self.bottom[_ONE]
        return None


def read_expression(text: str) -> Expression | None:
    r"""Read an expression in plain or LaTeX notation.

    Args:
        text: for instance "2x + 2", "2(x+1)", "\frac{3}{4}", "3\sqrt{2}/2", "1 1/2"; a product needs no sign, words
            of three letters and more are no product of letters.

    Returns:
        The expression; None if the text is none, or is too large.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.strip().removesuffix(".")
    mixed = _MIXED.fullmatch(text)
    if mixed:
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]}/{mixed[4]})"
    for pattern, plain in _WRITTEN:
        text = pattern.sub(plain, text)
    try:
        return _Reader(text).whole()
    except (_Unreadable, ZeroDivisionError):
        return None


def _bounded(found: Polynomial) -> Polynomial:
    if len(found) > MAX_TERMS:
        raise _Unreadable
    for number in found.values():
        if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
            raise _Unreadable
    return found


def _plus(left: Polynomial, right: Polynomial) -> Polynomial:
    found = dict(left)
    for term, number in right.items():
        total = found.get(term, Fraction(0)) + number
        if total:
            found[term] = total
        else:
            found.pop(term, None)
    return _bounded(found)


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for (some, root), number in left.items():
        for (others, other_root), factor in right.items():
            exponents = dict(some)
            for name, exponent in others:
                exponents[name] = exponents.get(name, 0) + exponent
            if sum(exponents.values()) > MAX_TERMS:
                raise _Unreadable
            shared = math.gcd(root, other_root)  # sqrt(6) * sqrt(10) = 2 * sqrt(15): both are square-free
            radicand = (root // shared) * (other_root // shared)
            if radicand > MAX_RADICAND:
                raise _Unreadable
            term = (tuple(sorted(exponents.items())), radicand)
            found = _plus(found, {term: number * factor * shared})
    return found


def _constant(value: Fraction | int) -> Polynomial:
    return {_ONE: Fraction(value)} if value else {}


def _square_root(value: Expression) -> Expression:
    """Of a constant that is not negative; whatever else stands under a root is not read."""
    top, bottom = value.top, value.bottom
    if any(set(side) - {_ONE} for side in (top, bottom)):
        raise _Unreadable
    number = top.get(_ONE, Fraction(0)) / bottom[_ONE]
    radicand = number.numerator * number.denominator
    if not 0 <= radicand <= MAX_RADICAND:
        raise _Unreadable
    outside, divisor = 1, 2
    while divisor * divisor <= radicand:
        while radicand % (divisor * divisor) == 0:
            radicand //= divisor * divisor
            outside *= divisor
        divisor += 1
    if radicand == 0:
        return Expression({}, _constant(1))
    return Expression({((), radicand): Fraction(outside, number.denominator)}, _constant(1))


def _product(left: Expression, right: Expression) -> Expression:
    return Expression(_times(left.top, right.top), _times(left.bottom, right.bottom))


def _quotient(left: Expression, right: Expression) -> Expression:
    if not right.top:
        raise ZeroDivisionError
    return Expression(_times(left.top, right.bottom), _times(left.bottom, right.top))


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str):
        self.tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _Unreadable
            self.tokens.append(match[0].strip())
            position = match.end()
        self.at = 0
        self.depth = 0

    def whole(self) -> Expression:
        found = self._sum()
        if self.at != len(self.tokens):
            raise _Unreadable
        return found

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _take(self, token: str) -> bool:
        if self._next() != token:
            return False
        self.at += 1
        return True

    def _sum(self) -> Expression:
        found = self._product_of_factors()
        while self._next() in ("+", "-"):
            sign = 1 if self._next() == "+" else -1
            self.at += 1
            right = self._product_of_factors()
            top = _plus(
                _times(found.top, right.bottom), _times(_times(right.top, found.bottom), _constant(Fraction(sign)))
            )
            found = Expression(top, _times(found.bottom, right.bottom))
        return found

    def _product_of_factors(self) -> Expression:
        found = self._signed()
        while token := self._next():
            if self._take("*"):
                found = _product(found, self._signed())
            elif self._take("/"):
                found = _quotient(found, self._signed())
            elif token in "+-)^" or token[0].isdigit() or token[0] == ".":  # "2 3" is no product
                break
            else:
                found = _product(found, self._power())
        return found

    def _signed(self) -> Expression:
        if self._take("-"):
            return _product(Expression(_constant(-1), _constant(1)), self._nested(self._signed))
        return self._nested(self._signed) if self._take("+") else self._power()

    def _power(self) -> Expression:
        base = self._atom()
        if not self._take("^"):
            return base
        exponent = self._nested(self._exponent)
        if exponent == Fraction(1, 2):
            return _square_root(base)
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
            raise _Unreadable
        found = Expression(_constant(1), _constant(1))
        for _ in range(abs(exponent.numerator)):
            found = _product(found, base)
        return found if exponent >= 0 else _quotient(Expression(_constant(1), _constant(1)), found)

    def _exponent(self) -> Fraction:
        value = self._signed()
        if any(set(side) - {_ONE} for side in (value.top, value.bottom)):
            raise _Unreadable
        return value.top.get(_ONE, Fraction(0)) / value.bottom[_ONE]

    def _nested(self, read: Callable[[], _T]) -> _T:
        """What `read` finds, if the brackets, signs and roots around are not too deep."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable
        found = read()
        self.depth -= 1
        return found

    def _atom(self) -> Expression:
        token = self._next()
        self.at += 1
        if token == "(":
            found = self._nested(self._sum)
            if not self._take(")"):
                raise _Unreadable
            return found
        if token == "sqrt":
            return _square_root(self._nested(self._atom))
        if token == "frac":
            top = self._nested(self._atom)
            return _quotient(top, self._nested(self._atom))
        if token and (token[0].isdigit() or token[0] == "."):
            return self._number(token)
        if token and token[0].isalpha():
            return Expression({(((token, 1),), 1): Fraction(1)}, _constant(1))
        raise _Unreadable

    def _number(self, token: str) -> Expression:
        found = Expression(_constant(Fraction(token)), _constant(1))
        if "." in token or self._next() != "frac":
            return found
        fraction = self._atom()  # 2\frac{1}{3} is a mixed number, 2\frac{x}{3} a product
        if set(fraction.top) | set(fraction.bottom) <= {_ONE}:
            return Expression(_plus(_times(found.top, fraction.bottom), fraction.top), fraction.bottom)
        return _product(found, fraction)
