"""Rewards by name and weight: what a function may read, several at once, every component returned one by one."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from nexus.config.walk import check_value, nearest
from nexus.errors import NexusError, Problem
from nexus.rewards import code as code_reward
from nexus.rewards.answer import answer
from nexus.rewards.format import format_tags
from nexus.rewards.length import cosine_length, length_window, overlong
from nexus.rewards.repetition import repetition
from nexus.rewards.steps import steps
from nexus.rewards.tool_call import tool_call
from nexus.rewards.user import load_function
from nexus.types import Example, Message

Function = Callable[..., float]

#: What a reward function may read, by the name of its argument; every other argument is an option.
READABLE = ("completion", "gold", "prompt", "tools", "finished", "num_tokens", "turns")

BUILT_IN: dict[str, Function] = {
    "tool_call": tool_call,
    "answer": answer,
    "steps": steps,
    "format": format_tags,
    "length": length_window,
    "overlong": overlong,
    "cosine": cosine_length,
    "repetition": repetition,
    "code": code_reward.code,
}

#: What must be in order before the first completion, by name; called with the options.
PREPARE: dict[str, Callable[..., None]] = {"code": code_reward.prepare}


@dataclass(frozen=True)
class Sample:
    """One completion with all that a reward may look at.

    Attributes:
        id: name of the row, for messages.
        completion: decoded answer without its stop token, tags kept; of a conversation what the model wrote, turn after
            turn in a line of its own.
        gold: what is right; None if the row has nothing.
        prompt: chat turns before the completion.
        tools: definitions on offer, in the HF form.
        finished: False if the token limit ended the completion.
        num_tokens: tokens of the completion, with its stop tokens.
        turns: what came after the prompt as chat turns: the answer alone, or in turn with results of an environment.
    """

    id: str
    completion: str
    gold: Mapping[str, Any] | None
    prompt: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    finished: bool
    num_tokens: int
    turns: tuple[Message, ...] = ()

    @classmethod
    def of(
        cls, example: Example, *, completion: str, finished: bool, num_tokens: int, turns: tuple[Message, ...] = ()
    ) -> Sample:
        """The sample of a prompt row and what was generated for it; the gold travels with the row."""
        return cls(example.id, completion, example.gold, example.messages, example.tools, finished, num_tokens, turns)


@dataclass(frozen=True)
class Rewarded:
    """What one completion earned.

    Attributes:
        total: sum of weight times component.
        components: what each function gave, by name, without its weight.
    """

    total: float
    components: dict[str, float]


@dataclass(frozen=True)
class RewardFunction:
    """One reward of a run.

    Attributes:
        name: name in the log.
        function: text in, float out.
        weight: factor in the sum.
        options: arguments that the function gets besides what it reads.
        source: built-in name, or `file.py:function`, for messages.
    """

    name: str
    function: Function
    weight: float
    options: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        problem = signature_problem(self.function, self.options)
        if problem:
            raise NexusError("E-RL-05", f"{self.source} {problem}", where=f"rewards.{self.name}", remedy=_SIGNATURE)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the function reads of a sample."""
        return tuple(name for name in READABLE if name in _parameters(self.function))

    def __call__(self, sample: Sample) -> float:
        """The reward of one completion.

        Args:
            sample: the completion.

        Returns:
            A finite number, without the weight.

        Raises:
            NexusError: `E-DAT-31` if the function needs gold that the row has not, `E-RL-04` if it raised something,
                `E-RL-02` if it gave no finite number; each names the row and the function.
        """
        where = f"row {sample.id}, reward {self.name} ({self.source})"
        reads = {name: getattr(sample, name) for name in self.reads}
        if "gold" in reads and sample.gold is None:
            raise NexusError("E-DAT-31", "the row has no gold answer", where=where, remedy=_GOLD)
        try:
            value = self.function(**reads, **self.options)
        except NexusError as error:
            raise NexusError(
                error.code, error.message, where=where, remedy=error.remedy, status=error.status
            ) from error
        except Exception as error:
            raise NexusError(
                "E-RL-04",
                f"the reward function raised {type(error).__name__}: {error}",
                where=f"{where}, {_place_of(error)}",
                remedy="mend the function, or let it return a number for such a completion",
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise NexusError(
                "E-RL-02",
                f"the reward function gave {value!r}, which is no finite number",
                where=where,
                remedy="it must return a float for every completion",
            )
        return float(value)


@dataclass(frozen=True)
class Rewards:
    """All rewards of a capability.

    Attributes:
        functions: at least one, in the order of the configuration.
    """

    functions: tuple[RewardFunction, ...]

    def score(self, samples: Sequence[Sample]) -> list[Rewarded]:
        """What every completion earned.

        Args:
            samples: completions; those of one group need not stand together.

        Returns:
            One entry for each, in order.

        Raises:
            NexusError: as `RewardFunction.__call__`.
        """
        found = []
        for sample in samples:
            components = {reward.name: reward(sample) for reward in self.functions}
            total = math.fsum(reward.weight * components[reward.name] for reward in self.functions)
            found.append(Rewarded(total, components))
        return found


def means(rewarded: Sequence[Rewarded]) -> dict[str, float]:
    """Means by log key: `reward/mean` of the totals, and `reward/NAME` of every component without its weight.

    Args:
        rewarded: at least one result.

    Returns:
        Values for the log.

    Raises:
        ValueError: there is none.
    """
    if not rewarded:
        raise ValueError("no completion was rewarded")
    totals = {"reward/mean": math.fsum(one.total for one in rewarded) / len(rewarded)}
    return totals | {
        f"reward/{name}": math.fsum(one.components[name] for one in rewarded) / len(rewarded)
        for name in rewarded[0].components
    }


def build_rewards(settings: Mapping[str, Mapping[str, Any]]) -> Rewards:
    """The rewards of a capability, loaded, checked and ready.

    Args:
        settings: `capabilities.NAME.rewards`: by name `function`, `weight` and `options`.

    Returns:
        The rewards.

    Raises:
        NexusError: `E-RL-05` for a function that cannot be used, `E-MIS-05` if its file is not there, `E-SEC-05` if
            one of them runs code and no sandbox can be had, `E-CFG-09` if there is no reward at all.
    """
    if not settings:
        raise NexusError("E-CFG-09", "there is nothing to reward", remedy="name a reward, for example reward=answer")
    functions = []
    for name, entry in settings.items():
        source = str(entry["function"])
        function = BUILT_IN[source] if source in BUILT_IN else load_function(source)
        functions.append(RewardFunction(name, function, float(entry["weight"]), dict(entry["options"]), source))
        if source in PREPARE:
            PREPARE[source](**entry["options"])
    return Rewards(tuple(functions))


def reward_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the rewards of the chosen capabilities, as far as settings show it; no file is run.

    Args:
        config: resolved, plain containers; its shape is right.

    Yields:
        Problems with their dotted keys.
    """
    for capability, entry in config["capabilities"].items():
        if entry["status"] == "ready":
            for name, reward in entry["rewards"].items():
                yield from _problems(reward, f"capabilities.{capability}.rewards.{name}")


def _problems(reward: Mapping[str, Any], key: str) -> Iterator[Problem]:
    source = str(reward["function"])
    if source not in BUILT_IN:
        file, colon, function = source.rpartition(":")
        if not colon or not file.endswith(".py") or not function.isidentifier():
            near = nearest(source, list(BUILT_IN))
            hint = f"did you mean {near}? there is" if near else "there is"
            remedy = f"{hint} {', '.join(BUILT_IN)}; your own is path/to/file.py:function"
            yield Problem("E-CFG-01", f"{key}.function", f"= {source!r}: there is no such reward", remedy)
        elif not Path(file).expanduser().is_file():
            yield Problem(
                "E-MIS-05",
                f"{key}.function",
                f"= {source!r}: there is no such file",
                "paths are relative to the folder in which the command runs",
            )
        return
    options, known = reward["options"], _option_kinds(BUILT_IN[source])
    for name, value in options.items():
        if name in known:
            yield from check_value(value, known[name], f"{key}.options.{name}")
        else:
            near = nearest(str(name), list(known))
            remedy = f"did you mean {near}?" if near else f"{source} has {', '.join(known) or 'none'}"
            yield Problem("E-CFG-01", f"{key}.options.{name}", "there is no such option", remedy)
    for name in known:
        if name not in options:
            yield Problem(
                "E-CFG-07", f"{key}.options.{name}", "the option is missing", f"see conf/reward/{source}.yaml"
            )


def _parameters(function: Function) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _option_kinds(function: Function) -> dict[str, Any]:
    """Annotations of a function's options, with their ranges."""
    hints = get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in _parameters(function) if name not in READABLE}


