"""What the benchmarks share: a clock, one process for each measurement, turns, tables.

A benchmark is a module that, called with `--child MODE MODEL`, measures once and prints its result as the last line.
Counted is processor time, which other processes disturb less than the clock on the wall; on a GPU, whose work it does
not see, it is the wall's, read when the GPU has finished.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
ASSET = REPOSITORY / "nexus" / "assets" / "nexus_tiny"
Result = dict[str, float]


class Clock:
    """Time at the end of every step, and the work of every step, in tokens.

    Args:
        device: `cpu` or `cuda`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.ends: list[float] = []
        self.work: list[int] = []

    def now(self) -> float:
        """Seconds since some moment."""
        if self.device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def end_step(self) -> None:
        """A step is done."""
        self.ends.append(self.now())

    def result(self, loss: float, **more: float) -> Result:
        """What the process reports: steps 2 to the last.

        Args:
            loss: for the eye, and for a test.
            **more: further numbers.
        """
        assert len(self.ends) == len(self.work) >= 3, (len(self.ends), len(self.work))
        return {
            "work": sum(self.work[1:]),
            "seconds": self.ends[-1] - self.ends[0],
            "peak_mib": self.peak_mib(),
            "all_work": sum(self.work),
            "loss": loss,
            **more,
        }

    def peak_mib(self) -> float:
        """Most memory so far: of the process, or of the GPU's tensors."""
        if self.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        import torch

        return torch.cuda.max_memory_allocated() / 2**20


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """A run's settings as the command line would compose them, without callbacks that only write files."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import nexus.config.resolvers  # noqa: F401  the resolvers that the YAML names

    fixed = ["callbacks.samples=null", "callbacks.checkpoint=null", "logger=csv"]
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = compose("train", overrides=[*overrides, *fixed])
        container: Any = OmegaConf.to_container(composed, resolve=True)
    return {**container, "logger": {}}


def fit_nexus(
    settings: dict[str, Any],
    prepared: Any,
    *,
    steps: int,
    folder: Path,
    clock: Clock,
    make_data: Callable[[Any], Any],
) -> float:
    """Train as a run does: loader, method, metrics and progress.

    Args:
        settings: of the run.
        prepared: its tokenizer and rows.
        steps: optimizer steps.
        folder: where progress goes.
        clock: is told of each step and of the target tokens in it.
        make_data: gives the data module for the method, whose model is loaded.

    Returns:
        Mean loss of the steps.
    """
    from lightning.pytorch import Callback

    from nexus.callbacks.hold import Desk
    from nexus.flags import Flags
    from nexus.stages import assemble
    from nexus.storage.run_status import Board

    losses = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock.end_step()
            clock.work.append(sum(micro_batch.num_target_tokens for micro_batch in batch))
            losses.append(float(pl_module.step_metrics["train/loss"]))

    method = assemble.make_method(settings, total_steps=steps)
    method.configure_model()
    data = make_data(method)
    method.train()
    desk = Desk(board=Board(folder), flags=Flags())
    callbacks = assemble.make_callbacks(settings, folder, prepared, desk=desk)
    trainer = assemble.make_trainer(settings, folder, [*callbacks, Watch()], steps)
    trainer.fit(method, datamodule=data)
    return statistics.mean(losses)


def measure(module: str, mode: str, model: Path, arguments: Sequence[str] = ()) -> Result:
    """One measurement in a process of its own.

    Args:
        module: of the benchmark.
        mode: one of its modes.
        model: folder of the model.
        arguments: further ones.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(model.parent / "datasets"),
        "TRACKIO_DISABLE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [sys.executable, "-m", module, "--child", mode, str(model), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{mode} failed:\n{done.stderr[-3000:]}")
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def take_turns(
    modes: Iterable[str], measure_one: Callable[[str], Result], *, seconds: float, most: int
) -> dict[str, list[Result]]:
    """Measure in turns until the time is used up, at least once each; all must have done the same work.

    Args:
        modes: what is compared.
        measure_one: measures a mode once.
        seconds: no round begins that would end later.
        most: at most so many rounds.
    """
    results: dict[str, list[Result]] = {mode: [] for mode in modes}
    started = time.monotonic()
    for done in range(most):
        if done and (time.monotonic() - started) * (done + 1) / done > seconds:
            break
        for mode in results:
            results[mode].append(measure_one(mode))
    counted = {mode: {run["all_work"] for run in runs} for mode, runs in results.items()}
    assert len(set.union(*counted.values())) == 1, f"not the same work: {counted}"
    return results


def spread(values: list[float], form: str) -> str:
    """`1,234 (1,200-1,250)`: median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def speeds_of(runs: Sequence[Result]) -> list[float]:
    """Work by second."""
    return [run["work"] / run["seconds"] for run in runs]


def table(results: Mapping[str, Sequence[Result]], names: Mapping[str, str], *, unit: str, memory: str) -> str:
    """Medians with ranges; the factor says how many times faster the first mode is.

    Args:
        results: runs by mode.
        names: what a mode is.
        unit: of the speed.
        memory: whose peak is given.
    """
    speeds = {mode: speeds_of(runs) for mode, runs in results.items()}
    first = statistics.median(next(iter(speeds.values())))
    lines = [f"{'':<52}{'n':>3}{unit:>26}{'factor':>8}{memory:>22}{'loss':>8}"]
    for mode, runs in results.items():
        factor = first / statistics.median(speeds[mode])
        peak = spread([run["peak_mib"] for run in runs], ",.0f")
        lines.append(
            f"{names[mode]:<52}{len(runs):>3}{spread(speeds[mode], ',.0f'):>26}{factor:>8.2f}{peak:>22}"
            f"{runs[-1]['loss']:>8.3f}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Comparison:
    """A claim: how many times as fast one mode is as another, or how much of its memory it takes.

    Attributes:
        title: in words.
        ours: mode.
        theirs: mode.
        goal: least factor of speed, or most share of memory.
        of: `speed` or `memory`.
    """

    title: str
    ours: str
    theirs: str
    goal: float
    of: str = "speed"

    def line(self, results: Mapping[str, Sequence[Result]]) -> str:
        """Median and range over the rounds, each of which compares neighbors in time."""
        pairs = list(zip(results[self.ours], results[self.theirs], strict=True))
        if self.of == "memory":
            ratios = [a["peak_mib"] / b["peak_mib"] for a, b in pairs]
            reached, sign = statistics.median(ratios) <= self.goal, "<="
        else:
            ratios = [a["work"] / a["seconds"] / (b["work"] / b["seconds"]) for a, b in pairs]
            reached, sign = statistics.median(ratios) >= self.goal, ">="
        return f"{self.title:<72}{spread(ratios, '.2f'):>20}   goal {sign} {self.goal:g}{'' if reached else '  MISSED'}"


def insist_on_cuda() -> str:
    """The GPU's name.

    Raises:
        SystemExit: with a message, where there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device on this machine; --device cpu measures without one")
    return str(torch.cuda.get_device_name())


def common_options(description: str | None, *, seconds: float, steps: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes.

    Args:
        description: the module's docstring.
        seconds: time for all rounds unless told.
        steps: optimizer steps of a measurement unless told.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=seconds, help="no round begins that would end later")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many rounds")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps of one measurement")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a 0.5 B shape in bf16 and nf4")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "MODEL"), help=argparse.SUPPRESS)
    return parser
