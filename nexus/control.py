"""Door: asks a run to pause, resume, write a checkpoint or stop, and tells its status.

python -m nexus.control RUN pause | resume | checkpoint | stop | status
"""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import difflib
import sys
import time
from pathlib import Path
from typing import Any

from nexus.errors import NexusError, discard_output
from nexus.flags import WORDS
from nexus.storage.run_status import is_running, lay_request, read_status

_USAGE = "nexus control RUN pause|resume|checkpoint|stop|status"
#: States of a run that has come to its end, one way or another.
_ENDED = ("finished", "failed", "interrupted")


def describe(folder: Path, status: dict[str, Any]) -> str:
    """A status in lines."""
    alive = is_running(status)
    ended = status["state"] in _ENDED
    reason = f" ({status['reason']})" if status["reason"] else ""
    lines = {"state": status["state"] + reason}
    if status.get("step") is not None:
        lines["step"] = f"{status['step']} of {status['steps']}"
    if status.get("temperature"):
        lines["temperature"] = ", ".join(f"{name} {value:g} C" for name, value in status["temperature"].items())
    if status.get("last_checkpoint"):
        lines["last checkpoint"] = status["last_checkpoint"]
    if status.get("eta_seconds") is not None and not ended and alive is not False:
        lines["training left"] = f"{status['eta_seconds']:.0f} s" + (" once it goes on" if reason else "")
    words = {True: "is running", False: "has ended", None: f"is on {status.get('host')}, not seen from here"}
    lines["process"] = f"{status['pid']} {words[alive]}"
    if alive is False and not ended:
        lines["process"] += f" without a word; go on with: nexus train resume={folder}"
    if "time" in status:
        lines["written"] = f"{max(0.0, time.time() - status['time']):.0f} s ago"
    return "\n".join(f"{name:<16} {value}" for name, value in lines.items())


def ask(folder: Path, word: str) -> str:
    """Ask a run for something.

    Args:
        folder: its run folder.
        word: one of `nexus.flags.WORDS`.

    Returns:
        What to expect.

    Raises:
        NexusError: `E-RUN-02` if nobody works on the run.
    """
    status = read_status(folder)
    if status["state"] in _ENDED or is_running(status) is False:
        what = f"the run has ended: {status['state']}"
        if status["state"] not in _ENDED:
            what = f"process {status['pid']} of this run is gone"
        remedy = "" if status["state"] == "finished" else f"go on with: nexus train resume={folder}"
        raise NexusError("E-RUN-02", what, where=str(folder), remedy=remedy, status=66)
    lay_request(folder, word)
    return f"asked for {word}; the run answers at its next step boundary: nexus control {folder} status"


def main() -> int:
    """Run the door; returns the exit status."""
    words = sys.argv[1:]
    try:
        if words in (["-h"], ["--help"]):
            print(f"{_USAGE}\n\n{(__doc__ or '').splitlines()[0]}", flush=True)
            return 0
        known = (*WORDS, "status")
        if len(words) != 2:
            raise NexusError("E-CFG-05", "a run folder and one word are needed", where="command line", remedy=_USAGE)
        if words[1] not in known:
            near = difflib.get_close_matches(words[1], known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else _USAGE
            raise NexusError("E-CFG-05", f"{words[1]!r} means nothing here", where="command line", remedy=remedy)
        folder = Path(words[0])
        print(describe(folder, read_status(folder)) if words[1] == "status" else ask(folder, words[1]), flush=True)
    except NexusError as error:
        print(error, file=sys.stderr)
        return error.status
    except BrokenPipeError:
        return discard_output()
    return 0


if __name__ == "__main__":
    sys.exit(main())
