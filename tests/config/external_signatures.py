"""Reads the constructors of the library classes that a `_target_` may name.

`python -m tests.config.external_signatures` rewrites `nexus/config/signatures.json` after an upgrade.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from nexus.config.targets import LIBRARIES

TABLE = Path(__file__).resolve().parents[2] / "nexus" / "config" / "signatures.json"
#: Modules of the libraries whose classes count as theirs; others are only imported there.
_HOMES = ("torch.optim", "lightning.pytorch")


def read_signatures() -> dict[str, dict[str, Any]]:
    """Every public class of the libraries with the names that its constructor takes."""
    table: dict[str, dict[str, Any]] = {}
    for library in LIBRARIES:
        module = importlib.import_module(library)
        public = module.__all__ if hasattr(module, "__all__") else [n for n in vars(module) if not n.startswith("_")]
        for name in sorted(public):
            found = getattr(module, name)
            if inspect.isclass(found) and found.__module__.startswith(_HOMES) and not inspect.isabstract(found):
                table[f"{library}.{name}"] = _entry(found)
    return table


def _entry(found: type) -> dict[str, Any]:
    named = [p for p in inspect.signature(found).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    kinds = {p.kind for p in inspect.signature(found).parameters.values()}
    return {
        "required": [p.name for p in named if p.default is p.empty],
        "optional": [p.name for p in named if p.default is not p.empty],
        "takes_any": inspect.Parameter.VAR_KEYWORD in kinds,
    }


if __name__ == "__main__":
    lines = (f"  {json.dumps(target)}: {json.dumps(entry)}" for target, entry in read_signatures().items())
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
