"""Signals from a door's first statement to its end: handlers set flags, and step boundaries act on them.

SIGUSR1 pauses and resumes, SIGUSR2 asks for a checkpoint, SIGTERM and Ctrl-C save and leave with status 143 and 130; a
second Ctrl-C leaves at once. Where no step boundary comes (while a door loads, scores or tokenizes), SIGTERM and Ctrl-C
are a `KeyboardInterrupt` whose argument is the exit status. Doors import this module before anything else of Nexus; it
loads nothing but the standard library and the flags.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from nexus.flags import FLAGS, INTERRUPTED, TERMINATED

#: Those that Windows does not have are left out there; control files do the same.
_USER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))

#: What this process was told to ignore when it was started.
_IGNORED = {number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is signal.SIG_IGN}


def _on_user(number: int, frame: FrameType | None) -> None:
    if number == _USER[0]:
        FLAGS.toggle("SIGUSR1")
    else:
        FLAGS.checkpoints += 1


def _on_terminate(number: int, frame: FrameType | None) -> None:
    _leave(TERMINATED, FLAGS.stop_asked or "SIGTERM")


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    FLAGS.interrupts += 1
    if FLAGS.interrupts > 1:
        # Every file is written beside its target and renamed, so leaving in the middle harms none.
        os.write(2, b"interrupted twice: leaving at once\n")
        os._exit(INTERRUPTED)
    _leave(INTERRUPTED, "Ctrl-C")


def _leave(status: int, reason: str) -> None:
    # Only the first request is an exception: a later one would break off what the first one's way out still writes.
    if FLAGS.request_stop(status, reason) and not FLAGS.at_boundaries:
        raise KeyboardInterrupt(status)


def install() -> None:
    """Take the four signals; what the parent process made this one ignore (`nohup`, `&`) stays ignored.

    Called again when training begins, because Lightning puts a handler of its own for SIGTERM in front, which ends the
    training without a checkpoint if the signal comes just after a step boundary. Outside the main thread, where Python
    allows no handlers, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _USER:
        signal.signal(number, _on_user)
    for number, handler in ((signal.SIGTERM, _on_terminate), (signal.SIGINT, _on_interrupt)):
        signal.signal(number, signal.SIG_IGN if number in _IGNORED else handler)
    FLAGS.handled = True


def _retire() -> None:
    """When the interpreter ends it gives signals their default meaning back, which is death; ignored ones it leaves."""
    if threading.current_thread() is threading.main_thread():
        for number in _USER:
            signal.signal(number, signal.SIG_IGN)


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: what nobody caught."""
    if not issubclass(kind, KeyboardInterrupt):
        _earlier(kind, error, trace)
        return
    status = error.args[0] if error.args else INTERRUPTED
    print("terminated" if status == TERMINATED else "interrupted", file=sys.stderr, flush=True)
    # Python would go on to end itself by the signal, and print what the half-loaded modules complain of on the way
    os._exit(status)


install()
atexit.register(_retire)
_earlier = sys.excepthook
sys.excepthook = _end
