"""`report.json`, `loss.png` and the tables that a run ends with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nexus.stages.scoring import Scores
from nexus.stages.tables import print_table

_PACKAGES = ("torch", "lightning", "transformers", "peft", "hydra-core", "tokenizers", "safetensors")


def provenance(*, config_sha256: str, data_sha256: str, device: str) -> dict[str, Any]:
    """Where the numbers of a report come from.

    Args:
        config_sha256: hash of the resolved config.
        data_sha256: hash of the training tokens.
        device: name of the device.

    Returns:
        Plain containers for `report.json`.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "git_commit": git_commit(),
        "config_sha256": config_sha256,
        "data_sha256": data_sha256,
        "versions": {"python": platform.python_version(), **versions},
        "device": device,
    }


def git_commit() -> str | None:
    """Commit of the checkout that Nexus runs from, `-dirty` if files differ; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None  # a checkout without git at hand has no commit to name; the report says null
    return described.stdout.strip()


def plain_scores(scores: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores as plain containers."""
    return {group: {name: score.as_dict() for name, score in metrics.items()} for group, metrics in scores.items()}


def print_scores(
    console: Console,
    before: Mapping[str, Mapping[str, Mapping[str, Any]]],
    after: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    cold_start: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> None:
    """The table of a training run: every metric before and after, with intervals, and between them after a cold start.

    Args:
        console: where to print.
        before: plain scores; may lack groups.
        after: plain scores.
        cold_start: plain scores between the two; None if there was none.
    """
    if not any(after.values()):
        line = (
            "nothing was scored: no row is held out (data.validation_fraction, of the rows that differ), or "
            "evaluation.after is false"
        )
        console.print(line, highlight=False, soft_wrap=True)
        return
    between = ("cold start",) if cold_start is not None else ()
    rows = []
    for group, metrics in after.items():
        for metric, score in metrics.items():
            earlier = before.get(group, {}).get(metric)
            middle = [format_score(cold_start.get(group, {}).get(metric))] if cold_start is not None else []
            rows.append([group, metric, format_score(earlier), *middle, format_score(score), str(score["n"])])
    headers = ("group", "metric", "before", *between, "after", "n")
    print_table(console, title="held-out scores (95 % interval)", headers=headers, rows=rows, keys=2)


def print_measured(console: Console, scores: Mapping[str, Mapping[str, Mapping[str, Any]]], *, model: str) -> None:
    """The table of an evaluation: every metric of one model, with its interval.

    Args:
        console: where to print.
        scores: plain scores.
        model: what was measured.
    """
    rows = [
        [group, metric, format_score(score), str(score["n"])]
        for group, metrics in scores.items()
        for metric, score in metrics.items()
    ]
    headers = ("group", "metric", "score", "n")
    print_table(console, title=f"{model} (95 % interval)", headers=headers, rows=rows, keys=2)


def format_score(score: Mapping[str, Any] | None) -> str:
    """`0.912 [0.880, 0.937]`, `1.234 (one row, no interval)`, or a dash if it was not measured."""
    if score is None:
        return "-"
    if score["ci95"] is None:
        return f"{score['value']:.3f} (one row, no interval)"
    low, high = score["ci95"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"


def plot_loss(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Training loss over steps, one line per run, and the held-out loss dashed where it was measured.

    Args:
        path: PNG to write.
        curves: rows of `metrics.csv` by name of the run.
    """
    from matplotlib.figure import Figure

    from nexus.callbacks.metrics_csv import VALIDATION_LOSS

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in curves.items():
        points = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
        (line,) = axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.2)
        held_out = [(row["step"], row[VALIDATION_LOSS]) for row in rows if VALIDATION_LOSS in row]
        if held_out:
            look = {"color": line.get_color(), "linestyle": "--", "marker": ".", "linewidth": 1.0}
            axes.plot([x for x, _ in held_out], [y for _, y in held_out], label=f"{name}, held out", **look)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss" if len(axes.lines) > len(curves) else "training loss")
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
