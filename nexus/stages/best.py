"""What validation while training came to, and ending a run with the weights of its best step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexus.callbacks.validation import Validation
from nexus.errors import NexusError
from nexus.methods.base import Method
from nexus.models.saved_state import folder_name


def validation_section(validation: Validation | None) -> dict[str, Any]:
    """The report's section; empty where nothing was measured while training.

    Args:
        validation: of the training that has ended.

    Returns:
        `{"validation": ...}`: best and last step with their losses, measurements and seconds, the rows of one
        measurement, and the step whose weights were scored and packaged.
    """
    if validation is None or validation.best is None or validation.last is None:
        return {}
    used = validation.best if validation.restore_best else validation.last
    return {"validation": validation.summary() | {"weights_of_step": used[0]}}


def restore_best(
    method: Method, validation: Validation | None, checkpoints: Path, *, tell: Callable[[str], None]
) -> None:
    """Put the weights of the best step in the place of the last one's, if that is what was asked for.

    Args:
        method: as training left it.
        validation: of the training that has ended; None without one.
        checkpoints: folder of the run's checkpoints.
        tell: takes one line.

    Raises:
        NexusError: `E-RES-04` if the checkpoint of the best step is damaged.
    """
    if validation is None or not validation.restore_best or validation.best is None or validation.last is None:
        return
    (step, loss), (last_step, last_loss) = validation.best, validation.last
    if step == last_step:
        tell(f"the last step, {step}, has the least held-out loss")
        return
    try:
        method.load_trained(checkpoints / folder_name(step))
    except NexusError as error:
        raise NexusError(
            error.code,
            error.message,
            where=error.where,
            remedy="callbacks.validation.restore_best: false in the run's config.yaml, then resume=RUN: the weights of "
            "the last step are scored and packaged",
        ) from error
    tell(
        f"weights of step {step}: their held-out loss {loss:.4f} was the least, that of the last step {last_step} is "
        f"{last_loss:.4f}"
    )
