"""What the doors add to `config.check`: secrets, options of rewards, packages of loggers, folders to write to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexus.config.folders import data_file
from nexus.errors import Problem
from nexus.models.reward_facts import reward_model_problems
from nexus.rewards.registry import reward_problems
from nexus.rollout.vllm import engine_problems
from nexus.stages.loggers import logger_problems
from nexus.stages.tracker import tracker_problems
from nexus.storage.redaction import is_secret_key, redact_text
from nexus.storage.run_folder import new_run_problem, output_problem


def train_problems(config: dict[str, Any], raw: dict[str, Any]) -> list[Problem]:
    """Problems of a training run that the settings alone do not show.

    Args:
        config: resolved, plain containers.
        raw: the same with its interpolations; a secret that comes from the environment is none.

    Returns:
        Problems; nothing stays behind on the disk.
    """
    problems = [*secret_problems(config, raw), *reward_problems(config), *engine_problems(config)]
    problems += [*reward_model_problems(config), *logger_problems(config)]
    if config["dry_run"] or config["resume"] is not None:
        return problems
    problems += _among_rows(config)
    if config["run_dir"] is None:
        found = output_problem(Path(config["paths"]["output_dir"]), key="paths.output_dir")
        same = config["paths"]["metrics_dir"] == config["paths"]["output_dir"]
        if found is not None:
            return [*problems, found, *([] if same else tracker_problems(config))]
        return [*problems, *tracker_problems(config)]
    problems += tracker_problems(config)
    folder = Path(config["run_dir"])
    found = new_run_problem(folder, key="run_dir")
    return [*problems, found] if found is not None else problems


def preview_problems(config: dict[str, Any], raw: dict[str, Any]) -> list[Problem]:
    """Problems of a preview that the settings alone do not show.

    Args:
        config: resolved, plain containers.
        raw: the same with its interpolations.

    Returns:
        Problems; nothing stays behind on the disk.
    """
    problems = secret_problems(config, raw)
    if config["resume"] is not None:
        remedy = "leave resume out and name the data: +capability=NAME or data.train=FILE"
        problems.append(Problem("E-CFG-03", "resume", "a preview looks at rows, not at a run", remedy))
    png = config["preview"]["png"]
    if png is not None and Path(png).suffix.lower() != ".png":
        remedy = f"preview.png={Path(png).with_suffix('.png')}" if Path(png).name else "preview.png=lengths.png"
        problems.append(Problem("E-CFG-02", "preview.png", f"= {png!r}: the picture is a PNG file", remedy))
    return problems + _file_problems(png, "preview.png")


def evaluate_problems(config: dict[str, Any], raw: dict[str, Any]) -> list[Problem]:
    """Problems of an evaluation that the settings alone do not show.

    Args:
        config: resolved, plain containers.
        raw: the same with its interpolations.

    Returns:
        Problems; nothing stays behind on the disk.
    """
    problems = [*secret_problems(config, raw), *tracker_problems(config)]
    return problems + _file_problems(config["output"], "output")


def generate_problems(config: dict[str, Any], raw: dict[str, Any]) -> list[Problem]:
    """Problems of a conversation or of rejection sampling that the settings alone do not show.

    Args:
        config: resolved, plain containers.
        raw: the same with its interpolations.

    Returns:
        Problems; nothing stays behind on the disk.
    """
    problems = secret_problems(config, raw)
    if config["mode"]["name"] == "chat":
        return problems
    problems += reward_problems(config)
    key = "paths.output_dir" if config["output"] is None else "output"
    folder = Path(config["paths"]["output_dir"] if config["output"] is None else config["output"])
    if config["output"] is not None and folder.exists():
        return [*problems, Problem("E-OUT-04", key, f"{str(folder)!r} exists already", "name a new folder")]
    found = output_problem(folder, key=key)
    return [*problems, found] if found is not None else problems


def _among_rows(config: dict[str, Any]) -> Iterator[Problem]:
    """`E-OUT-03`: a run whose tables and logs would be read as rows, by itself when it is resumed and by the next."""
    key = "paths.output_dir" if config["run_dir"] is None else "run_dir"
    target = Path(config["paths"]["output_dir"] if config["run_dir"] is None else config["run_dir"]).resolve()
    for name in ("train", "validation"):
        given = config["data"][name]
        for source in [given] if isinstance(given, str) else given or []:
            folder = data_file(source, config["paths"]["data_dir"]).resolve()
            if folder.is_dir() and target.is_relative_to(folder):
                what = f"{str(target)!r} lies inside the folder of rows data.{name}={source}"
                yield Problem("E-OUT-03", key, what, f"name a folder outside of it with {key}=PATH, or name the files")


def _file_problems(name: str | None, key: str) -> list[Problem]:
    """Whether a file that a setting names can be written."""
    if name is None:
        return []
    file = Path(name)
    if file.is_dir():
        return [Problem("E-OUT-03", key, f"{str(file)!r} is a folder", "name a file")]
    if not file.parent.exists():
        return [Problem("E-OUT-03", key, f"there is no folder {str(file.parent)!r}", "make it first")]
    found = output_problem(file.parent, key=key)
    return [found] if found is not None else []


def secret_problems(config: dict[str, Any], raw: dict[str, Any]) -> list[Problem]:
    """Secrets that stand in the settings themselves.

    Args:
        config: resolved, plain containers; not read, it makes this a check like the others.
        raw: with its interpolations.

    Returns:
        `E-SEC-07` for each, without the secret.
    """
    return list(_secrets(raw, ""))


def _secrets(tree: Any, key: str) -> Iterator[Problem]:
    if isinstance(tree, Mapping):
        for name, entry in tree.items():
            yield from _secrets(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, entry in enumerate(tree):
            yield from _secrets(entry, f"{key}.{index}")
    elif isinstance(tree, str) and tree and "${" not in tree and (is_secret_key(key) or redact_text(tree) != tree):
        remedy = f"put it into an environment variable: '{key}=${{oc.env:NAME}}'"
        yield Problem("E-SEC-07", key, "a secret stands in the settings", remedy)
