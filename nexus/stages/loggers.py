"""Loggers that run beside `metrics.csv`: TensorBoard, Weights & Biases, or any other of Lightning's.

`callbacks.metrics_csv` hands each of them the numbers of a logging step, in one call. Here stands the rest: what they
need, where they write, the settings without secrets, the scores, and their end.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.config.build import instantiate_node
from nexus.config.targets import signature_of
from nexus.errors import NexusError, Problem
from nexus.storage.redaction import is_secret_key, redact, redact_text

#: Packages that a logger of Lightning needs, by its class; one of them is enough.
_NEEDS = {
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "WandbLogger": ("wandb",),
    "CometLogger": ("comet_ml",),
    "LitLogger": ("litlogger",),
    "MLFlowLogger": ("mlflow", "mlflow_skinny"),
}


def logger_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Loggers whose package is not installed; nothing is imported to know it.

    Args:
        config: resolved, plain containers.

    Returns:
        `E-DEP-04` for each.
    """
    problems = []
    for name, node in config["logger"].items():
        packages = () if node is None else _NEEDS.get(_kind(node), ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            message = f"{_kind(node)} needs the package {packages[0]}, which is not installed"
            remedy = f"pip install {packages[0]}, or leave this logger out; metrics.csv is always written"
            problems.append(Problem("E-DEP-04", f"logger.{name}", message, remedy))
    return problems


def start_loggers(config: Mapping[str, Any], folder: Path, *, step: int) -> list[Any]:
    """Make the loggers of a run and tell them its settings.

    Args:
        config: checked and resolved, plain containers.
        folder: the run folder; loggers write inside it unless their `save_dir` says otherwise.
        step: optimizer steps that were done before, 0 for a new run. What was logged after it is hidden where the
            logger can do so; Weights & Biases goes on under the same id.

    Returns:
        Lightning loggers, ready to log.

    Raises:
        NexusError: `E-DEP-05` if one cannot start.
    """
    started: list[Any] = []
    for name, node in config["logger"].items():
        if node is None:
            continue
        try:
            logger = instantiate_node(_without_secrets(node), **_from_run(node, folder, step))
            _ = logger.experiment  # the library itself starts here, not before
            logger.log_hyperparams(redact(dict(config)))
        except NexusError:
            end_loggers(started, failed=True)
            raise
        except Exception as error:  # whatever the library raises: it is an option, and the user chose it
            end_loggers(started, failed=True)
            raise NexusError(
                "E-DEP-05",
                f"the logger could not start: {redact_text(str(error)) or type(error).__name__}",
                where=f"logger.{name}",
                remedy="mend its settings or leave it out" + _online_remedy(node),
            ) from error
        started.append(logger)
    return started


def log_scores(
    loggers: Sequence[Any], when: str, scores: Mapping[str, Mapping[str, Mapping[str, Any]]], *, step: int
) -> None:
    """Hand on the held-out scores; Weights & Biases takes last values as its summary by itself.

    Args:
        loggers: of the run.
        when: `before` or `after`.
        scores: plain scores by group and metric.
        step: optimizer steps done.
    """
    values = {
        f"scores/{when}/{group}/{metric}": float(score["value"])
        for group, metrics in scores.items()
        for metric, score in metrics.items()
    }
    for logger in loggers if values else ():
        logger.log_metrics(values, step=step)


def end_loggers(loggers: list[Any], *, failed: bool) -> None:
    """Flush and close; a second call does nothing.

    Args:
        loggers: of the run; emptied.
        failed: True if the run did not come to its end.
    """
    while loggers:
        logger = loggers.pop()
        logger.finalize("failed" if failed else "success")
        if type(logger).__name__ == "WandbLogger":
            # Lightning leaves this run open, and the next job of a sweep would write into it
            logger.experiment.finish(exit_code=int(failed))


def _kind(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _from_run(node: Mapping[str, Any], folder: Path, step: int) -> dict[str, Any]:
    """What only the run knows: its folder, its name, and where a resumed run takes up."""
    given: dict[str, Any] = {}
    signature = signature_of(node["_target_"])
    if signature is not None and "save_dir" in signature.names and "save_dir" not in node:
        given["save_dir"] = str(folder)
    if _kind(node) == "TensorBoardLogger" and step:
        given["purge_step"] = step + 1
    if _kind(node) == "WandbLogger":
        given |= {} if "name" in node else {"name": folder.name}
        earlier = sorted((folder / "wandb").glob("*run-*-*"))
        if earlier and not {"id", "version"} & set(node):
            given["id"] = earlier[-1].name.rpartition("-")[2]
    return given


def _without_secrets(value: Any) -> Any:
    """The node without secrets where they do not belong, as in a note; the keys of its own service it may have."""
    if isinstance(value, Mapping):
        return {k: v if is_secret_key(str(k)) else _without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_secrets(entry) for entry in value]
    return redact_text(value) if isinstance(value, str) else value


def _online_remedy(node: Mapping[str, Any]) -> str:
    online = _kind(node) == "WandbLogger" and not node.get("offline", False)
    return "; offline=true writes into the run folder alone" if online else ""
