"""Decides whether an answer says the same as the right one: numbers, percentages, units, algebra, lists, words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from nexus.text.algebra import read_expression
from nexus.text.answers import normalize_number, same_number

#: Units by dimension: name -> (dimension, how many of the dimension's first unit).
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, entries in {
        "length": {"1": "m meter metre", "1/1000": "mm millimeter millimetre", "1/100": "cm centimeter centimetre",
                   "1000": "km kilometer kilometre", "127/5000": "inch", "381/1250": "ft foot feet",
                   "1143/1250": "yd yard", "201168/125": "mile mi"},
        "mass": {"1": "kg kilogram", "1/1000": "g gram", "1/1000000": "mg milligram", "1000": "t ton tonne",
                 "45359237/100000000": "lb pound", "45359237/1600000000": "oz ounce"},
        "time": {"1": "s sec second", "1/1000": "ms millisecond", "60": "min minute", "3600": "h hr hour",
                 "86400": "day", "604800": "week"},
        "volume": {"1": "l liter litre", "1/1000": "ml milliliter millilitre"},
        "dollars": {"1": "$ dollar usd", "1/100": "cent"},
        "euros": {"1": "€ euro eur"},
        "pounds": {"1": "£ gbp"},
        "angle": {"1": "° degree deg"},
    }.items()
    for factor, names in entries.items()
    for name in names.split()
}  # fmt: skip
_FIGURE = r"[-−+]?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?"
_QUANTITY = re.compile(rf"(?P<sign>[-−+]?)(?P<money>[$€£]?)\s*(?P<number>{_FIGURE})\s*(?P<unit>[^\W\d_][^\d]*|[°€£])?")
_FACTOR = re.compile(r"\d\s*([a-zA-Z])(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")
_DELIMITERS = re.compile(r"^\\[(\[]|\\[)\]]$|\\[,;! ]|\\(?:left|right)(?![a-z])")
_ASSIGNED = re.compile(r"^[a-zA-Z]\s*=\s*(?=[^=])")


@dataclass(frozen=True)
class _Quantity:
    """A number with its unit; the unit is empty if none was given."""

    number: Fraction
    unit: str


def _clean(text: str) -> str:
    r"""The text without wrappers that say nothing: `\text{..}`, `$..$`, `\(..\)`, `x =`, a final period."""
    text = _TEXT.sub(r" \1 ", text.strip()).replace("\\$", "$").replace("^\\circ", "°").replace("^{\\circ}", "°")
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    text = _DELIMITERS.sub("", text.strip()).strip()
    text = text.removesuffix(".").strip() if not re.fullmatch(r"\d+\.", text) else text.removesuffix(".")
    return _ASSIGNED.sub("", text).replace("−", "-").strip()


def _singular(word: str) -> str:
    word = word.casefold().rstrip(".")
    if word in _UNITS or len(word) < 3:
        return word
    for ending in ("es", "s"):
        if word.endswith(ending) and word.removesuffix(ending) in _UNITS:
            return word.removesuffix(ending)
    return word.removesuffix("s")


def _quantity(text: str) -> _Quantity | None:
    found = _QUANTITY.fullmatch(text)
    if found is None or (found["money"] and found["unit"]) or _is_formula(text):
        return None
    number = normalize_number(found["sign"] + found["number"].replace(" ", ""))
    if number is None:
        return None
    return _Quantity(number, (found["money"] or found["unit"] or "").strip())


def _same_unit(answer: _Quantity, gold: _Quantity, tolerance: float) -> bool | None:
    """Whether two quantities are equal; None if a unit says nothing, so that the numbers alone decide."""
    if not answer.unit or not gold.unit:
        return None
    said, right = _singular(answer.unit), _singular(gold.unit)
    if said in _UNITS and right in _UNITS:
        (dimension, factor), (other, other_factor) = _UNITS[said], _UNITS[right]
        return dimension == other and close(answer.number * factor, gold.number * other_factor, tolerance)
    if said in _UNITS or right in _UNITS:
        return False
    words = {_singular(word) for word in answer.unit.split()}
    return None if _singular(gold.unit.split()[-1]) in words else False


def close(value: Fraction, right: Fraction, tolerance: float) -> bool:
    """Whether a value lies near enough.

    Args:
        value: what was said.
        right: what is right.
        tolerance: largest allowed distance as a share of `right`; where `right` is 0, as such. 0 means equal.

    Returns:
        True if it does; computed with fractions, so that the limit itself is inside.
    """
    return abs(value - right) <= Fraction(str(tolerance)) * (abs(right) if right else 1)


def same_answer(answer: str, gold: str, tolerance: float) -> bool:
    """Whether an answer says the same as the right one.

    In this order: numbers (with thousands, fractions, percent signs, units: "25%" is 1/4, and also 25 where only one
    side has the sign; "5 km" is "5000 m" and "5", but not "5 m"), algebra ("2(x+1)" is "2x + 2"), lists in brackets
    entry by entry, and words without regard to case and brackets around a letter.

    Args:
        answer: what the model marked as its answer.
        gold: the right answer.
        tolerance: see `close`; it applies to numbers only.

    Returns:
        True if both are the same.
    """
    answer, gold = _clean(answer), _clean(gold)
    if not answer or not gold:
        return False
    left, right = _quantity(answer), _quantity(gold)
    if left is not None and right is not None:
        decided = _same_unit(left, right, tolerance)
        return close(left.number, right.number, tolerance) if decided is None else decided
    if not _is_formula(answer) and same_number(answer, gold):
        return True
    number, right_number = normalize_number(answer), normalize_number(gold)
    if number is not None and right_number is not None and ("%" in answer) == ("%" in gold):
        return close(number, right_number, tolerance)
    entries, right_entries = _entries(answer), _entries(gold)
    if entries and right_entries:
        same_length = len(entries) == len(right_entries)
        return same_length and all(same_answer(a, g, tolerance) for a, g in zip(entries, right_entries, strict=True))
    if _same_words(answer, gold):
        return True
    return _is_algebra(gold) and _same_expression(answer, gold, tolerance)


def _same_words(answer: str, gold: str) -> bool:
    said, right = (" ".join(re.sub(r"^\(([A-Za-z])\)$", r"\1", text).casefold().split()) for text in (answer, gold))
    return said == right


def _entries(text: str) -> list[str]:
    """Entries of `(1, 2)`, `[1, 2]` or `{1, 2}` with the brackets as first and last entry; empty if it is no list."""
    text = text.replace("\\{", "{").replace("\\}", "}")
    if len(text) < 5 or text[0] not in "([{" or text[-1] not in ")]}":
        return []
    found, depth = [""], 0
    for character in text[1:-1]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return []
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [text[0], *found, text[-1]] if 1 < len(found) < 64 else []


def _is_formula(text: str) -> bool:
    """Whether the one number in a text is no answer by itself: the 2 of "2x" or of the root of 2."""
    if normalize_number(text) is not None:
        return False
    factors = [letter for letter in _FACTOR.findall(text) if letter not in _UNITS]
    return bool(factors) or any(sign in text for sign in "\\^*/()=+√_")


def _is_algebra(text: str) -> bool:
    """Whether a right answer is more than a word; letters alone are no product."""
    return bool(re.search(r"\d|[-+*/^\\]", text))


def _same_expression(answer: str, gold: str, tolerance: float) -> bool:
    said, right = read_expression(answer), read_expression(gold)
    if said is None or right is None:
        return False
    if said.equals(right):
        return True
    value, right_value = said.constant(), right.constant()
    return value is not None and right_value is not None and close(value, right_value, tolerance)
