"""From the command line to checked jobs: what every Hydra door calls.

Hydra composes and nothing else: the jobs run outside it, after all of them are known to be good, so it writes no
folder, changes no directory and wraps no exception.
"""

from __future__ import annotations

import argparse
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nexus.config.folders import conf_dir, groups
from nexus.config.known_bad import refuse_known_bad
from nexus.config.overrides import from_hydra, override_problems, quote_verbatim
from nexus.errors import ConfigError, NexusError, Problem, discard_output

_INTERRUPTED = 130
#: Settings of `hardware` that callbacks have taken up when the run was begun.
_READ_BY_OTHERS = ("hardware.name", "hardware.thermal_pause", "hardware.cooldown")
_HELP = """nexus {root}: choose every group with `=`, add capabilities with `+`.
{lists}  see the settings:                        --cfg job      (other flags: --hydra-help)
  what the capabilities are:               nexus capabilities
"""
_HELP_LISTS = """  several capabilities are a list:         '+capability=[cot,tools]'
  a sweep over every combination:          -m +capability=cot,tools
"""


@dataclass(frozen=True)
class Job:
    """One run to do.

    Attributes:
        config: checked and resolved, plain containers.
        overrides: the words that it was composed from.
        name: its values of the swept settings, such as `method=lora,seed=1`; empty if it is the only one.
        index: position in the sweep, from 0.
        count: number of jobs.
    """

    config: dict[str, Any]
    overrides: tuple[str, ...]
    name: str
    index: int
    count: int


@dataclass(frozen=True)
class Done:
    """A job that ended well.

    Attributes:
        job: what was done.
        result: what the door's task returned.
    """

    job: Job
    result: Any


def run_hydra(
    task: Callable[[Job], Any],
    root: str,
    *,
    extra: Any = None,
    verbatim: Sequence[str] = (),
    finish: Callable[[list[Done]], Any] | None = None,
    redact: Callable[[str, Sequence[str]], str] | None = None,
) -> int:
    """Compose and check everything that the command line asks for, then do it.

    Args:
        task: does one job.
        root: `train`, `evaluate` or `generate`.
        extra: further checks, see `config.check.Extra`.
        verbatim: settings whose values are free text.
        finish: gets the jobs that ended well, after a sweep (`-m`) of which at least one did.
        redact: takes secrets out of a message, given the words of the command line
            (`storage.redaction.redact_message`; handed in because storage is a sibling).

    Returns:
        Exit status: 0, the status of the first error that a user can mend, 130 after Ctrl-C, 143 after SIGTERM, 141
        when the reader of the output went away (`| head`). Other exceptions pass.
    """

    def complain(message: object) -> None:
        print(redact(str(message), sys.argv[1:]) if redact else message, file=sys.stderr)

    words = quote_verbatim(sys.argv[1:], verbatim)
    try:
        refuse_known_bad()
        arguments = _parse(words)
        if arguments.help or arguments.delegate:
            return _show(arguments, words, root, redact)
        jobs = make_jobs(
            arguments.overrides, root, multirun=arguments.multirun, extra=extra, config_dir=arguments.config_dir
        )
        return _work(task, jobs, finish if arguments.multirun else None, complain)
    except NexusError as error:
        complain(error)
        return error.status
    except KeyboardInterrupt as error:
        # `nexus.signals` gives the exit status along; Python's own handler gives nothing
        status = int(error.args[0]) if error.args else _INTERRUPTED
        complain("interrupted" if status == _INTERRUPTED else "terminated")
        return status
    except BrokenPipeError:
        return discard_output()


