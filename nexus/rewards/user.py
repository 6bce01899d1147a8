"""Loads a reward function of the user's own from the file that he names; nothing is searched for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from nexus.errors import NexusError


def load_function(source: str) -> Callable[..., Any]:
    """The function that `path/to/file.py:function` names.

    The file is run, as any module is when it is imported; only a file that the user himself wrote into the settings
    comes here.

    Args:
        source: path, relative to the current folder or absolute, a colon, and the name of a function in it.

    Returns:
        The function.

    Raises:
        NexusError: `E-MIS-05` if there is no such file, `E-RL-05` if it cannot be run or lacks the function.
    """
    file, _, name = source.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not file or not path.is_file():
        raise NexusError(
            "E-MIS-05",
            f"there is no file {file or source!r} with a reward function",
            remedy="write path/to/file.py:function; paths are relative to the folder in which the command runs",
        )
    module_name = f"nexus_reward_{sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise NexusError("E-RL-05", "this is no Python file", where=str(path), remedy="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        line = getattr(error, "lineno", None) or _line_in(error, path)
        raise NexusError(
            "E-RL-05",
            f"the file of the reward function cannot be run: {type(error).__name__}: {error}",
            where=f"{path}:{line}" if line else str(path),
            remedy="mend the file; python FILE shows the same error",
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise NexusError(
            "E-RL-05",
            f"there is no function {name!r}",
            where=str(path),
            remedy=f"the file has {', '.join(known) or 'no function'}",
        )
    return function  # type: ignore[no-any-return]


def _line_in(error: Exception, path: Path) -> int | None:
    """Last line of `path` that the error passed through."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
