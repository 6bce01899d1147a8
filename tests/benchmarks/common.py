"""What the benchmarks share: a clock, one process for each measurement, turns, tables.

A benchmark is a module that, called with `--child MODE MODEL`, measures once and prints its result as the last line.
Processes take turns, either from start to end or step by step.
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
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

REPOSITORY = Path(__file__).resolve().parents[2]
ASSET = REPOSITORY / "nexus" / "assets" / "nexus_tiny"
Result = dict[str, Any]
Results = dict[str, Result]
_TURN = "a step is done"


class Clock:
    """Time and work of every step, in tokens; the first step warms up and is not counted.

    Args:
        device: `cpu` or `cuda`.
        turns: after so many steps other processes take theirs, and we wait until we are told to go on; 0 for never.
    """

    def __init__(self, device: str = "cpu", *, turns: int = 0) -> None:
        self.device = device
        self.turns = turns
        self.begun = 0.0
        self.seconds: list[float] = []
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
        self.seconds.append(self.now() - self.begun)
        if self.turns and len(self.seconds) % self.turns == 0:
            print(f"\n{_TURN}", flush=True)
            sys.stdin.readline()
        self.begun = self.now()

    def result(self, loss: float, **more: float) -> Result:
        """What the process reports.

        Args:
            loss: for the eye, and for a test.
            **more: further numbers.
        """
        assert len(self.seconds) == len(self.work) >= 2, (len(self.seconds), len(self.work))
        return {
            "step_work": self.work[1:],
            "step_seconds": self.seconds[1:],
            "work": sum(self.work[1:]),
            "seconds": sum(self.seconds[1:]),
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
) -> list[float]:
    """Train as a run does: loader, method, metrics and progress.

    Args:
        settings: of the run.
        prepared: its tokenizer and rows.
        steps: optimizer steps.
        folder: where progress goes.
        clock: is told of each step and of the target tokens in it.
        make_data: gives the data module for the method, whose model is loaded.

    Returns:
        Loss of each step.
    """
    from lightning.pytorch import Callback

    from nexus.callbacks.hold import Desk
    from nexus.flags import Flags
    from nexus.hardware.processor import use_processor
    from nexus.stages import assemble
    from nexus.storage.run_status import Board

    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock.end_step()
            clock.work.append(sum(micro_batch.num_target_tokens for micro_batch in batch))
            losses.append(float(pl_module.step_metrics["train/loss"]))

    use_processor(settings["hardware"]["threads"])
    method = assemble.make_method(settings, total_steps=steps)
    method.configure_model()
    data = make_data(method)
    method.train()
    desk = Desk(board=Board(folder), flags=Flags())
    callbacks = assemble.make_callbacks(settings, folder, prepared, desk=desk, fast_resumes=[])
    trainer = assemble.make_trainer(settings, folder, [*callbacks, Watch()], steps)
    trainer.fit(method, datamodule=data)
    return losses


def child_command(module: str, mode: str, model: Path, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that measures.

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
    return [sys.executable, "-m", module, "--child", mode, str(model), *arguments], environment


def measure(module: str, mode: str, model: Path, arguments: Sequence[str] = ()) -> Result:
    """One measurement in a process of its own, from start to end.

    Args:
        module: of the benchmark.
        mode: one of its modes.
        model: folder of the model.
        arguments: further ones.
    """
    command, environment = child_command(module, mode, model, arguments)
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{mode} failed:\n{done.stderr[-3000:]}")
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


class Child:
    """A process that waits after each of its steps until it is told to go on.

    Args:
        module: of the benchmark.
        mode: one of its modes.
        model: folder of the model.
        arguments: further ones.
    """

    def __init__(self, module: str, mode: str, model: Path, arguments: Sequence[str]) -> None:
        command, environment = child_command(module, mode, model, arguments)
        self.mode = mode
        self.errors = (model.parent / f"{mode}.stderr").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def wait(self) -> str:
        """Until its step is done or it has come to its end; the last line."""
        assert self.process.stdout is not None
        last = ""
        for line in self.process.stdout:
            last = line.strip() or last
            if last == _TURN:
                return last
        if self.process.wait():
            self.errors.seek(0)
            raise SystemExit(f"{self.mode} failed:\n{self.errors.read()[-3000:]}")
        return last

    def go_on(self) -> None:
        """Let it take its next step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def step_in_turns(
    module: str, modes: Iterable[str], model: Path, steps: int, arguments: Sequence[str], *, at_a_time: int = 1
) -> Results:
    """One process for each mode; they take their steps in turns, and only one computes at a time.

    So each step of a mode has a neighbor in time of every other one, whatever else the machine does.

    Args:
        module: of the benchmark.
        modes: what is compared.
        model: folder of the model.
        steps: of each process, the first of which warms up.
        arguments: further ones of the processes.
        at_a_time: steps of a turn, a divisor of them all.

    Returns:
        Results by mode; all have done the same work in each step.
    """
    children = []
    try:
        for mode in modes:
            children.append(Child(module, mode, model, arguments))
            children[-1].wait()
        for _ in range(steps // at_a_time - 1):
            for child in children:
                child.go_on()
                child.wait()
        results = {}
        for child in children:
            child.go_on()
            results[child.mode] = json.loads(child.wait())
    finally:
        for child in children:
            child.process.kill()
            child.errors.close()
    counted = {mode: found["step_work"] for mode, found in results.items()}
    assert len(set(map(tuple, counted.values()))) == 1, f"not the same work: {counted}"
    return results


def take_turns(
    modes: Iterable[str], measure_one: Callable[[str], Result], *, seconds: float, most: int
) -> dict[str, list[Result]]:
    """Measure in turns until the time is used up, at least once each; if they count work, all must have done the same.

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
    counted = {mode: {run.get("all_work") for run in runs} for mode, runs in results.items()}
    assert len(set.union(*counted.values())) == 1, f"not the same work: {counted}"
    return results


def spread(values: list[float], form: str) -> str:
    """`1,234 (1,200-1,250)`: median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def table(lines: Sequence[Row], *, work: str, device: str = "cpu") -> str:
    """Medians with ranges; the factor says how many times faster the first line is.

    Args:
        lines: what was measured.
        work: what is counted.
        device: `cpu` or `cuda`.
    """
    unit, memory = f"{work} / {'CPU ' if device == 'cpu' else ''}s", "peak RSS, MiB" if device == "cpu" else "GPU, MiB"
    first = statistics.median(lines[0].speeds)
    found = [f"{'':<52}{'n':>3}{unit:>26}{'factor':>8}{memory:>22}{'loss':>8}"]
    for row in lines:
        factor = first / statistics.median(row.speeds)
        found.append(
            f"{row.title:<52}{len(row.speeds):>3}{spread(row.speeds, ',.0f'):>26}{factor:>8.2f}"
            f"{spread(row.peaks, ',.0f'):>22}{row.loss:>8.3f}"
        )
    return "\n".join(found)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        title: what it is.
        speeds: of every round.
        peaks: of memory in MiB.
        loss: for the eye.
    """

    title: str
    speeds: list[float]
    peaks: list[float]
    loss: float

    @classmethod
    def of_steps(cls, title: str, result: Result) -> Row:
        """Of a process whose every step is a round."""
        speeds = [work / seconds for work, seconds in zip(result["step_work"], result["step_seconds"], strict=True)]
        return cls(title, speeds, [result["peak_mib"]], result["loss"])

    @classmethod
    def of_runs(cls, title: str, runs: Sequence[Result]) -> Row:
        """Of processes, each of which is a round."""
        speeds = [run["work"] / run["seconds"] for run in runs]
        return cls(title, speeds, [run["peak_mib"] for run in runs], runs[-1]["loss"])


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

    def line(self, results: Results) -> str:
        """Median and range over the steps, each of which compares neighbors in time."""
        ours, theirs = results[self.ours], results[self.theirs]
        if self.of == "memory":
            ratios = [ours["peak_mib"] / theirs["peak_mib"]]
            reached, sign = statistics.median(ratios) <= self.goal, "<="
        else:
            ratios = [b / a for a, b in zip(ours["step_seconds"], theirs["step_seconds"], strict=True)]
            reached, sign = statistics.median(ratios) >= self.goal, ">="
        return f"{self.title:<58}{spread(ratios, '.2f'):>20}   goal {sign} {self.goal:g}{'' if reached else ', MISSED'}"


def insist_on_cuda() -> str:
    """The GPU's name.

    Raises:
        SystemExit: with a message, where there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device on this machine; --device cpu measures without one")
    return str(torch.cuda.get_device_name())


class Case(Protocol):
    """One table of a benchmark."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""

    @property
    def shape(self) -> str:
        """Of the model, a key of `models.SHAPES`."""

    @property
    def measured(self) -> list[str]:
        """Modes, each of which is measured in turn."""


@dataclass(frozen=True)
class Bench:
    """A benchmark with several tables.

    Attributes:
        module: its name.
        cases: on a processor.
        cuda_cases: on a GPU.
        run: one measurement of (case, mode, folder of the model, steps, a folder to write in).
        report: prints the table of (name, case, results, steps, machine).
    """

    module: str
    cases: Mapping[str, Any]
    cuda_cases: Mapping[str, Any]
    run: Callable[[Any, str, Path, int, Path], Result]
    report: Callable[[str, Any, Results, int, str], None]

    def measure_case(self, name: str, steps: int) -> Results:
        """All modes of a case in turns.

        Args:
            name: of the case.
            steps: of each process.
        """
        from tests.benchmarks.models import make_model

        case: Case = {**self.cases, **self.cuda_cases}[name]
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            make_model(model, case.shape)
            arguments = ["--cases", name, "--rounds", str(steps - 1)]
            return step_in_turns(self.module, case.measured, model, steps, arguments)


def drive(description: str | None, bench: Bench) -> None:
    """Read the command line, measure and print the tables; with `--child`, be one of the processes.

    Args:
        description: the module's docstring.
        bench: what is measured.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"of {', '.join(bench.cases)}; on a GPU of {', '.join(bench.cuda_cases)}")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are counted, after one that is not")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a 0.5 B shape in bf16 and nf4")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = given.rounds + 1
    if given.child:
        import torch

        mode, model = given.child
        case = {**bench.cases, **bench.cuda_cases}[given.cases]
        if case.device == "cpu":
            torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            found = bench.run(case, mode, Path(model), steps, Path(folder))
        print("\n" + json.dumps(found))
        return
    machine = insist_on_cuda() if given.device == "cuda" else "one thread"
    known = bench.cuda_cases if given.device == "cuda" else bench.cases
    names = list(known) if given.cases is None else given.cases.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"--cases {','.join(unknown)}: there are {', '.join(known)}")
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    for name in names:
        bench.report(name, known[name], bench.measure_case(name, steps), steps, machine)
