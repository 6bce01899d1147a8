"""One run: score, train, score, package, report."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nexus.callbacks.checkpoint import checkpoints
from nexus.callbacks.metrics_csv import read_metrics
from nexus.config.check import config_sha256, config_yaml
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.hardware.usage import peak_memory_bytes
from nexus.methods.base import Method
from nexus.packaging.card import model_card
from nexus.packaging.pack import PackageInfo, write_package
from nexus.stages import assemble
from nexus.stages.report import plain_scores, plot_loss, print_scores, provenance
from nexus.stages.scoring import Scoring, score_model
from nexus.storage.atomic import write_json, write_text
from nexus.storage.locks import RunLock

_PROBE_TOKENS = 32
_LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # relative to the largest logit; merging rounds once more


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        report: what `report.json` holds.
    """

    folder: Path
    report: dict[str, Any]


def train(config: dict[str, Any], folder: Path, *, resume: bool) -> RunResult:
    """Score the base, train, score again, package, and report.

    Args:
        config: checked and resolved, plain containers.
        folder: the run folder; new and empty but for the lock, unless `resume`.
        resume: continue from the newest checkpoint in `folder`.

    Returns:
        The folder and its report.

    Raises:
        NexusError: whatever a user can mend; the folder then says `failed` in `status.json`.
    """
    console = Console()
    _quiet_libraries()
    with RunLock(folder):
        write_text(folder / "config.yaml", config_yaml(config))
        try:
            return _train(config, folder, resume, console)
        except BaseException as error:
            _write_status(folder, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
            raise


def _train(config: dict[str, Any], folder: Path, resume: bool, console: Console) -> RunResult:
    started = time.perf_counter()
    if config["hardware"]["threads"]:
        torch.set_num_threads(config["hardware"]["threads"])
    torch.manual_seed(config["seed"])
    _write_status(folder, "preparing")
    console.print(f"run folder {folder}", highlight=False)
    tokenizer = assemble.make_tokenizer(config)
    data = assemble.make_data(config, tokenizer)
    data.setup("fit")
    console.print(data.describe(), highlight=False)
    method = assemble.make_method(config, total_steps=data.num_steps)
    method.configure_model()
    before = _score_before(config, folder, method, data, tokenizer, console)
    seconds = _fit(config, folder, method, data, tokenizer, resume)
    after = Scoring()
    if config["evaluation"]["after"]:
        _write_status(folder, "scoring")
        after = _score(config, method, data, tokenizer, console)
        _write_answers(folder, after)
    report: dict[str, Any] = {
        "status": "finished",
        "scores": {"before": before, "after": plain_scores(after.scores)},
        "train": _train_section(config, folder, method, seconds),
        "data": data.summary(),
        "package": None,
        "provenance": provenance(
            config_sha256=config_sha256(config), data_sha256=data.data_sha256, device=assemble.device_of(config)[0].label
        ),
    }
    if config["package"]["enabled"]:
        _write_status(folder, "packaging")
        package = _package(config, folder, method, data, tokenizer, report)
        report["package"] = {
            "path": str(package.path.relative_to(folder)),
            "sha256": package.sha256,
            "bytes": package.num_bytes,
            "max_logit_difference": package.max_logit_difference,
        }
    report["seconds"] = round(time.perf_counter() - started, 1)
    write_json(folder / "report.json", report)
    plot_loss(folder / "loss.png", {"train": read_metrics(folder / "metrics.csv")})
    _write_status(folder, "finished")
    _print_end(console, folder, report)
    return RunResult(folder, report)


def _score_before(
    config: dict[str, Any], folder: Path, method: Method, data: NexusDataModule, tokenizer: Any, console: Console
) -> dict[str, Any]:
    """Scores of the base; a resumed run has them already, and its model is the base until the checkpoint is loaded."""
    stored = folder / "scores_before.json"
    if stored.exists():
        kept: dict[str, Any] = json.loads(stored.read_text())
        return kept
    if not config["evaluation"]["before"]:
        return {}
    _write_status(folder, "scoring the base")
    scores = plain_scores(_score(config, method, data, tokenizer, console).scores)
    write_json(stored, scores)
    return scores


def _score(
    config: dict[str, Any], method: Method, data: NexusDataModule, tokenizer: Any, console: Console
) -> Scoring:
    """Measure the model as it is now."""
    console.print("scoring", highlight=False)
    scoring = score_model(
        model=method.policy,
        tokenizer=tokenizer,
        capabilities=config["capabilities"],
        prompts={name: data.eval_prompts(name) for name in config["capabilities"]},
        held_out=data.held_out_batches(),
        batch_size=config["evaluation"]["batch_size"],
        tell=lambda line: console.print(line, highlight=False),
    )
    for group, metrics in scoring.scores.items():
        values = "  ".join(f"{name} {score.value:.3f}" for name, score in metrics.items())
        console.print(f"  {group}: {values}  ({scoring.seconds:.1f} s)", highlight=False)
    return scoring


def _fit(
    config: dict[str, Any], folder: Path, method: Method, data: NexusDataModule, tokenizer: Any, resume: bool
) -> float:
    """Train, from the newest checkpoint if there is one to resume; returns the seconds that it took."""
    callbacks = assemble.make_callbacks(config, folder, data, tokenizer)
    trainer = assemble.make_trainer(config, folder, callbacks, data.num_steps)
    found = checkpoints(folder / "checkpoints") if resume else []
    _write_status(folder, "training", f"from step {found[-1][0]}" if found else "")
    started = time.perf_counter()
    method.train()
    trainer.fit(
        method,
        train_dataloaders=data.train_dataloader(),
        ckpt_path=str(found[-1][1]) if found else None,
        weights_only=True,
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.global_step != data.num_steps:
        raise NexusError(
            "E-INT-01", f"training ended after {trainer.global_step} of {data.num_steps} steps", where=str(folder)
        )
    return time.perf_counter() - started


def _train_section(config: dict[str, Any], folder: Path, method: Method, seconds: float) -> dict[str, Any]:
    rows = read_metrics(folder / "metrics.csv")
    measured = [row for row in rows if row["step"] > 1]  # the first step pays for warming up
    total = rows[-1]["train/tokens"] - rows[0]["train/tokens"] if measured else rows[-1]["train/tokens"]
    span = rows[-1]["seconds"] - rows[0]["seconds"] if measured else rows[-1]["seconds"]
    return {
        "method": config["method"]["name"],
        "adapter": config["adapter"]["name"],
        "global_step": int(rows[-1]["step"]),
        "tokens": method.tokens_seen,
        "tokens_per_second": round(total / span, 1),
        "final_loss": rows[-1]["train/loss"],
        "trainable_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in method.parameters()),
        "peak_memory_bytes": peak_memory_bytes(),
        "seconds": round(seconds, 1),
        "seed": config["seed"],
    }


def _package(
    config: dict[str, Any],
    folder: Path,
    method: Method,
    data: NexusDataModule,
    tokenizer: Any,
    report: dict[str, Any],
) -> PackageInfo:
    """Write the package of the trained model."""
    base_name = config["base_model"]["name"]
    names = sorted(config["capabilities"])
    card = model_card(
        name="-".join([base_name, *names, config["method"]["name"]]),
        base_name=base_name,
        capabilities=names,
        method=config["method"]["name"],
        adapter=config["adapter"]["name"],
        scores=report["scores"],
        train=report["train"],
        sources=data.licences(),
    )
    dtype = str(next(method.policy.parameters()).dtype).removeprefix("torch.")
    return write_package(
        model=method.policy,
        tokenizer=tokenizer,
        folder=folder / "package",
        base_name=base_name,
        card=card,
        probe=data.probe(_PROBE_TOKENS),
        tolerance=_LOGIT_TOLERANCE[dtype],
    )


def _write_answers(folder: Path, scoring: Scoring) -> None:
    """Keep the answers behind the final scores."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scoring.answers)
    write_text(folder / "answers.jsonl", lines)


def _write_status(folder: Path, state: str, reason: str = "") -> None:
    write_json(folder / "status.json", {"state": state, "reason": reason, "pid": os.getpid()})


def _print_end(console: Console, folder: Path, report: dict[str, Any]) -> None:
    print_scores(console, report["scores"]["before"], report["scores"]["after"])
    train = report["train"]
    console.print(
        f"{train['global_step']} steps, {train['tokens']:,} tokens at {train['tokens_per_second']:,.0f} tokens/s, "
        f"{report['seconds']:.0f} s in all",
        highlight=False,
    )
    console.print(f"report   {folder / 'report.json'}", highlight=False, soft_wrap=True)
    if report["package"]:
        console.print(f"package  {folder / report['package']['path']}", highlight=False, soft_wrap=True)


def _quiet_libraries() -> None:
    """Silence hints that do not concern the user; warnings about his data or model stay."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for pattern in (".*does not have many workers.*", ".*`isinstance\\(treespec.*", ".*Trainer already configured.*"):
        warnings.filterwarnings("ignore", pattern)
