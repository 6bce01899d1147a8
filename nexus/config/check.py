"""All problems of a config at once, and a config as plain containers, as text and as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nexus.config.rules import rule_problems, setting_warnings
from nexus.config.schema import ROOTS
from nexus.config.targets import node_problems, refused_targets
from nexus.config.walk import schema_problems
from nexus.errors import Problem

Extra = Callable[[dict[str, Any], dict[str, Any]], Iterable[Problem]]
"""Further checks of a door: (resolved config, the same with its interpolations) -> problems."""

#: Nodes that get arguments from the run, so that none is missing in the config.
_COMPLETED_BY_RUN = ("method.module", "method.optimizer", "callbacks.")
#: Settings that say where and whether, not what.
_NOT_IDENTITY = ("run_dir", "resume", "dry_run", "paths")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve every interpolation.

    Args:
        cfg: as composed.

    Returns:
        Plain dictionaries, lists, numbers and texts.

    Raises:
        OmegaConfBaseException: for an interpolation that leads nowhere, or a `???` that nobody filled in.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def check(cfg: DictConfig, *, root: str, extra: Extra | None = None) -> list[Problem]:
    """Everything that the configuration alone shows to be wrong.

    Args:
        cfg: as composed, with its interpolations.
        root: `train`, `evaluate` or `generate`.
        extra: further checks, called if the config could be resolved and has the right shape.

    Returns:
        Problems, those of safety first; empty if the config is good.

    Raises:
        ValueError: for a root that does not exist.
    """
    if root not in ROOTS:
        raise ValueError(f"no root {root!r}")
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    problems = refused_targets(raw)
    missing = sorted(OmegaConf.missing_keys(cfg))
    problems += [Problem("E-CFG-07", key, "this must be given", f"give {key}=VALUE") for key in missing]
    if missing:
        return problems
    try:
        plain = to_plain(cfg)
    except OmegaConfBaseException as error:
        return [*problems, _unresolved(error)]
    problems += [p for p in refused_targets(plain) if p not in problems]
    shape = schema_problems(plain, root) + node_problems(plain, completed_by_run=_COMPLETED_BY_RUN)
    problems += shape
    problems += rule_problems(plain, root, shape)
    if extra is not None and not shape:
        problems += extra(plain, {str(name): value for name, value in raw.items()})
    return sorted(problems, key=lambda problem: not problem.code.startswith("E-SEC"))


def warnings(config: Mapping[str, Any], *, root: str) -> list[str]:
    """Settings of a good config that do nothing, or less than they seem to; lines `W-CFG-nn  ...`."""
    return setting_warnings(config, root)


def config_yaml(config: Mapping[str, Any], *, redact: Callable[[Any], Any]) -> str:
    """The text of `config.yaml` in a run folder.

    Args:
        config: resolved, plain containers.
        redact: takes secrets out of plain containers; `storage.redaction.redact`, handed in because storage is a sibling.

    Returns:
        YAML.
    """
    return OmegaConf.to_yaml(OmegaConf.create(redact(dict(config))))


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of what decides about the result: everything but the folders, `resume` and `dry_run`."""
    identity = {name: value for name, value in config.items() if name not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _unresolved(error: OmegaConfBaseException) -> Problem:
    key = str(error.full_key or error.key or "configuration")
    return Problem("E-CFG-07", key, str(error).split("\n")[0], "an interpolation must lead to a setting that exists")
