"""`dry_run=true`: everything that is known before weights are read, and nothing written. Imports no torch."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from nexus.config.capabilities import own_entry
from nexus.config.check import config_yaml
from nexus.data.corpus import CorpusSample
from nexus.data.describe import sft_remarks
from nexus.data.encode import end_of_turn_ids
from nexus.data.masked_sample import show_sample
from nexus.data.mixture import count_steps
from nexus.hardware.memory_plan import MemoryPlan, format_bytes
from nexus.models.facts import is_here
from nexus.models.published import published_config, quantization
from nexus.stages import cold_start, planning
from nexus.stages.planning import Counts
from nexus.stages.prepare import SAMPLE_ROWS, base_facts, base_tensors, prepare, refuse_frozen_base
from nexus.stages.row_lengths import RowLengths, forward_tokens, lengths_of, longest_rows
from nexus.stages.tables import open_console
from nexus.stages.tracker import samples_seen
from nexus.storage.redaction import redact
from nexus.storage.run_folder import free_space_problem
from nexus.types import ModelFacts


def show(config: dict[str, Any]) -> None:
    """Print config, phases, one masked sample, counts and plans.

    Args:
        config: checked and resolved.

    Raises:
        NexusError: whatever the model's folder, the data or the plan shows to be wrong.
    """
    console, base_model = open_console(), config["base_model"]
    refuse_frozen_base(quantization(base_model["path"]), config["adapter"])
    facts = base_facts(base_model)
    tensors = base_tensors(base_model, facts)
    planning.refuse_hopeless(config, facts, tensors)
    source = base_model["tokenizer"] or base_model["path"]
    known = published_config(source) is not None and not is_here(source, base_model["revision"])
    sample: CorpusSample | None = None
    if not known:
        prepared = prepare(config)
        sample = prepared.corpus.sample(SAMPLE_ROWS)
    lengths = longest_rows(config) if sample is None else lengths_of(config, sample.rows)
    counts = planning.count_parameters(facts, config["adapter"], tensors)
    rows = card_rows(config) if sample is None else sample.total_rows
    plan = planning.memory_plan_of(config, facts, counts, lengths, num_rows=rows)
    planning.insist_on_fit(config, plan, tensors, limit_bytes=planning.memory_limit(config))
    # Printed only now: an error should not stand below a page of settings.
    console.print(Syntax(config_yaml(config, redact=redact), "yaml", background_color="default"))
    if sample is not None:
        show_sample(console, prepared.tokenizer, sample.rows[0], title="one row as the model sees it")
        if config["method"]["view"] == "sft":
            ends = end_of_turn_ids(prepared.tokenizer)
            for remark in sft_remarks(sample.flat, count_tokens=config["method"]["count_tokens"], ends=ends):
                _tell(console, f"{remark} (of the first rows)")
    console.rule("plan")
    if sample is None:
        _tell(
            console,
            f"{source} is not on this machine, and a dry run downloads nothing: the plan is made from its published "
            f"config.json, with rows of {lengths.longest:,} tokens, the most that data.max_seq_len allows",
        )
    steps = phase_steps(config, rows)
    _show_run(console, config, lengths, rows=rows, steps=steps)
    share = 100 * counts.trainable / (counts.total + counts.adapter)
    head = facts.hidden_size if config["method"]["name"] in planning.HEAD_METHODS else 0
    words = f", and {head:,} of a head with one output" if head else ""
    _tell(console, f"parameters: {counts.total:,}, trainable {counts.trainable:,} ({share:.2f} %){words}")
    _show_memory(console, config, plan)
    _show_cost(console, config, facts, counts, plan, lengths, rows=rows, steps=steps)
    _tell(console, "dry run: nothing was written")


def card_rows(config: dict[str, Any]) -> int | None:
    """Training rows as the dataset cards state them; None if own files or a card leave the number open."""
    if config["data"]["train"]:
        return None
    own = own_entry(config)  # the capabilities beside it are only scored
    learned = [entry for name, entry in config["capabilities"].items() if own in (None, name)]
    sources = [capability["sources"] for capability in learned] + [config["data"]["sources"]]
    cards = [card for named in sources for card in named.values() if "train" in card["roles"]]
    limit = config["scale"]["rows_per_source"]
    counts = [card["rows"] if limit is None else min(card["rows"] or limit, limit) for card in cards]
    if None in counts:
        return None
    total: int = sum(round(count * card["weight"]) for count, card in zip(counts, cards, strict=True))
    return 2 * total if config["method"]["view"] == "judged" else total


def phase_steps(config: dict[str, Any], rows: int | None) -> int | None:
    """Optimizer steps of a phase.

    Args:
        config: checked and resolved.
        rows: to learn from; None if that is not known.

    Returns:
        None if the number of rows decides and is not known.
    """
    method = config["method"]
    most: int | None = method["max_steps"] or config["scale"]["max_steps"]
    if rows is None:
        return most if method["epochs"] is None else None
    size = config["data"]["global_batch_size"]
    epochs = method["epochs"]
    if epochs is not None and "rollout" in method:
        epochs *= method["rollout"]["num_iterations"]
    steps: int = count_steps(rows, global_batch_size=size, epochs=epochs, max_steps=most)
    return steps


def _tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_run(
    console: Console, config: dict[str, Any], lengths: RowLengths, *, rows: int | None, steps: int | None
) -> None:
    method, adapter = config["method"]["name"], config["adapter"]["name"]
    many = "an unknown number of" if rows is None else f"about {rows:,}"
    batch = config["data"]["global_batch_size"]
    length = "steps" if steps is None else "1 step" if steps == 1 else f"{steps:,} steps"
    name, phases = "rows", 1
    if cold_start.is_possible(config):
        _tell(console, f"phase 1 of 2: cold start, {_cold_start_words(config)}")
        phases = 2
    if "rollout" in config["method"]:
        each = config["method"]["rollout"]["num_generations"]
        name = f"prompts with {each} answer{'s' if each > 1 else ''} each, together at most"
    _tell(
        console,
        f"phase {phases} of {phases}: method {method}, adapter {adapter}, view {config['method']['view']}: {many} "
        f"{name} of {lengths.mean:.0f} tokens, {length} of {batch if rows is None else min(batch, rows)} rows",
    )


def _cold_start_words(config: dict[str, Any]) -> str:
    """When the phase runs and how long it is at most."""
    phase = cold_start.cold_start_config(config)
    rows = card_rows(phase)
    steps = phase_steps(phase, rows)
    settings = config["method"]["cold_start"]
    condition = f" if the base scores below {settings['below']:g}" if settings["when"] == "auto" else ""
    many = "an unknown number of" if rows is None else f"about {rows:,}"
    return f"supervised{condition}: {many} rows" + (
        f", {steps:,} step{'s' * (steps != 1)}" if steps is not None else ""
    )


def _show_memory(console: Console, config: dict[str, Any], plan: MemoryPlan) -> None:
    table = Table()
    for header in ("phase", "memory", "size"):
        table.add_column(header, no_wrap=True)
    table.add_column("because")
    for row in plan.rows():
        table.add_row(*row)
    console.print(table)
    limit = planning.memory_limit(config)
    if limit is None:
        _tell(console, "limit: the device's free memory when the run starts (hardware.memory_gib sets another)")
    else:
        _tell(console, f"limit: {format_bytes(limit)} ({100 * plan.total_bytes / limit:.0f} % planned)")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"


def training_cost(
    config: dict[str, Any], facts: ModelFacts, counts: Counts, lengths: RowLengths, *, rows: int | None, steps: int
) -> tuple[float, float, float, str]:
    """What the steps of a method compute.

    Args:
        config: checked and resolved.
        facts: of the base model.
        counts: of its parameters.
        lengths: tokens of its rows.
        rows: to learn from; None if that is not known.
        steps: optimizer steps.

    Returns:
        Tokens with a backward pass, tokens with a forward pass alone, seconds, and what the seconds rest on.
    """
    batch = config["data"]["global_batch_size"]
    seen = steps * batch if rows is None else samples_seen(steps, num_rows=rows, batch=batch)
    tokens = seen * lengths.mean
    ahead = forward_tokens(config, lengths, rows=rows or 0, seen=seen)
    seconds, because = planning.training_seconds(config, facts, counts, tokens, reference_tokens=ahead)
    return tokens, ahead, seconds, because


def _show_cost(
    console: Console,
    config: dict[str, Any],
    facts: ModelFacts,
    counts: Counts,
    plan: MemoryPlan,
    lengths: RowLengths,
    *,
    rows: int | None,
    steps: int | None,
) -> None:
    disk = planning.disk_plan_of(config, facts, counts, plan, steps or 0)
    _tell(
        console,
        f"disk: at most {format_bytes(disk.total_bytes)} (checkpoints {format_bytes(disk.checkpoints)}, package "
        f"{format_bytes(disk.package)}, logs {format_bytes(disk.logs)})",
    )
    key, folder = planning.output_folder(config)
    short = free_space_problem(folder, needed_bytes=disk.total_bytes, key=key)
    if short is not None:
        _tell(console, f"{short.code}  {short.key}: {short.message} -- {short.remedy}")
    if steps is None:
        _tell(console, "time: not known, since the number of rows is not")
        return
    tokens, ahead, seconds, because = training_cost(config, facts, counts, lengths, rows=rows, steps=steps)
    reference = f" and {ahead:,.0f} forward only, for the reference" if ahead else ""
    if config["method"]["view"] == "judged":
        reference += " and the baseline"
    if "rollout" in config["method"]:
        because += "; sampling the answers and the cold start not counted; answers of full length assumed"
    _tell(console, f"time: about {_duration(seconds)} for {tokens:,.0f} tokens{reference} ({because})")
