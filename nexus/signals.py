"""Ctrl-C before a door has begun its work: one line and exit status 130 instead of a traceback.

Doors import this module before anything else of Nexus; it loads nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

_INTERRUPTED = 130


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: what nobody caught."""
    if not issubclass(kind, KeyboardInterrupt):
        _earlier(kind, error, trace)
        return
    print("interrupted", file=sys.stderr, flush=True)
    # Python would go on to end itself by the signal, and print what the half-loaded modules complain of on the way
    os._exit(_INTERRUPTED)


_earlier = sys.excepthook
sys.excepthook = _end