def make_jobs(
    words: Sequence[str], root: str, *, multirun: bool = False, extra: Any = None, config_dir: str | None = None
) -> list[Job]:
    """Compose and check every job of a command line.

    Args:
        words: overrides.
        root: root config.
        multirun: True if several values mean several jobs.
        extra: further checks, see `config.check.Extra`.
        config_dir: a folder of further groups.

    Returns:
        Jobs in the order in which they are to run.

    Raises:
        ConfigError: all problems of all jobs.
        NexusError: if composing itself fails.
    """
    from nexus.config.check import warnings

    refused = override_problems(words, root, multirun=multirun)
    if refused:
        bad = {word for word, _ in refused}
        rest = [] if multirun else _shape_of([word for word in words if word not in bad], root, config_dir)
        raise ConfigError([*(problem for _, problem in refused), *rest])
    problems: list[Problem] = []
    composed: list[tuple[dict[str, Any], list[str], str]] = []
    with _composer(root, config_dir) as compose:
        for overrides, name in _expand(words) if multirun else [(list(words), "")]:
            cfg = compose(overrides)
            config, found = _checked(cfg, overrides, root, extra)
            place = f"[{name}] " if name else ""
            problems += [Problem(p.code, p.key, place + p.message, p.remedy) for p in found if p not in problems]
            composed.append((config, overrides, name))
    if problems:
        raise ConfigError(problems)
    for line in dict.fromkeys(line for config, _, _ in composed for line in warnings(config, root=root)):
        print(line, file=sys.stderr)
    return [
        Job(config=config, overrides=tuple(overrides), name=name, index=index, count=len(composed))
        for index, (config, overrides, name) in enumerate(composed)
    ]


def compose_config(root: str, words: Sequence[str]) -> Any:
    """Compose one config without checking it.

    Args:
        root: root config.
        words: overrides.

    Returns:
        A `DictConfig` with its interpolations.

    Raises:
        NexusError: if composing fails.
    """
    with _composer(root, None) as compose:
        return compose(list(words))


def _show(
    arguments: argparse.Namespace,
    words: Sequence[str],
    root: str,
    redact: Callable[[str, Sequence[str]], str] | None,
) -> int:
    """`--help` and whatever else only shows something; a reader that stops early, such as `head`, is no error."""
    try:
        status = 0
        with redirect_stdout(io.StringIO()) as shown:
            if arguments.help:
                print(help_text(root, arguments.overrides, arguments.config_dir))
            else:
                refused = override_problems(arguments.overrides, root, multirun=False)
                if refused:
                    raise ConfigError([problem for _, problem in refused])
                status = _hand_to_hydra(words, root)
        text = shown.getvalue()  # as any message: settings are shown as they were given, secrets too
        print(redact(text, sys.argv[1:]) if redact else text, end="", flush=True)
        return status
    except BrokenPipeError:
        discard_output()
        return 0


def help_text(root: str, words: Sequence[str], config_dir: str | None) -> str:
    """What `--help` prints: how to choose, the groups with their options, and the settings. Hydra's own takes a second.

    Args:
        root: root config.
        words: overrides that the shown settings follow.
        config_dir: a folder of further groups.

    Returns:
        Several lines.

    Raises:
        ConfigError: if the overrides cannot be used.
    """
    from omegaconf import OmegaConf

    refused = override_problems(words, root, multirun=False)
    if refused:
        raise ConfigError([problem for _, problem in refused])
    chosen: dict[str, Any] = {}
    for name in ("train", root) if root == "preview" else (root,):
        file = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{name}.yaml"))
        assert isinstance(file, dict)
        chosen |= {group: it for entry in file["defaults"] if isinstance(entry, dict) for group, it in entry.items()}
    lines = []
    for group, options in groups().items():
        if group in chosen and group != "hydra":
            marked = [f"[{option}]" if option == chosen[group] else option for option in options]
            lines.append(f"  {group}: {', '.join(marked)}")
        elif group == "capability":
            lines.append(f"  +capability: {', '.join(options)}")
    with _composer(root, config_dir) as compose:
        settings = OmegaConf.to_yaml(compose(list(words)))
    header = _HELP.format(root=root, lists=_HELP_LISTS if root != "generate" else "")
    return (
        f"{header}\n== Groups: GROUP=OPTION, [the default] ==\n"
        + "\n".join(lines)
        + f"\n\n== Settings: A.B=VALUE ==\n{settings}"
    )


