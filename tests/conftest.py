"""Flags, markers and fixtures of all tests.

Flags: `-F` also the slow tests, `-G` also the benchmarks, `-T X,Y` only tests whose node id contains X or Y,
`-B X,Y` only benchmarks whose node id contains X or Y. A filter that matches nothing is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Some tests fork, and the child of a process that has computed with several threads waits for them forever.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Folders of models that cannot be had everywhere, by marker.
MODEL_FOLDERS = {"real_model": "NEXUS_REAL_MODEL", "omni": "NEXUS_OMNI_MODEL"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The project's own flags; pytest leaves capital letters to projects."""
    group = parser.getgroup("nexus")
    group.addoption("-F", "--full-tests", action="store_true", help="also run the slow tests")
    group.addoption("-G", "--full-benchmarks", action="store_true", help="also run all benchmarks")
    group.addoption("-T", "--test", metavar="X,Y", help="only tests whose node id contains one of these")
    group.addoption("-B", "--benchmark", metavar="X,Y", help="only benchmarks whose node id contains one of these")


#: Complaint of a worker process about a filter, carried to the process that prints.
COMPLAINT = "nexus_filter_complaint"


def _filtered(items: list[pytest.Item], value: str | None, flag: str) -> list[pytest.Item]:
    """Items whose node id contains one of the words; a word that no item contains is an error."""
    if value is None:
        return items
    words = [word.strip() for word in value.split(",") if word.strip()]
    unmatched = [word for word in words if not any(word in item.nodeid for item in items)]
    if not words or unmatched:
        raise pytest.UsageError(f"{flag}: no node id contains {', '.join(map(repr, unmatched)) or 'an empty word'}")
    return [item for item in items if any(word in item.nodeid for word in words)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Apply the filters, then mark what cannot or should not run, with the reason."""
    benchmarks = config.getoption("--benchmark")
    try:
        chosen = _filtered(items, config.getoption("--test"), "-T")
        if benchmarks is not None:
            chosen = _filtered([item for item in chosen if item.get_closest_marker("benchmark")], benchmarks, "-B")
    except pytest.UsageError as error:
        if not hasattr(config, "workeroutput"):
            raise
        # pytest-xdist turns an error of a worker into a crash of its own; the complaint goes along with the results.
        config.workeroutput[COMPLAINT] = str(error)
        chosen = []
    kept = set(chosen)
    dropped = [item for item in items if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = chosen
    for item in items:
        reason = _reason_to_skip(config, item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take a worker's complaint over."""
    complaint = getattr(node, "workeroutput", {}).get(COMPLAINT)
    if complaint:
        node.config.stash[_COMPLAINTS] = complaint


_COMPLAINTS = pytest.StashKey[str]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A filter that matches nothing is a usage error, with worker processes too."""
    if _COMPLAINTS in session.config.stash:
        session.exitstatus = pytest.ExitCode.USAGE_ERROR


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the complaint of the workers."""
    if _COMPLAINTS in config.stash:
        terminalreporter.write_line(f"ERROR: {config.stash[_COMPLAINTS]}", red=True)


def _reason_to_skip(config: pytest.Config, item: pytest.Item) -> str:
    if item.get_closest_marker("slow") and not config.getoption("--full-tests"):
        return "slow: run with -F"
    wants_benchmarks = config.getoption("--full-benchmarks") or config.getoption("--benchmark") is not None
    if item.get_closest_marker("benchmark") and not wants_benchmarks:
        return "benchmark: run with -G or -B"
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            return "gpu: no CUDA device here"
    for marker, variable in MODEL_FOLDERS.items():
        if item.get_closest_marker(marker) and not Path(os.environ.get(variable, "/dev/null")).is_dir():
            return f"{marker}: set {variable} to the folder of a model"
    return ""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same random numbers, whatever ran before it."""
    import random

    random.seed(0)
    if "torch" in sys.modules:  # tests without torch stay fast
        sys.modules["torch"].manual_seed(0)


TINY = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


@pytest.fixture
def tiny_qwen3() -> Any:
    """Config of a Qwen3 of 2 layers, 32 wide, 256 tokens."""
    from transformers import Qwen3Config

    return Qwen3Config(**TINY)


@pytest.fixture
def tiny_llama() -> Any:
    """Config of a Llama of the same shape."""
    from transformers import LlamaConfig

    return LlamaConfig(**TINY)


@pytest.fixture
def cfg() -> Callable[..., Any]:
    """Compose the real configuration: `cfg("+capability=tools", "method=cpt")`."""

    def compose(*overrides: str, root: str = "train") -> Any:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        import nexus.config.resolvers  # noqa: F401  the resolvers that the YAML names

        GlobalHydra.instance().clear()
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            return hydra_compose(root, overrides=list(overrides))

    return compose


@dataclass(frozen=True)
class Finished:
    """A door that ran to its end.

    Attributes:
        status: exit status.
        output: standard output.
        errors: standard error.
    """

    status: int
    output: str
    errors: str


@pytest.fixture
def run_door(tmp_path: Path) -> Callable[..., Finished]:
    """Run a door in a process of its own: `run_door("train", "+capability=tools", "scale=quick")`.

    Whatever it writes goes below `tmp_path`; the network is off.
    """

    def run(module: str, *overrides: str, cwd: Path | None = None, timeout: float = 300, text: str = "") -> Finished:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "NEXUS_OUTPUT_DIR": str(tmp_path / "outputs"),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }
        finished = subprocess.run(
            [sys.executable, "-m", f"nexus.{module}", *overrides],
            cwd=cwd or tmp_path,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run
