"""Finds the final answer of a text, compares numbers, and reads equations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from nexus.text.think import split_think

ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"

_TAGGED = re.compile(re.escape(ANSWER_OPEN) + r"(.*?)" + re.escape(ANSWER_CLOSE), re.DOTALL)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_FIGURE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus counts unless something is being subtracted: "12-7" holds 12 and 7, "is -7" holds -7.
_NUMBER = re.compile(rf"(?:(?<![\w).])[-−])?\$?(?:{_FIGURE})(?:/\d+)?%?")
_WHOLE = re.compile(rf"(?P<sign>[-−+]?)\$?(?P<top>{_FIGURE})(?:/(?P<bottom>\d+))?(?P<percent>%?)")
_MIXED = re.compile(r"(?P<sign>[-−+]?) *(?P<whole>\d+) +(?P<top>\d+)/(?P<bottom>\d+)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
#: Longer texts are no number; Python itself refuses to read more than 4300 digits.
_LONGEST_NUMBER = 400
_EQUATION = re.compile(rf"(-?(?:{_FIGURE})) ?([-+*/x×]) ?(-?(?:{_FIGURE})) ?= ?(-?(?:{_FIGURE}))")


def _boxed(text: str) -> str | None:
    r"""What stands in the last complete `\boxed{..}`, braces balanced."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for position in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : position].strip()
        start = text.rfind("\\boxed{", 0, start)
    return None


def marked_answer(text: str) -> str | None:
    r"""The answer that a text marks as such: `<answer>..</answer>`, else `\boxed{..}`, else `#### ..`.

    Args:
        text: what the model wrote; thinking is ignored.

    Returns:
        The last one of the first form that occurs, stripped; None if the text marks none.
    """
    answer = split_think(text).answer
    if tagged := _TAGGED.findall(answer):
        return str(tagged[-1]).strip()
    boxed = _boxed(answer)
    if boxed is not None:
        return boxed
    hashes = _HASHES.findall(answer)
    return str(hashes[-1]).strip() if hashes else None


def final_answer(text: str) -> str | None:
    """The marked answer, else the last number outside the thinking.

    Args:
        text: what the model wrote.

    Returns:
        The answer as written; None if there is none.
    """
    marked = marked_answer(text)
    if marked is not None:
        return marked
    numbers = _NUMBER.findall(split_think(text).answer)
    return str(numbers[-1]) if numbers else None


def normalize_number(text: str) -> Fraction | None:
    r"""The number that a text is, exactly.

    Args:
        text: for instance "1,234.50", "-3/4", "$12", "25%", "1 1/2" or "\frac{1}{2}"; other blanks, `$` around and a
            final period do not matter.

    Returns:
        The value, a percentage as its hundredth; None if the text is not one number.
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    plain = _LATEX_FRACTION.sub(r" \1/\2", text).strip("$ \t\n").removesuffix(".").replace("\\%", "%")
    mixed = _MIXED.fullmatch(plain)
    if mixed is not None and int(mixed["bottom"]):
        value = int(mixed["whole"]) + Fraction(int(mixed["top"]), int(mixed["bottom"]))
        return -value if mixed["sign"] in ("-", "−") else value
    found = _WHOLE.fullmatch(plain.replace(" ", ""))
    if found is None or (found["bottom"] and int(found["bottom"]) == 0):
        return None
    value = Fraction(found["top"].replace(",", "")) / int(found["bottom"] or 1)
    if found["percent"]:
        value /= 100
    return -value if found["sign"] in ("-", "−") else value


def same_number(answer: str, gold: str) -> bool:
    """Whether two texts are the same number.

    Args:
        answer: what the model said; one number, or a text with exactly one number ("19 apples").
        gold: the right number.

    Returns:
        True if they are equal. If only one side has a percent sign, it may also be a mere unit: "25%" equals "25".
    """
    if normalize_number(answer) is None:
        numbers = _NUMBER.findall(answer)
        answer = str(numbers[0]) if len(numbers) == 1 else ""
    left, right = normalize_number(answer), normalize_number(gold)
    if left is None or right is None:
        return False
    if left == right or ("%" in answer) == ("%" in gold):
        return left == right
    return left * 100 == right if "%" in answer else left == right * 100


@dataclass(frozen=True)
class Equation:
    """An equation with one operation, as a step of a calculation.

    Attributes:
        left: first operand.
        operator: one of + - * /.
        right: second operand.
        result: what is claimed.
    """

    left: Fraction
    operator: str
    right: Fraction
    result: Fraction

    @property
    def holds(self) -> bool:
        """Whether the claim is true; a division by zero never is."""
        match self.operator:
            case "+":
                return self.left + self.right == self.result
            case "-":
                return self.left - self.right == self.result
            case "*":
                return self.left * self.right == self.result
        return self.right != 0 and self.left / self.right == self.result


def equations(text: str) -> list[Equation]:
    """The equations of a text, one a line at most: a line that is more than an equation is prose.

    Args:
        text: lines such as "12 + 7 = 19"; `x` and `×` mean `*`.

    Returns:
        The equations in order.
    """
    found = []
    for line in text.splitlines():
        match = _EQUATION.fullmatch(line.strip())
        if match and len(match[0]) <= _LONGEST_NUMBER:
            left, right, result = (Fraction(match[i].replace(",", "")) for i in (1, 3, 4))
            found.append(Equation(left, match[2].replace("x", "*").replace("×", "*"), right, result))
    return found
