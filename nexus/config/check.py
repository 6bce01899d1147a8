"""All problems of a config at once, and a config as plain containers, as text and as a hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_COMPLETED_BY_RUN = ("method.module", "method.optimizer", "method.cold_start.module", "callbacks.", "logger.")
_UNRESOLVED = "E-CFG-10"
_REFERENCE = re.compile(r"^\$\{[\w.]+\}$")
#: Settings that say where and whether, not what.
_NOT_IDENTITY = ("run_dir", "resume", "resume_mode", "dry_run", "paths")
#: Within `data`: settings that change how long it takes.
_NOT_IDENTITY_OF_DATA = ("num_proc", "cache")
#: What a resumed run may change besides: what is told and measured, and where own rows lie (their hash must agree).
_FREE_ON_RESUME = ("callbacks", "logger", "evaluation", "package", "data.train", "data.validation")


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
    missing = [Problem("E-CFG-07", key, "this must be given", f"give {key}=VALUE") for key in _missing(_raw(cfg), "")]
    if missing:
        return [*refused_targets(_raw(cfg)), *missing]
    problems = shape_problems(cfg, root=root)
    if any(problem.code == _UNRESOLVED for problem in problems):
        return problems
    plain = to_plain(cfg)
    found = [*problems, *rule_problems(plain, root, problems)]
    if extra is not None and not problems:
        found += extra(plain, _raw(cfg))
    return sorted(found, key=lambda problem: not problem.code.startswith("E-SEC"))


def shape_problems(cfg: DictConfig, *, root: str) -> list[Problem]:
    """Refused classes, unknown keys, wrong types and values out of range; no rules across groups.

    Args:
        cfg: as composed, with its interpolations; a `???` in it is left out.
        root: root config.

    Returns:
        Problems in the order of the config; `E-CFG-10` alone with what was found before if it cannot be resolved.
    """
    raw = _raw(cfg)
    problems = refused_targets(raw)
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        return [*problems, _unresolved(error)]
    assert isinstance(resolved, dict)
    plain = {str(name): value for name, value in resolved.items()}
    problems += [p for p in refused_targets(plain) if p not in problems]
    problems += schema_problems(plain, root) + node_problems(plain, completed_by_run=_COMPLETED_BY_RUN)
    return [p for p in problems if p.code != "E-CFG-02" or not _is_reference(raw, p.key)]


def _raw(cfg: DictConfig) -> dict[str, Any]:
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    return {str(name): value for name, value in raw.items()}


def _missing(tree: Any, key: str) -> Iterator[str]:
    """Keys whose value is still `???`."""
    if isinstance(tree, Mapping):
        for name, entry in tree.items():
            yield from _missing(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, str) and tree == "???":
        yield key


def _is_reference(raw: Any, key: str) -> bool:
    """True if the value is another setting's, which has the same problem itself."""
    for part in key.split("."):
        if isinstance(raw, Mapping) and part in raw:
            raw = raw[part]
        else:
            return False
    return isinstance(raw, str) and bool(_REFERENCE.match(raw))


def warnings(config: Mapping[str, Any], *, root: str) -> list[str]:
    """Settings of a good config that do nothing, or less than they seem to; lines `W-CFG-nn  ...`."""
    return setting_warnings(config, root)


def config_yaml(config: Mapping[str, Any], *, redact: Callable[[Any], Any]) -> str:
    """The text of `config.yaml` in a run folder.

    Args:
        config: resolved, plain containers.
        redact: takes secrets out, `storage.redaction.redact`; handed in because storage is a sibling.

    Returns:
        YAML.
    """
    return OmegaConf.to_yaml(OmegaConf.create(redact(dict(config))))


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of what decides about the result: not the folders, `resume`, `dry_run`, and how rows are tokenized."""
    identity = {name: value for name, value in config.items() if name not in _NOT_IDENTITY}
    identity["data"] = {name: value for name, value in config["data"].items() if name not in _NOT_IDENTITY_OF_DATA}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def resume_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a resumed run must share with the run that it goes on with.

    Args:
        config: resolved, plain containers.

    Returns:
        Value by dotted key; a list, and an empty mapping, is a value.
    """
    skipped = {*_NOT_IDENTITY, *_FREE_ON_RESUME, *(f"data.{name}" for name in _NOT_IDENTITY_OF_DATA)}
    return dict(_flat(config, "", skipped))


def _flat(tree: Mapping[str, Any], prefix: str, skipped: set[str]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in skipped:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.", skipped)
        else:
            yield key, value


def _unresolved(error: OmegaConfBaseException) -> Problem:
    key = str(error.full_key or error.key or "configuration")
    return Problem(_UNRESOLVED, key, str(error).split("\n")[0], "an interpolation must lead to a setting that exists")