@contextmanager
def _composer(root: str, config_dir: str | None) -> Iterator[Callable[[list[str]], Any]]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import nexus.config.resolvers  # noqa: F401  the resolvers that the YAML names

    further = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []

    def one(overrides: list[str]) -> Any:
        try:
            return compose(root, overrides=[*overrides, *further])
        except Exception as error:
            problem = from_hydra(error, root, names_below)
            if problem is None:
                raise
            raise ConfigError([problem]) from error

    def names_below(key: str) -> list[str]:
        found = OmegaConf.select(compose(root), key) if key else compose(root)
        return [str(name) for name in found] if OmegaConf.is_dict(found) else []

    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name=root):
        yield one


def _shape_of(words: list[str], root: str, config_dir: str | None) -> list[Problem]:
    """Further problems of a command line of which some words are refused already: those of the other words' values."""
    from nexus.config.check import shape_problems

    try:
        with _composer(root, config_dir) as compose:
            return shape_problems(compose(words), root=root)
    except ConfigError as error:
        return list(error.problems)


def _checked(cfg: Any, overrides: list[str], root: str, extra: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Plain config of a job with its problems; a resumed run brings its own, a package takes the model's place."""
    from omegaconf import OmegaConf

    from nexus.config.check import check, to_plain

    if root == "train" and cfg.resume is not None:
        cfg = _saved_config(cfg, overrides)
    if root != "train" and isinstance(cfg.package, str):
        taken = [word for word in overrides if word.lstrip("+").startswith("base_model")]
        if taken:
            raise NexusError(
                "E-CFG-03",
                f"package and {taken[0]} both name the model",
                where="package",
                remedy="leave one of them out",
            )
        own = {"name": Path(cfg.package).resolve().name, "path": cfg.package, "tokenizer": None, "architecture": None}
        cfg = OmegaConf.merge(cfg, {"base_model": {**own, "revision": None, "chat_template": None}})
    problems = check(cfg, root=root, extra=extra)
    return ({} if problems else to_plain(cfg)), problems


def _saved_config(cfg: Any, overrides: list[str]) -> Any:
    """The config of the run to resume, with what was given to do so, right or wrong."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    resume, keys = str(cfg.resume), {word: word.lstrip("+").partition("=")[0] for word in overrides}
    how = {word for word, key in keys.items() if key.startswith("hardware.") and key not in _READ_BY_OTHERS}
    others = [word for word, key in keys.items() if key not in ("resume", "resume_mode", "dry_run")]
    others = [word for word in others if cfg.resume_mode != "fast" or word not in how]
    if others:
        free = f"give resume_mode=fast {' '.join(others)}" if how.issuperset(others) else "start a new run"
        raise NexusError(
            "E-RES-01",
            f"a resumed run keeps its settings, but {' '.join(others)} was given too",
            where="resume",
            remedy=f"resume={resume} needs nothing else; to change settings, {free}",
        )
    file = Path(resume) / "config.yaml"
    if not file.is_file():
        what = "this folder holds no run (no config.yaml)" if Path(resume).is_dir() else "there is no such run folder"
        raise NexusError("E-MIS-03", what, where=f"resume={resume}", remedy="give the folder that holds config.yaml")
    try:
        saved = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise NexusError(
            "E-CFG-08", f"not valid YAML: {str(error).splitlines()[0]}", where=str(file), remedy="mend it"
        ) from error
    if not isinstance(saved, DictConfig):
        raise NexusError("E-CFG-08", "this is not the config of a run", where=str(file), remedy="mend the file")
    given = {"resume": resume, "resume_mode": cfg.resume_mode, "run_dir": None, "dry_run": cfg.dry_run}
    changed = [keys[word].partition(".")[2] for word in keys if word in how]
    return OmegaConf.merge(saved, given, {"hardware": {name: cfg.hardware[name] for name in changed}})


def _expand(words: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Every combination of the swept values, with a name that says which."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices: list[list[str]] = []
    swept: list[bool] = []
    for word in words:
        override = parser.parse_override(word)
        swept.append(override.is_sweep_override())
        if not override.is_sweep_override():
            choices.append([word])
            continue
        if not override.is_discrete_sweep():
            raise NexusError(
                "E-CFG-05",
                "an interval has no end of values",
                where=word,
                remedy="name them: key=a,b or key=range(1,5)",
            )
        choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
    for combination in itertools.product(*choices):
        chosen = [word for word, is_swept in zip(combination, swept, strict=True) if is_swept]
        yield list(combination), ",".join(_readable(word) for word in chosen)


def _readable(word: str) -> str:
    """`capability=cot` of `+capability=cot`, fit for the name of a folder."""
    key, _, value = word.lstrip("+").partition("=")
    return re.sub(r"[^\w.=+-]+", "-", f"{key}={value}").strip("-")


def _work(
    task: Callable[[Job], Any],
    jobs: list[Job],
    finish: Callable[[list[Done]], Any] | None,
    complain: Callable[[object], None],
) -> int:
    """Do the jobs one after the other; one that fails by a user's mistake does not stop the others."""
    status = 0
    done: list[Done] = []
    try:
        for job in jobs:
            if job.count > 1:
                print(f"job {job.index + 1} of {job.count}: {job.name}", flush=True)
            try:
                done.append(Done(job, task(job)))
            except NexusError as error:
                complain(f"[{job.name}] {error}" if job.name else error)
                status = status or error.status
    finally:  # also of a sweep that is interrupted: what was finished is compared
        if finish is not None and done:
            finish(done)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise NexusError(
            "E-CFG-05", message, where="command line", remedy="settings are given as key=value; see --help"
        )


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags that Hydra knows; `delegate` is True for those that only show something."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-r", "--run", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-h", "--help", action="store_true")
    shows = [
        parser.add_argument("--hydra-help", action="store_true"),
        parser.add_argument("--version", action="store_true"),
        parser.add_argument("--resolve", action="store_true"),
        parser.add_argument("-sc", "--shell-completion", action="store_true"),
        parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"]),
        parser.add_argument("-p", "--package"),
        parser.add_argument("-i", "--info", nargs="?", const="all"),
    ]
    arguments, unknown = parser.parse_known_intermixed_args(list(words))
    flags = [word for word in unknown if word.startswith("-")]
    if flags:
        name = flags[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise NexusError(
            "E-CFG-05",
            f"there is no flag {flags[0]}",
            where="command line",
            remedy=f"settings have no dashes: {name}=VALUE; see --help",
        )
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise NexusError("E-MIS-03", "there is no such folder", where=f"--config-dir {arguments.config_dir}")
    arguments.delegate = any(getattr(arguments, action.dest) for action in shows)
    return arguments


def _hand_to_hydra(words: Sequence[str], root: str) -> int:
    """`--cfg`, `--info` and the like: Hydra shows, nothing runs."""
    import hydra

    import nexus.config.resolvers  # noqa: F401  the resolvers that the YAML names

    def nothing(cfg: Any) -> None:
        raise AssertionError("Hydra was asked to show something, not to run")

    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root_logger = logging.getLogger()
    handlers, level = list(root_logger.handlers), root_logger.level
    sys.argv = [argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own form of error and ends the process with 1
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(nothing)()
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:
        problem = from_hydra(error, root, lambda key: [])
        if problem is None:
            raise
        raise ConfigError([problem]) from error
    finally:
        sys.argv = argv
        root_logger.handlers[:] = handlers  # Hydra adds one that holds on to the present standard output
        root_logger.setLevel(level)
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    return 0
