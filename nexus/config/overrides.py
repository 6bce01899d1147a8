"""The command line's `key=value` words, checked before Hydra sees them, and Hydra's own complaints in our form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nexus.config.folders import groups
from nexus.config.walk import kind_of, nearest, unknown_key
from nexus.errors import Problem

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: Groups of which several options may be chosen.
_SEVERAL = ("capability", "encoders", "decoders", "teachers", "callbacks", "logger")
#: Groups of cards, which are named inside other groups only; the value is the place of a card of one's own.
_CARDS = {"dataset": "data.sources.mine", "reward": "capabilities.NAME.rewards.mine"}


def quote_verbatim(words: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Quote free text, so that commas, spaces, brackets and dollar signs in it mean nothing to Hydra.

    Args:
        words: overrides from the command line.
        keys: settings whose values are taken as they stand.

    Returns:
        The overrides.
    """
    quoted = []
    for word in words:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+")
        if equals and bare in keys and value not in ("null", "") and value[:1] not in "'\"":
            # In Hydra's quotes a quote, and backslashes before one, need a backslash; `${` would be an interpolation.
            escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", value)
            escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped).replace("${", "\\${")
            word = f"{key}='{escaped}'"
        quoted.append(word)
    return quoted


def override_problems(words: Sequence[str], root: str, *, multirun: bool) -> list[tuple[str, Problem]]:
    """What is wrong with each override by itself.

    Args:
        words: overrides.
        root: root config.
        multirun: True if several values mean several runs.

    Returns:
        Words with their problems, in the order of the command line.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    problems: list[tuple[str, Problem]] = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            problems.append((word, _syntax(word, str(error))))
            continue
        problems += [(word, problem) for problem in _override_problems(override, word, root, multirun)]
    return problems


def _syntax(word: str, complaint: str) -> Problem:
    if word.startswith("-"):
        return Problem(
            "E-CFG-05", word, "this is no option", f"settings are given as key=value: {word.lstrip('-')}=VALUE"
        )
    if "=" not in word:
        near = nearest(word, [*groups()["capability"], *groups()])
        if near in groups()["capability"]:
            return Problem("E-CFG-05", word, "this is not key=value", f"did you mean +capability={near}?")
        return Problem("E-CFG-05", word, "this is not key=value", f"write {word}=VALUE without spaces around =")
    key = word.partition("=")[0]
    reason = next(
        (line for line in complaint.split("\n") if line and not line.startswith(("Error parsing", "See "))), ""
    )
    return Problem(
        "E-CFG-05",
        key,
        f"cannot read {word!r}: {reason}",
        f"put text between quotes: '{key}=\"...\"'; a list is {key}=[a,b]",
    )


#: Settings of what Hydra itself would write or start.
_WITHOUT_EFFECT = (
    "hydra.run.",
    "hydra.sweep.",
    "hydra.output_subdir",
    "hydra.job.chdir",
    "hydra.sweeper.",
    "hydra.launcher.",
)


def _override_problems(override: Override, word: str, root: str, multirun: bool) -> Iterator[Problem]:
    key = override.key_or_group
    if key.startswith(_WITHOUT_EFFECT):
        yield Problem(
            "E-CFG-05",
            key,
            "Hydra only composes here, so that this would change nothing",
            "paths.output_dir=DIR moves all runs and sweeps, run_dir=DIR one run",
        )
        return
    if override.package is not None or "/" in key or key.split(".")[0] == "hydra":
        return
    if override.is_sweep_override() and not multirun:
        yield Problem(
            "E-CFG-05",
            key,
            f"{word!r} has several values",
            f"add -m to try them all; a list is {key}=[a,b]; quote text",
        )
        return
    if key in groups() or key in (
        "capabilities",
        "encoder",
        "decoder",
        "teacher",
        "base_models",
        "methods",
        "datasets",
    ):
        yield from _group_problems(override, key, root)
    elif not override.is_delete():
        kind, unknown, siblings = kind_of(key, root)
        if kind is None and unknown in groups():
            plus = "+" if unknown == "capability" else ""
            yield Problem(
                "E-CFG-06", key, f"{unknown} is a group, its options are chosen as a whole", f"{plus}{unknown}=NAME"
            )
        elif kind is None:
            more = groups() if "." not in unknown else ()
            yield unknown_key(unknown, root, list(dict.fromkeys([*siblings, *more])))


def _group_problems(override: Override, key: str, root: str) -> Iterator[Problem]:
    names = list(_option_names(override.value()))
    given = ",".join(names) or "NAME"
    if key not in groups():
        if isinstance(override.value(), dict):
            return
        near = nearest(key, list(groups())) or key  # always near: the caller's list holds variants of real names
        plus = "+" if near == "capability" else ""
        yield Problem(
            "E-CFG-06", key, f"{key}={given} chooses nothing", f"the group is called {near}: {plus}{near}={given}"
        )
        return
    added = override.is_add()
    if key in _CARDS:
        yield Problem(
            "E-CFG-06",
            key,
            "a card needs a place",
            f"write +{key}@{_CARDS[key]}={given}, or choose a +capability",
        )
        return
    if override.is_delete():
        yield Problem("E-CFG-06", key, "a group cannot be left out", f"choose one of {', '.join(groups()[key])}")
        return
    if override.is_force_add():
        sign = "+" if key == "capability" else ""
        yield Problem("E-CFG-06", key, "++ is not for groups", f"write {sign}{key}={given}")
    elif key == "capability" and not added:
        yield Problem("E-CFG-06", key, "add capabilities with +", f"write +capability={given}")
    elif key != "capability" and added:
        yield Problem(
            "E-CFG-06", key, "choose groups with =, only capabilities are added with +", f"write {key}={given}"
        )
    elif key not in _SEVERAL and isinstance(override.value(), list):
        yield Problem("E-CFG-06", key, "one option can be chosen", f"to try several: -m {key}={given}")
    options = groups()[key]
    for name in names:
        if name not in options and not (name == "null" and key == "experiment"):
            meant = nearest(name, options)
            hint = f"did you mean {meant}? " if meant else ""
            yield Problem("E-CFG-01", key, f"there is no {key}={name}", f"{hint}there is {', '.join(options)}")


def _option_names(value: Any) -> Iterator[str]:
    """Names of the options in an override's value, whatever brackets, quotes and commas stand around them."""
    if hasattr(value, "list"):  # a sweep over choices
        value = value.list
    if isinstance(value, list):
        for entry in value:
            yield from _option_names(entry)
    elif hasattr(value, "text"):  # a quoted string
        yield value.text
    elif value is None:
        yield "null"
    elif isinstance(value, str | int | float):
        yield str(value)