def signature_problem(function: Function, options: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called with what a sample has and these options.

    Args:
        function: any callable.
        options: arguments besides what it reads.

    Returns:
        The rest of a sentence that begins with the function's name; None if all is well.
    """
    try:
        parameters = _parameters(function)
    except (TypeError, ValueError) as error:
        return f"has no readable signature ({error})"
    kinds = inspect.Parameter
    for name, parameter in parameters.items():
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.VAR_POSITIONAL):
            return f"takes {name!r} by position only"
        optional = parameter.default is not kinds.empty or parameter.kind is kinds.VAR_KEYWORD
        if name not in READABLE and name not in options and not optional:
            return f"needs {name!r}, which is neither one of {', '.join(READABLE)} nor among its options"
    if not {"completion", "num_tokens", "turns"} & set(parameters):
        return "reads neither completion nor num_tokens nor turns"
    if not any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values()):
        for name in options:
            if name not in parameters:
                return f"has no option {name!r}"
    twice = sorted(set(options) & set(READABLE))
    return f"gets {twice[0]!r} from the sample, it is no option" if twice else None


_SIGNATURE = (
    f"write def reward(completion, gold, prompt, *, my_option): -> float; it may name any of {', '.join(READABLE)}"
)
_GOLD = "a right answer must travel with every prompt that is rewarded; add it, or leave this reward out"


def _place_of(error: Exception) -> str:
    """File and line where a function failed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"
