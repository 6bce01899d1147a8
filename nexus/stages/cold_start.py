"""The cold start of reinforcement: a short supervised phase on the same capability. Imports no torch.

A policy that never earns a reward learns nothing from rewards, so it is first shown some right answers (DeepSeek-R1,
arXiv 2501.12948, section 2.3.1). It is a run of its own inside the run, with its own folder, settings and scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexus.data.mixture import smaller

#: Folder of the phase inside the run folder.
NAME = "cold_start"
#: Settings that say when the phase runs and on what, not how it trains.
_NOT_OF_THE_METHOD = ("when", "below", "rows")


def is_possible(config: Mapping[str, Any]) -> bool:
    """True if the run may begin with a cold start, so that its rows must be at hand.

    Args:
        config: checked and resolved.

    Returns:
        False for methods without one and for `when=never`.
    """
    return NAME in config["method"] and config["method"][NAME]["when"] != "never"


def is_wanted(config: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """True if the run begins with a cold start.

    Args:
        config: checked and resolved.
        before: plain scores of the base, by capability and metric.

    Returns:
        What `method.cold_start.when` says; `auto`: if the base scores below the threshold on one of the capabilities.
    """
    if not is_possible(config):
        return False
    settings = config["method"][NAME]
    if settings["when"] == "always":
        return True
    return any(
        before[name][entry["primary_metric"]]["value"] < settings["below"]
        for name, entry in config["capabilities"].items()
    )


def cold_start_config(config: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """The settings of the phase: the run's own, with another method on fewer rows.

    Args:
        config: checked and resolved, of the whole run.
        folder: of the whole run, once it is known.

    Returns:
        A config as `stages.prepare` and `stages.assemble` read it.
    """
    cold, scale, paths = config["method"][NAME], config["scale"], config["paths"]
    optimizer = config["method"]["optimizer"] | {"lr": cold["lr"]}
    if "weight_decay" in optimizer:
        optimizer |= {"weight_decay": cold["weight_decay"]}
    root = paths["checkpoint_dir"]
    return {
        **config,
        "method": {k: v for k, v in cold.items() if k not in _NOT_OF_THE_METHOD} | {"optimizer": optimizer},
        "scale": scale | {"rows_per_source": smaller(cold["rows"], scale["rows_per_source"])},
        "data": config["data"] | {"global_batch_size": scale["global_batch_size"] or cold["global_batch_size"]},
        "paths": paths | {"checkpoint_dir": str(Path(root) / folder.name) if root and folder else root},
    }
