"""`nexus DOOR ...` finds the doors without importing anything heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_list_of_doors(run_door: Callable[..., Any]) -> None:
    finished = run_door("__main__")
    assert finished.status == 0
    names = [line.split()[0] for line in finished.output.splitlines() if line.startswith("  ")]
    assert {"train", "evaluate", "generate", "capabilities"} <= set(names)
    assert {"errors", "types"} & set(names) == set()


def test_misspelt_door(run_door: Callable[..., Any]) -> None:
    finished = run_door("__main__", "trian", "+capability=tools")
    assert finished.status == 64
    assert finished.errors == "E-CFG-01  there is no door 'trian' -- did you mean 'train'?\n"
    assert "the doors are" in run_door("__main__", "xyz").errors
