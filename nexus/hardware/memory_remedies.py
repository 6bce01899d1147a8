"""Which overrides make a run fit: every suggestion is a plan that was made again and did fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

from nexus.errors import Problem
from nexus.hardware.memory_parts import Storage
from nexus.hardware.memory_plan import MemoryPlan, MemorySettings, format_bytes, plan_memory
from nexus.types import ModelFacts

#: What an out-of-memory message advises, where no plan can say by how much.
KNOBS = (
    "what helps most: hardware.gradient_checkpointing (more time), adapter=qlora or lora (fewer trained weights), a "
    "lower data.max_seq_len (shorter rows)"
)

_MOST = 3  # suggestions
_STEP = 64  # tokens
_SHORTEST_ROW = 256


@dataclass(frozen=True)
class Offer:
    """An adapter that could be chosen.

    Attributes:
        rank: its rank.
        parameters: weights that it adds to this model.
    """

    rank: int
    parameters: int


@dataclass(frozen=True)
class Options:
    """What this run could choose instead of what it chose.

    Attributes:
        adapters: adapters that could be chosen, by name.
        optimizers: options of the group `optimizer`.
        checkpointing: values of `hardware.gradient_checkpointing` and what they mean to the plan (`on`, `offload`).
    """

    adapters: Mapping[str, Offer]
    optimizers: frozenset[str]
    checkpointing: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """One override and what it does to the plan's settings.

    Attributes:
        group: of two changes of one group only one can be chosen.
        override: as it is typed.
        apply: the settings with it; None if it would change nothing.
    """

    group: str
    override: str
    apply: Callable[[MemorySettings], MemorySettings | None]


def memory_problem(plan: MemoryPlan, *, limit_bytes: int, limit_key: str, options: Options) -> Problem | None:
    """Whether a plan fits, and if not, what to change.

    Args:
        plan: the result of `plan_memory`.
        limit_bytes: what may be used.
        limit_key: dotted key of the setting behind the limit.
        options: what else could be chosen.

    Returns:
        None if it fits, else E-MEM-01 with the overrides that make it fit, the fewest and mildest first.
    """
    if plan.total_bytes <= limit_bytes:
        return None
    phase = plan.peak
    biggest = max(phase.items, key=lambda item: item.num_bytes)
    overhead = plan.settings.overhead_bytes
    if overhead >= limit_bytes:
        return Problem(
            "E-MEM-01",
            limit_key,
            f"the limit is {format_bytes(limit_bytes)}, and {format_bytes(overhead)} go to what is not tensors: the "
            "interpreter and its libraries, or a device's context (hardware.overhead_gib)",
            f"raise {limit_key} to {format_bytes(plan.total_bytes)} or more",
        )
    found = remedies(plan, limit_bytes=limit_bytes, options=options)
    return Problem(
        "E-MEM-01",
        limit_key,
        f"the run needs {format_bytes(plan.total_bytes)}, the limit is {format_bytes(limit_bytes)}; most goes to "
        f"{biggest.name} in phase {phase.name} ({format_bytes(biggest.num_bytes)}: {biggest.reason})",
        "; or ".join(found) if found else "choose a smaller base_model",
    )


def remedies(plan: MemoryPlan, *, limit_bytes: int, options: Options) -> list[str]:
    """Sets of overrides with which the run fits.

    Args:
        plan: one that does not fit.
        limit_bytes: what may be used.
        options: what else could be chosen.

    Returns:
        At most three, none containing another; smallest sets first, within a size those that change the result least.
    """
    found: list[tuple[frozenset[str], str]] = []
    for settings, changes in _candidates(plan.settings, options):
        names = frozenset(change.group for change in changes)
        if any(earlier <= names for earlier, _ in found):
            continue
        words = _fitting(plan, settings, [change.override for change in changes], limit_bytes)
        if words is not None:
            found.append((names, words))
        if len(found) == _MOST:
            break
    return [words for _, words in found]


def _candidates(settings: MemorySettings, options: Options) -> Iterator[tuple[MemorySettings, list[Change]]]:
    """Every choice of up to four changes, applied."""
    changes = _changes(options)
    for size in range(1, 5):
        for chosen in combinations(changes, size):
            if len({change.group for change in chosen}) < size:
                continue
            made: MemorySettings | None = settings
            for change in chosen:
                made = None if made is None else change.apply(made)
            if made is not None:
                yield made, list(chosen)


def _changes(options: Options) -> list[Change]:
    """What can be changed, mildest for the result first; the first three leave it (nearly) as it is."""
    changes = [Change("micro_batch", "hardware.micro_batch_tokens", _smaller_micro_batch)]
    changes += [
        Change("checkpointing", f"hardware.gradient_checkpointing={value}", partial(_checkpoint, how=how))
        for value, how in options.checkpointing.items()
    ]
    changes.append(Change("scoring", "evaluation.batch_size", _fewer_answers))
    if "adamw_8bit" in options.optimizers:
        changes.append(Change("optimizer", "optimizer=adamw_8bit", _eight_bit))
    changes += [
        Change("adapter", f"adapter={name}", partial(_adapt, name=name, offer=options.adapters[name]))
        for name in ("lora", "qlora")
        if name in options.adapters
    ]
    changes.append(Change("length", "data.max_seq_len", _shorter_rows))
    return changes


def _smaller_micro_batch(settings: MemorySettings) -> MemorySettings | None:
    smallest = max(settings.longest_row, _STEP)
    if settings.micro_batch_tokens <= smallest:
        return None
    return _with_tokens(replace(settings, several_micro_batches=True), smallest)


def _with_tokens(settings: MemorySettings, tokens: int) -> MemorySettings:
    learned = settings.target_tokens * tokens // max(1, settings.micro_batch_tokens)
    return replace(settings, micro_batch_tokens=tokens, target_tokens=max(1, learned))


def _checkpoint(settings: MemorySettings, *, how: str) -> MemorySettings | None:
    better = settings.checkpointing == "off" or (settings.checkpointing == "on" and how == "offload")
    if not better or (how == "offload" and not settings.on_gpu):
        return None
    return replace(settings, checkpointing=how)


def _fewer_answers(settings: MemorySettings) -> MemorySettings | None:
    return replace(settings, score_rows=1) if settings.score_rows > 1 else None


def _eight_bit(settings: MemorySettings) -> MemorySettings | None:
    return replace(settings, optimizer="adamw_8bit") if settings.optimizer in ("adamw", "muon") else None


def _adapt(settings: MemorySettings, *, name: str, offer: Offer) -> MemorySettings | None:
    plain_already = name == "lora" and not settings.dora
    if not settings.trains_base and (plain_already or settings.storage not in ("fp32", "bf16")):
        return None
    plain: Storage = "bf16" if settings.precision == "bf16" else "fp32"
    return replace(
        settings,
        trains_base=False,
        storage="nf4" if name == "qlora" else plain,
        # a rank that was typed stays; the larger one is on the safe side
        adapter_parameters=max(settings.adapter_parameters, offer.parameters),
        adapter_rank=max(settings.adapter_rank, offer.rank),
        dora=False,
    )


def _shorter_rows(settings: MemorySettings) -> MemorySettings | None:
    return _with_row(settings, _SHORTEST_ROW) if settings.longest_row > _SHORTEST_ROW else None


def _with_row(settings: MemorySettings, tokens: int) -> MemorySettings:
    """Rows of at most `tokens`; a micro-batch of one row shrinks with it."""
    alone = settings.micro_batch_tokens <= settings.longest_row
    at_least = tokens if alone else max(tokens, settings.micro_batch_tokens)
    return _with_tokens(replace(settings, longest_row=tokens), at_least)


def _fits(facts: ModelFacts, settings: MemorySettings, limit_bytes: int) -> bool:
    return plan_memory(facts, settings).total_bytes <= limit_bytes


def _fitting(plan: MemoryPlan, settings: MemorySettings, overrides: list[str], limit_bytes: int) -> str | None:
    """The overrides with the largest numbers that fit; None if even the smallest do not."""
    numbers: dict[str, tuple[int, int, int, Callable[[MemorySettings, int], MemorySettings]]] = {
        # smallest (in `settings` already), step, largest, and how a number is applied
        "data.max_seq_len": (settings.longest_row, _STEP, plan.settings.longest_row, _with_row),
        "hardware.micro_batch_tokens": (
            settings.micro_batch_tokens, _STEP, plan.settings.micro_batch_tokens, _with_tokens,
        ),
        "evaluation.batch_size": (1, 1, plan.settings.score_rows, lambda s, n: replace(s, score_rows=n)),
    }  # fmt: skip
    if not _fits(plan.facts, settings, limit_bytes):
        return None
    words = []
    for override in overrides:
        if override not in numbers:
            words.append(override)
            continue
        number, step, most, put = numbers[override]
        stride = step
        while stride >= step:  # doubling strides up, halving strides back; the plan grows with the number
            larger = number + stride
            if larger <= most and _fits(plan.facts, put(settings, larger), limit_bytes):
                number, stride = larger, stride * 2
            else:
                stride //= 2
        settings = put(settings, number)
        words.append(f"{override}={number}" + (" data.long_rows=truncate" if override == "data.max_seq_len" else ""))
    return " ".join(words)
