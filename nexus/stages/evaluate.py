"""Scores a package or a base model on capabilities or on the user's own rows, without training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.config.check import config_sha256
from nexus.data.mixture import content
from nexus.data.module import NexusDataModule
from nexus.data.token_rows import TokenRows, flat_rows
from nexus.hardware.processor import use_processor
from nexus.models.value_head import completion_rewards
from nexus.stages import assemble, planning
from nexus.stages.held_out_prompts import held_out_prompts
from nexus.stages.prepare import Prepared
from nexus.stages.report import plain_scores, print_measured, provenance
from nexus.stages.scoring import score_model
from nexus.stages.tables import open_console
from nexus.stages.tracker import Tracker
from nexus.storage.atomic import write_json
from nexus.types import Example


def evaluate(config: dict[str, Any], prepared: Prepared, output: Path | None) -> dict[str, Any]:
    """Measure and print; write the scores too if a file is named.

    Args:
        config: checked and resolved, plain containers.
        prepared: facts, tokenizer and corpus, whose held-out rows are read here.
        output: JSON file for the scores, or None.

    Returns:
        Plain scores by group and metric.

    Raises:
        NexusError: if the package, the base model or the rows cannot be used.
    """
    console = open_console()
    use_processor(config["hardware"]["threads"])
    answers = planning.answers_prompts(config)
    prompts = held_out_prompts(config, prepared, tell=lambda line: console.print(line, highlight=False))
    prepared.corpus.setup("test")
    prepared.corpus.keep()
    model = (assemble.load_for_inference if answers else assemble.load_reward_for_inference)(config)
    scoring = score_model(
        model=model,
        tokenizer=prepared.tokenizer,
        capabilities=config["capabilities"],
        prompts=prompts,
        held_out=NexusDataModule(prepared.corpus).held_out_batches(),
        batch_size=config["evaluation"]["batch_size"],
        tell=lambda line: console.print(line, highlight=False, soft_wrap=True),
        rewards=None if answers else lambda batch: completion_rewards(model, model.score, batch),
    )
    scores = plain_scores(scoring.scores)
    print_measured(console, scores, model=config["base_model"]["name"])
    origin = provenance(
        config_sha256=config_sha256(config),
        data_sha256=scored_sha256(flat_rows(prepared.corpus.held_out_rows), prompts),
        device=assemble.device_of(config)[0].label,
    )
    tracker = Tracker(config, None, origin)
    tracker.scoring("evaluate", scores, scoring.speeds)
    tracker.answers(scoring.answers, scoring.speeds, "")
    if output is not None:
        write_json(output, {"model": config["base_model"]["path"], "scores": scores})
        console.print(f"scores  {output}", highlight=False, soft_wrap=True)
    return scores


def scored_sha256(held_out: TokenRows, prompts: Mapping[str, Sequence[Example]]) -> str:
    """Hash of all that was scored.

    Args:
        held_out: rows of tokens.
        prompts: held-out prompts with gold answers by capability.

    Returns:
        That of the held-out rows alone (`TokenRows.sha256`) where there are no prompts, else one over both.
    """
    if not prompts:
        return held_out.sha256()
    digest = hashlib.sha256(held_out.sha256().encode())
    for name, examples in sorted(prompts.items()):
        for example in examples:
            digest.update(f"\n{name} {example.id} {content(example)}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
