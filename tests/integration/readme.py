"""The commands of README.md, for the tests that run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        section: heading of the section that it stands in.
        text: as it is written, with its heredoc if it has one and the comment behind it.
    """

    section: str
    text: str


def commands() -> list[Command]:
    """Every command in a `bash` block, in order; a heredoc belongs to the command that reads it."""
    found: list[Command] = []
    section = ""
    in_block = False
    waiting_for: str | None = None
    for line in (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            in_block = not in_block and line == "```bash"
        elif not in_block:
            section = line.lstrip("# ") if line.startswith("#") else section
        elif waiting_for is not None:
            found[-1] = Command(section, f"{found[-1].text}\n{line}")
            waiting_for = None if line == waiting_for else waiting_for
        elif line.strip() and not line.startswith("#"):
            found.append(Command(section, line))
            heredoc = re.search(r"<<'?(\w+)'?", line)
            waiting_for = heredoc[1] if heredoc else None
    return found


def table_commands() -> list[str]:
    """Every command of the train door that a table names as what shows a figure, in order."""
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [command for row in rows for command in re.findall(r"`(python -m nexus\.train [^`]+)`", row)]
