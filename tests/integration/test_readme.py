"""Every command of README.md is run: those for own data in `test_own_data`, the others as dry runs here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished
from tests.integration.conftest import listing
from tests.integration.readme import REPOSITORY, Command, commands, table_commands

pytestmark = pytest.mark.integration

OWN_DATA = "Your own data"


def run_elsewhere() -> list[Command]:
    return [command for command in commands() if command.section == OWN_DATA]


def doors() -> list[Command]:
    return [c for c in commands() if c.section != OWN_DATA and c.text.startswith("python -m nexus.")]


def targets() -> list[Command]:
    return [command for command in commands() if command.text.startswith("make ")]


def test_no_command_is_forgotten() -> None:
    assert len(commands()) == len(run_elsewhere()) + len(doors()) + len(targets())
    assert len(run_elsewhere()) >= 6
    assert len(doors()) >= 5
    assert len(targets()) >= 2


@pytest.mark.parametrize("text", [command.text for command in doors()])
def test_door(door: Callable[..., Finished], tmp_path: Path, text: str) -> None:
    _, _, module, *words = shlex.split(text, comments=True)
    name = module.removeprefix("nexus.")
    if name == "train":
        words += ["scale=quick"]
        # The jobs of the two commands without it are run by test_doors and test_sweep.
        words += [] if "dry_run=true" in words else ["dry_run=true"]
    finished = door(name, *words)
    assert finished.status == 0, finished.errors
    assert "E-" not in finished.errors
    if name == "train":
        jobs = 2 if "-m" in words else 1
        assert finished.output.count("dry run: nothing was written") == jobs
        assert finished.output.count("learned\n") == jobs
    else:
        assert "tools" in finished.output
    kept = ("outputs", "outputs/.cache")  # the preview tokenizes all rows, and the next start need not
    written = [name for name in listing(tmp_path) if name not in kept and not name.startswith("outputs/.cache/tokens")]
    assert written == []


@pytest.mark.parametrize("text", table_commands())
def test_command_of_a_table(door: Callable[..., Finished], text: str) -> None:
    """What shows a figure can be started; a package that another command makes is not there, so its base stands in."""
    _, _, _, *words = shlex.split(text)
    words = [word for word in words if not word.startswith("base_model.path=outputs/")]
    finished = door("train", *words, "scale.rows_per_source=16", "dry_run=true")
    assert finished.status == 0, finished.errors
    assert finished.output.count("dry run: nothing was written") == 1


def test_tables_name_commands() -> None:
    assert len(table_commands()) >= 5


@pytest.mark.parametrize("text", [command.text for command in targets()])
def test_target_has_a_recipe(text: str) -> None:
    target = shlex.split(text, comments=True)[1]
    makefile = (REPOSITORY / "Makefile").read_text()
    recipe = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe, f"make {target} does nothing"
    modules = re.findall(r"-m (nexus\.\w+)", recipe[1])
    assert all((REPOSITORY / f"{module.replace('.', '/')}.py").is_file() for module in modules)
    if target == "run":
        assert modules == ["nexus.train"]


def test_targets_in_prose_exist() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`", (REPOSITORY / "README.md").read_text()))
    known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert len(named) >= 3
    assert named <= known
