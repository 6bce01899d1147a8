"""What a phase gained, prompt by prompt: the paired bootstrap over the answers before and after it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.evaluation.statistics import paired_bootstrap
from nexus.evaluation.suites import SUITES, best_value
from nexus.storage.atomic import write_text
from nexus.storage.run_folder import edited

Answers = Sequence[Mapping[str, Any]]


def write_answers(path: Path, answers: Answers) -> None:
    """Keep the answers of a scoring, one JSON object a line.

    Args:
        path: the file.
        answers: plain rows.
    """
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers))


def read_answers(path: Path) -> list[dict[str, Any]]:
    """What `write_answers` kept; nothing if there is no file, `E-RUN-03` if it is something else."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise edited(path, str(error)) from error


def paired_gains(
    earlier: Answers, later: Answers, capabilities: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Difference of each capability's primary metric, and of those that its suite compares too, on the same prompts.

    Args:
        earlier: answers of the first scoring.
        later: of the second one.
        capabilities: settings by name.

    Returns:
        By capability, and by `NAME/METRIC` for a metric beside the primary one: `metric`, `difference`, `ci95`,
        `p_value`, `n` and `lower_is_better`; only those that both scorings have.
    """
    gains = {}
    for name, metric, suite in _compared(capabilities):
        sides = [
            {row["id"]: float(row[metric]) for row in rows if row["capability"] == name and metric in row}
            for rows in (earlier, later)
        ]
        shared = [key for key in sides[0] if key in sides[1]]
        if shared:
            test = paired_bootstrap([sides[0][key] for key in shared], [sides[1][key] for key in shared])
            primary = metric == capabilities[name]["primary_metric"]
            gains[name if primary else f"{name}/{metric}"] = {
                "metric": metric,
                "difference": test.difference,
                "ci95": list(test.ci95),
                "p_value": test.p_value,
                "n": test.n,
                "lower_is_better": best_value(suite, metric) == 0.0,
            }
    return gains


def _compared(capabilities: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Capability, metric and suite of everything that is compared, the primary metric first."""
    for name, entry in capabilities.items():
        suite, primary = entry["metrics"], entry["primary_metric"]
        others = SUITES[suite].compared if suite in SUITES else ()
        for metric in (primary, *(other for other in others if other != primary)):
            yield name, metric, suite
