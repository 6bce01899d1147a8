"""Length, names and forbidden constructs, read from the source; every walk states how many files it must find."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.readme_tree import REPOSITORY, first_line, split_readme, tree

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_STEP_LINES = 25
SHORT_FUNCTIONS = {"loss", "training_step"}
#: Files and functions that may be longer, each with its reason. Empty is how it should stay.
LONGER: dict[str, str] = {}

FORBIDDEN_FOLDERS = {"utils", "common", "core", "misc", "helpers"}

#: Names that have another name here (glossary in the design, section 5).
FORBIDDEN_NAMES = {
    "target_mask": "loss_mask",
    "tokens_mask": "attention_mask",
    "input_pos": "position_ids",
    "num_items_in_batch": "num_target_tokens",
    "max_length": "max_seq_len or max_new_tokens",
    "max_completion_length": "max_new_tokens",
    "response_mask": "completion_mask",
    "ignore_idx": "IGNORE_INDEX",
    "reference_model": "ref_model",
    "reference_logprobs": "ref_logprobs",
    "per_token_logps": "logprobs",
    "logps": "sequence_logprobs",
    "log_probs": "logprobs",
    "reward_funcs": "reward_fn",
    "group_size": "num_generations",
    "ppo_epochs": "num_iterations",
    "clip_eps": "epsilon_low and epsilon_high",
    "kl_coeff": "kl_coef",
    "vision_tower": "encoder",
    "mm_projector": "connector",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "data.global_batch_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
}
#: Libraries keep their own names: these may stand where a value is handed to or read from them.
FOREIGN_KEYWORDS = {"max_length"}


def sources(*folders: str, at_least: int) -> list[Path]:
    found = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(found) >= at_least, f"{folders}: only {len(found)} files"
    return found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_files_are_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in sources("nexus", "tests", at_least=40)}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES and name not in LONGER} == {}


def test_functions_are_short() -> None:
    long, count = [], 0
    for path in sources("nexus", at_least=25):
        for node in functions(path):
            count += 1
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = MAX_STEP_LINES if node.name in SHORT_FUNCTIONS else MAX_FUNCTION_LINES
            if length > limit and f"{name_of(path)}:{node.name}" not in LONGER:
                long.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines, limit {limit}")
    assert count >= 100
    assert long == []


def test_no_folder_for_everything() -> None:
    folders = {p.parent for p in sources("nexus", "tests", at_least=40)}
    assert len(folders) >= 8
    names = {part for folder in folders for part in folder.relative_to(REPOSITORY).parts}
    names |= {path.stem for path in sources("nexus", at_least=25)}
    assert names & FORBIDDEN_FOLDERS == set()


def test_no_exception_is_swallowed() -> None:
    swallowed, count = [], 0
    for path in sources("nexus", at_least=25):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                count += 1
                empty = all(isinstance(s, ast.Pass) or _is_constant(s) for s in node.body)
                if node.type is None or empty:
                    swallowed.append(f"{name_of(path)}:{node.lineno}")
            if isinstance(node, ast.Name) and node.id == "suppress":
                swallowed.append(f"{name_of(path)}:{node.lineno}")
    assert count >= 5
    assert swallowed == []


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def test_no_mocks() -> None:
    words = re.compile("|".join(["Magic" + "Mock", "unittest" + r"\.mock", "from unittest import " + "mock", "mocker"]))
    found = [name_of(path) for path in sources("nexus", "tests", at_least=40) if words.search(path.read_text())]
    assert found == [name_of(Path(__file__))] * bool(found)


def test_no_unfinished_or_unsafe_code() -> None:
    words = re.compile(r"raise NotImplementedError|\bTODO\b|\bFIXME\b|cfg\.get\(|[^.\w]eval\(|\bexec\(|pickle\.load")
    found = [
        f"{name_of(path)}:{number}"
        for path in sources("nexus", at_least=25)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert found == []


def test_no_machine_path() -> None:
    absolute = re.compile(r"""(?:^|[\s"'=(:`])/(?:work|home/\w+|mnt/\w|Users/\w+|root|tmp)/|[\s"'=(][A-Z]:\\\\\w""")
    kinds = {".py", ".yaml", ".md", ".toml", ".lock", ".sh", ""}
    skipped = {".git", ".venv", "outputs", "build", "dist", "shared"}
    count, found = 0, []
    for path in sorted(REPOSITORY.rglob("*")):
        parts = path.relative_to(REPOSITORY).parts
        if path.suffix not in kinds or not path.is_file() or skipped & set(parts) or "cache" in "".join(parts):
            continue
        count += 1
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [f"{name_of(path)}:{n}" for n, line in enumerate(lines, 1) if absolute.search(line)]
    assert count >= 60
    assert found == []


def test_one_name_per_thing() -> None:
    found, count = [], 0
    for path in sources("nexus", at_least=25):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = _defined_name(node)
            if name is None:
                continue
            count += 1
            if name in FORBIDDEN_NAMES:
                found.append(f"{name_of(path)}:{getattr(node, 'lineno', 0)} {name}: here it is {FORBIDDEN_NAMES[name]}")
    assert count >= 500
    assert found == []


def _defined_name(node: ast.AST) -> str | None:
    """A name that the code itself chooses: an assigned variable, an argument, a function, a class."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    return None


def test_every_module_says_what_it_is() -> None:
    silent = [name_of(path) for path in sources("nexus", at_least=25) if not first_line(path)]
    assert silent == []


def test_readme_tree_names_every_file_and_no_other() -> None:
    _, present, _ = split_readme((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert present.count(".py") >= 25
    assert present == tree(), "run `make tree`"
    files = [line for line in present.splitlines() if re.search(r"^\s+[\w/.]+\.\w+(\s|$)", line)]
    assert len(files) >= 40
    bare = [line for line in files if len(line.split()) == 1]
    assert bare == [], "give these a docstring, or a comment in readme_tree.COMMENTS"


def test_one_lock_and_no_poisoned_release() -> None:
    pins = {}
    for name in ("requirements.lock", "requirements-test.lock"):
        lines = [line for line in (REPOSITORY / name).read_text().splitlines() if line and not line.startswith("#")]
        for line in lines:
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), f"{name}: {line}"
            package, _, version = line.partition("==")
            assert package not in pins, f"{package} is pinned twice"
            pins[package] = version
    assert len(pins) >= 80
    assert pins["torch"] == "2.13.0"
    for package in ("lightning", "pytorch-lightning"):
        assert pins[package] not in ("2.6.2", "2.6.3")
    assert [package for package in pins if re.match(r"nvidia|triton|cuda", package)] == []
    test_only = {line.partition("==")[0] for line in (REPOSITORY / "requirements-test.lock").read_text().splitlines()}
    assert {"pytest", "ruff", "mypy", "import-linter", "pydoclint", "trl"} <= test_only