def from_hydra(error: Exception, root: str, names_below: Callable[[str], list[str]]) -> Problem | None:
    """Hydra's or OmegaConf's complaint about a composition in our form.

    Args:
        error: what composing raised.
        root: root config.
        names_below: gives the names that exist below a dotted key.

    Returns:
        The problem to print; None if it is none of theirs, that is, a bug.
    """
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = str(error).strip()
    first = text.split("\n")[0]
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file)
        options = list(error.options or [])
        near = nearest(missing.rpartition("/")[2], options)
        remedy = f"did you mean {near}?" if near else f"there is {', '.join(options) or 'nothing of that kind'}"
        return Problem("E-CFG-01", missing.partition("/")[0], f"there is no {missing}", remedy)
    if isinstance(error, YAMLError):
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}:{mark.line + 1}" if mark is not None else "a settings file"
        return Problem(
            "E-CFG-08", place, f"not valid YAML: {getattr(error, 'problem', None) or first}", "mend the file"
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if match := re.search(r"An item is already at '([^']+)'", text):
        return Problem("E-CFG-06", match[1], "this setting exists already", f"without +: {match[1]}=VALUE")
    if match := re.search(r"([\w/@.]+) appears more than once in the final defaults list", text):
        name = match[1].split("@")[-1]
        return Problem(
            "E-CFG-06", name, "it was chosen twice; a list such as all_text holds it already", "name it once"
        )
    if match := re.search(r"Could not (?:override|delete from config)[^']*'([^']+)'", text):
        parent = match[1].rpartition(".")[0]
        _, unknown, siblings = kind_of(match[1], root)
        return unknown_key(unknown, root, siblings or names_below(parent))
    detail = str(error.__cause__).split("\n")[0] if error.__cause__ is not None else ""
    message = first if not detail or detail in first else f"{first}: {detail}"
    return Problem("E-CFG-05", "command line", message, "see --help for groups and settings")
