"""Which classes a `_target_` may name, and which settings their constructors take; nothing is imported to know it.

Classes under `nexus.` are read with `ast`; those of torch and Lightning stand in `signatures.json`, which
`tests/config/external_signatures.py` writes and a test compares with the installed libraries. Whatever stands in
neither place is refused.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nexus.config.folders import PACKAGE
from nexus.config.schema import NODE_SETTINGS
from nexus.config.walk import check_value, nearest
from nexus.errors import Problem

#: Keys of a node that Hydra reads itself; `_args_` is missing because no constructor here takes positions.
_OWN_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")
#: Packages whose public classes `signatures.json` lists.
LIBRARIES = (
    "torch.optim",
    "torch.optim.lr_scheduler",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
)
_SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Signature:
    """What a constructor takes.

    Attributes:
        required: names without a default.
        optional: names with one.
        kinds: annotation of the names whose annotation is a plain number, text or switch.
        takes_any: True if any further name is accepted.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    kinds: dict[str, Any]
    takes_any: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every name."""
        return self.required + self.optional


def signature_of(target: str) -> Signature | None:
    """Signature of an allowed class.

    Args:
        target: dotted path.

    Returns:
        None if the class is not allowed or does not exist.
    """
    return _own_signature(target) if target.startswith("nexus.") else _foreign_signatures().get(target)


def nodes(tree: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a `_target_`, at any depth.

    Args:
        tree: plain containers.
        key: dotted key of the tree.

    Yields:
        Dotted key and node.
    """
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield key, tree
        for name, entry in tree.items():
            yield from nodes(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, entry in enumerate(tree):
            yield from nodes(entry, f"{key}.{index}")


def refused_targets(tree: Any) -> list[Problem]:
    """Nodes whose class is not on the list.

    Args:
        tree: plain containers, interpolated or not; an interpolated `_target_` is judged when it is resolved.

    Returns:
        `E-SEC-06` for each.
    """
    problems = []
    for key, node in nodes(tree):
        target = node["_target_"]
        if isinstance(target, str) and ("${" in target or signature_of(target) is not None):
            continue
        near = nearest(str(target), [*_foreign_signatures(), *_own_classes()])
        remedy = f"did you mean {near}?" if near else f"classes under nexus, {', '.join(LIBRARIES)} are allowed"
        problems.append(Problem("E-SEC-06", f"{key}._target_", f"= {target!r} is not allowed", remedy))
    return problems


def node_problems(tree: Any, *, completed_by_run: tuple[str, ...]) -> list[Problem]:
    """Settings that the constructors of the nodes do not take, take in another type, or miss.

    Args:
        tree: resolved, plain containers.
        completed_by_run: dotted prefixes of nodes that get further arguments from the run, so nothing is missing there.

    Returns:
        Problems; nodes whose class is refused are left out.
    """
    problems: list[Problem] = []
    for key, node in nodes(tree):
        signature = signature_of(node["_target_"]) if isinstance(node["_target_"], str) else None
        if signature is None:
            continue
        given = {name: value for name, value in node.items() if name not in _OWN_KEYS}
        for name, value in given.items():
            problems += _setting_problems(f"{key}.{name}", name, value, node["_target_"], signature)
        if key.startswith(completed_by_run) or node.get("_partial_", False) is True:
            continue
        problems += [
            Problem("E-CFG-07", f"{key}.{name}", f"{node['_target_']} needs this setting", f"give {key}.{name}=VALUE")
            for name in signature.required
            if name not in given
        ]
    return problems


def _setting_problems(key: str, name: str, value: Any, target: str, signature: Signature) -> list[Problem]:
    if name not in signature.names and not (signature.takes_any and not name.startswith("_")):
        near = nearest(name, signature.names)
        remedy = f"did you mean {near}?" if near else f"it takes {', '.join(signature.names) or 'nothing'}"
        return [Problem("E-CFG-01", key, f"{target} takes no such setting", remedy)]
    if name in NODE_SETTINGS:
        return list(check_value(value, NODE_SETTINGS[name], key))
    return list(check_value(value, signature.kinds[name], key)) if name in signature.kinds else []


@cache
def _foreign_signatures() -> dict[str, Signature]:
    table = json.loads((Path(__file__).parent / "signatures.json").read_text(encoding="utf-8"))
    return {
        target: Signature(tuple(entry["required"]), tuple(entry["optional"]), {}, entry["takes_any"])
        for target, entry in table.items()
    }


@cache
def _own_classes() -> tuple[str, ...]:
    """Classes that methods, callbacks and loggers of this project define; for nearest names."""
    found = []
    for folder in ("methods", "callbacks"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            classes = [
                node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
            ]
            found += [f"nexus.{folder}.{path.stem}.{node.name}" for node in classes]
    return tuple(found)


@cache
def _own_signature(target: str) -> Signature | None:
    """Read a class under `nexus.` without importing it."""
    module, _, name = target.rpartition(".")
    parts = module.split(".")[1:]
    if not all(part.isidentifier() for part in [*parts, name]) or name.startswith("_"):
        return None
    path = PACKAGE.joinpath(*parts)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    return None if found is None else _class_signature(found, tree)


def _class_signature(node: ast.ClassDef, tree: ast.Module) -> Signature:
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is not None:
        own = _function_signature(init.args)
        if not own.takes_any:
            return own
        # **common goes on to the base class
        base = _base_signature(node, tree)
        if base is None:
            return own
        return Signature(
            own.required + tuple(name for name in base.required if name not in own.names),
            own.optional + tuple(name for name in base.optional if name not in own.names),
            base.kinds | own.kinds,
            base.takes_any,
        )
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return _dataclass_signature(node)
    base = _base_signature(node, tree)
    return Signature((), (), {}, takes_any=bool(node.bases)) if base is None else base


def _function_signature(arguments: ast.arguments) -> Signature:
    named = [*arguments.posonlyargs, *arguments.args]
    first_default = len(named) - len(arguments.defaults)
    required = [argument.arg for argument in named[:first_default]]
    optional = [argument.arg for argument in named[first_default:]]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        (required if default is None else optional).append(argument.arg)
    kinds = {
        argument.arg: _SCALARS[annotation]
        for argument in [*named, *arguments.kwonlyargs]
        if argument.annotation is not None and (annotation := ast.unparse(argument.annotation)) in _SCALARS
    }
    required = [name for name in required if name != "self"]
    return Signature(tuple(required), tuple(optional), kinds, arguments.kwarg is not None)


def _dataclass_signature(node: ast.ClassDef) -> Signature:
    entries = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    names = {ast.unparse(item.target): item for item in entries}
    kinds = {n: _SCALARS[text] for n, item in names.items() if (text := ast.unparse(item.annotation)) in _SCALARS}
    required = tuple(name for name, item in names.items() if item.value is None)
    return Signature(required, tuple(name for name in names if name not in required), kinds, takes_any=False)


def _base_signature(node: ast.ClassDef, tree: ast.Module) -> Signature | None:
    """Signature of the first base class that is ours; None if there is none."""
    for base in node.bases:
        name = ast.unparse(base).split("[")[0]
        local = next((item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == name), None)
        if local is not None:
            return _class_signature(local, tree)
        for item in tree.body:
            if isinstance(item, ast.ImportFrom) and item.module and item.module.startswith("nexus"):
                for alias in item.names:
                    if (alias.asname or alias.name) == name:
                        return _own_signature(f"{item.module}.{alias.name}")
    return None
