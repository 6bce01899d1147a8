"""Which checkpoint a run goes on from, and in which of two modes.

`exact` ends with the weights of a run that was never interrupted, to the bit; so settings, rows, base weights, machine
and torch must be those of the checkpoint. `fast` keeps rows, order, seeds, steps and number format, and lets the
machine differ and the settings of `hardware` that say how a step is computed; weights then differ by what sums in
another order round, and by what dropout draws, which follows the micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from nexus.callbacks.checkpoint import newest_whole
from nexus.errors import NexusError
from nexus.hardware.probe import Device
from nexus.models.saved_state import read_origin

ResumeMode = Literal["exact", "fast"]
#: Beginning of the keys that say on what a checkpoint was computed.
_MACHINE = "machine."
#: What may differ in `fast` mode, but for the number format.
_HOW = ("hardware.", _MACHINE)
_FORMAT = "machine.precision"


def machine_of(device: Device, precision: str) -> dict[str, Any]:
    """What the bits of a computation depend on besides settings and rows.

    Args:
        device: that trains.
        precision: number format of its arithmetic.

    Returns:
        Value by dotted key.
    """
    return {
        f"{_MACHINE}device": f"{device.kind} {device.name}",
        _FORMAT: precision,
        f"{_MACHINE}threads": torch.get_num_threads() if device.kind == "cpu" else None,
        f"{_MACHINE}torch": torch.__version__,
    }


def find_checkpoint(
    folder: Path, *, identity: dict[str, Any], mode: ResumeMode, run: Path, tell: Callable[[str], None]
) -> tuple[int, Path, list[dict[str, Any]]] | None:
    """The newest checkpoint that is whole, and that this run may go on from.

    Args:
        folder: of the checkpoints.
        identity: settings, rows and machine of this run.
        mode: how much of them must agree.
        run: the run folder.
        tell: takes a line for each damaged checkpoint, and for each difference that `fast` allows.

    Returns:
        Step, path, and all resumes in `fast` mode so far, this one included: their steps and what differed; None
        before the first checkpoint.

    Raises:
        NexusError: `E-RES-01` with all that differs and must not; `E-RES-05` if every checkpoint is damaged.
    """
    found = newest_whole(folder, tell=tell)
    if found is None:
        return None
    step, path = found
    saved, fast_resumes = read_origin(path)
    differ = differences(saved, identity)
    refused = [key for key in differ if mode == "exact" or not key.startswith(_HOW) or key == _FORMAT]
    if refused:
        raise _refusal([differ[key] for key in refused], run, fast_helps=_are_how(differ) and mode == "exact")
    for line in differ.values():
        tell(f"resume_mode=fast  {line}")
    if differ:
        fast_resumes = [*fast_resumes, {"step": step, "changed": list(differ.values())}]
    return step, path, fast_resumes


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """What is not the same in a checkpoint and in the run that would go on from it.

    Args:
        saved: identity of the checkpoint; one that names no machine is of a version that did not note it.
        wanted: identity of this run.

    Returns:
        A line in words by key.
    """
    if not any(key.startswith(_MACHINE) for key in saved):
        wanted = {key: value for key, value in wanted.items() if not key.startswith(_MACHINE)}
    absent = "nothing"
    return {
        key: f"{key}: the checkpoint has {saved.get(key, absent)!r}, this run {wanted.get(key, absent)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key, absent) != wanted.get(key, absent)
    }


def _are_how(keys: Mapping[str, str]) -> bool:
    return all(key.startswith(_HOW) and key != _FORMAT for key in keys)


def _refusal(lines: list[str], run: Path, *, fast_helps: bool) -> NexusError:
    other = "resume_mode=fast goes on with the same rows, order, seeds and steps" if fast_helps else "start a new run"
    return NexusError(
        "E-RES-01",
        "the settings, rows, weights or machine are not those of the run that is resumed:\n  " + "\n  ".join(lines),
        where=str(run / "config.yaml"),
        remedy=f"set them back, or {other}",
    )
