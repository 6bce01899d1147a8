"""A training state on disk: a folder of safetensors and JSON with a hash of every byte; nothing in it can run.

Tensors of any nested containers go to `tensors.safetensors`, everything else to `state.json`, where a tensor, a tuple
and a dictionary whose keys are not all text are marked. `manifest.json` is written last.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nexus.errors import NexusError
from nexus.storage.atomic import atomic_folder, write_text
from nexus.storage.manifest import MANIFEST_NAME, NEWER, SCHEMA, read_manifest, verify_manifest, write_manifest

TENSORS_NAME = "tensors.safetensors"
STATE_NAME = "state.json"
#: Key of a JSON object that stands for something else.
_MARK = "__nexus__"
#: What stands in the manifest of a state, and what it names.
_ENTRIES = {"schema", "sha256", "excluded", "files"}
_FILES = {TENSORS_NAME, STATE_NAME}


def folder_name(step: int) -> str:
    """Name of the folder of the state after `step` optimizer steps."""
    return f"step={step:08d}"


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write a state under a temporary name beside `folder`, flush it, and rename it; an older one is replaced.

    Args:
        state: nested dictionaries, lists and tuples of tensors, numbers, text, booleans and None.
        folder: final name, that of `folder_name`; its parent exists.

    Raises:
        NexusError: `E-OUT-02` when the disk is full; whatever stood there is untouched.
        OSError: what else the system refuses.
        TypeError: `state` holds something else.
    """
    with atomic_folder(folder, replace=True) as temporary:
        tensors: dict[str, torch.Tensor] = {}
        text = json.dumps(_plain(state, tensors, ""), ensure_ascii=False)
        try:
            save_file(tensors, temporary / TENSORS_NAME)
        except SafetensorError as error:  # it hides the system's error in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error), str(folder)) from error
        write_text(temporary / STATE_NAME, text)
        write_manifest(temporary, exclude=(), extra={})


def read_state(folder: Path) -> dict[str, Any]:
    """Verify a state and read it; tensors lie in host memory.

    Args:
        folder: as `write_state` left it.

    Returns:
        What was written, tuples and dictionary keys included.

    Raises:
        NexusError: `E-RES-04` if one bit of it differs from what was written, or if its hashes are right and it is no
            state; `E-RES-06` if a newer Nexus wrote it.
    """
    verify_state(folder)
    try:
        tensors = load_file(folder / TENSORS_NAME)
        state: dict[str, Any] = _restored(json.loads((folder / STATE_NAME).read_text(encoding="utf-8")), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(f"this is not what a run wrote ({type(error).__name__}: {error})", folder) from error
    return state


def verify_state(folder: Path) -> None:
    """Compare every byte of a state, its manifest's own included, with the hashes.

    Args:
        folder: as `write_state` left it.

    Raises:
        NexusError: `E-RES-04` with what differs; `E-RES-06` if a newer Nexus wrote it.
    """
    try:
        verify_manifest(folder)
        content = read_manifest(folder)
        # What the hashes do not cover: the manifest's form and its list of exceptions.
        if content.keys() != _ENTRIES or content["schema"] != SCHEMA:
            raise NexusError("E-PKG-02", "the manifest is damaged: its entries", where=str(folder / MANIFEST_NAME))
        if content["excluded"] or content["files"].keys() != _FILES:
            raise NexusError("E-PKG-02", "the manifest is damaged: its files", where=str(folder / MANIFEST_NAME))
        step = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        if folder.name != folder_name(step):
            raise NexusError("E-PKG-04", f"it holds the state of step {step}", where=str(folder))
    except (NexusError, OSError, ValueError, KeyError, TypeError) as error:
        message = error.message if isinstance(error, NexusError) else str(error)
        if isinstance(error, NexusError) and error.code == NEWER and not _differs_in_its_number_only(folder):
            raise NexusError(
                "E-RES-06",
                f"a newer Nexus wrote the checkpoint: {message}",
                where=str(folder),
                remedy="update Nexus; the checkpoint was left as it is",
            ) from error
        raise _damaged(message, folder) from error


def _differs_in_its_number_only(folder: Path) -> bool:
    """True if a manifest of a newer form has the entries of this one: a new form has others, so a bit has flipped."""
    content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    return bool(content.keys() == _ENTRIES and content["files"].keys() == _FILES)


def _damaged(message: str, folder: Path) -> NexusError:
    return NexusError(
        "E-RES-04",
        f"the checkpoint is damaged: {message}",
        where=str(folder),
        remedy="resume=RUN goes on from the newest one that is whole",
    )


def read_origin(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Which run wrote a verified state, without reading its tensors.

    Args:
        folder: as `write_state` left it.

    Returns:
        Its settings by dotted key, and where it was resumed in `fast` mode.
    """
    state = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    return state["identity"], state.get("fast_resumes", [])


def _plain(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """Plain JSON for `value`; its tensors are added to `tensors` under their place in it."""
    if isinstance(value, torch.Tensor):
        # a copy, since safetensors refuses tensors that share memory; contiguous and in host memory
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_MARK: "tensor", "name": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: _plain(entry, tensors, f"{name}/{key}") for key, entry in value.items()}
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"keys of {name or 'the state'} must be text or integers")
        pairs = [[key, _plain(entry, tensors, f"{name}/{key}")] for key, entry in value.items()]
        return {_MARK: "dict", "items": pairs}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry, tensors, f"{name}/{index}") for index, entry in enumerate(value)]
        return entries if isinstance(value, list) else {_MARK: "tuple", "items": entries}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds plain containers and tensors, not {type(value).__name__} ({name})")


def _restored(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "tuple":
        return tuple(_restored(entry, tensors) for entry in value["items"])
    if kind == "dict":
        return {key: _restored(entry, tensors) for key, entry in value["items"]}
    return {key: _restored(entry, tensors) for key, entry in value.items()}
