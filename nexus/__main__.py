"""`nexus DOOR ...` is the same as `python -m nexus.DOOR ...`."""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import ast
import difflib
import importlib
import sys
from pathlib import Path

from nexus.errors import NexusError

#: Modules beside the doors that are no commands.
_NO_DOORS = {"__init__", "__main__", "errors", "types", "signals", "flags"}


def doors() -> dict[str, str]:
    """Every command with the first sentence of its docstring, read without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _NO_DOORS:
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = docstring.split("\n")[0]
    return found


def main() -> None:
    """Hand the rest of the command line to a door; without one, list them. Ends the process with the door's status."""
    known = doors()
    chosen = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if chosen in ("-h", "--help", "help"):
        width = max(map(len, known), default=0)
        print("nexus DOOR ...   (the same as python -m nexus.DOOR ...)\n")
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in known.items()))
        sys.exit(0)
    if chosen not in known:
        near = difflib.get_close_matches(chosen, known, n=1)
        error = NexusError(
            "E-CFG-01",
            f"there is no door {chosen!r}",
            remedy=f"did you mean {near[0]!r}?" if near else f"the doors are {', '.join(known)}",
        )
        print(error, file=sys.stderr)
        sys.exit(error.status)
    sys.argv = [f"nexus {chosen}", *sys.argv[2:]]
    sys.exit(importlib.import_module(f"nexus.{chosen}").main())


if __name__ == "__main__":
    main()
