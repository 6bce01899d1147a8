"""Errors that a user can cause.

Every such error has a code `E-XXX-nn`, says what is wrong, where, and what to do, and maps to an exit status by its
family. A stack trace reaches a user only for a bug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

#: Exit status by family of the code (the middle part of `E-CFG-01`); families follow sysexits.h.
EXIT_STATUS: dict[str, int] = {
    "CFG": 64,  # a wrong or contradictory setting
    "CAP": 64,  # a capability that cannot be trained as asked
    "RL": 64,  # a reward function or a group that nothing can be learned from
    "THM": 64,  # limits of heat that cannot be
    "MEM": 64,  # the plan does not fit the memory
    "RES": 64,  # a resume that cannot be honored
    "DAT": 65,  # rows that cannot be used
    "TOK": 65,  # tokenizer or chat template
    "LEN": 65,  # a row that is too long
    "PREF": 65,  # preference pairs
    "MOD": 65,  # a damaged or unsupported model folder
    "PKG": 65,  # a damaged package
    "NUM": 65,  # NaN or infinity while training
    "MIS": 66,  # a file or folder that is not there
    "DEP": 69,  # an optional package that is not installed
    "DEV": 69,  # a device that is not there
    "INT": 70,  # a bug in Nexus itself
    "OUT": 73,  # an output folder that cannot be written
    "RUN": 75,  # somebody else holds the run folder; try again
    "SEC": 77,  # refused for safety
    "SUP": 77,  # a library that is known to do harm
}


def discard_output() -> int:
    """Send what is still buffered for a reader that is gone (`| head`) to nowhere; else Python complains as it ends.

    Returns:
        The exit status: 141, as a shell reports a command that SIGPIPE ended.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13


class NexusError(Exception):
    """An error that the user can mend.

    Args:
        code: stable identifier, for example `E-DAT-02`.
        message: what is wrong, in one sentence.
        where: file, line, row or dotted key; empty if there is no single place.
        remedy: what to do about it.
        status: exit status, if it differs from the family's.
    """

    def __init__(self, code: str, message: str, *, where: str = "", remedy: str = "", status: int | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.remedy = remedy
        self.status = EXIT_STATUS[code.split("-")[1]] if status is None else status

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        remedy = f" -- {self.remedy}" if self.remedy else ""
        return f"{self.code}  {self.message}{place}{remedy}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        code: as in `NexusError`.
        key: dotted key of the setting.
        message: what is wrong, with the value that was given.
        remedy: what is allowed, the nearest name, or what to do.
    """

    code: str
    key: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" -- {self.remedy}" if self.remedy else ""
        return f"{self.code}  {self.key}: {self.message}{remedy}"


class ConfigError(NexusError):
    """All problems of a configuration at once.

    Args:
        problems: at least one problem; the first one gives code and exit status.
    """

    def __init__(self, problems: Sequence[Problem]):
        first = problems[0]
        super().__init__(first.code, first.message, where=first.key, remedy=first.remedy)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems in the configuration:\n{lines}"
