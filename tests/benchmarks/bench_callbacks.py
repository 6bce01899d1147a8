"""What the callbacks cost: a step of 100 ms with all of them, saves apart, against one without any.

python -m tests.benchmarks.bench_callbacks

The step is a wait, so that the difference is the callbacks' own: what they do at a boundary is done by the processor
while a GPU would stand still. Runs with and without alternate. What counts is the processor's time of the training
thread, which other programs do not disturb; the time by the clock is told too.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from nexus.callbacks.cooldown import Cooldown
from nexus.callbacks.hang_watch import HangWatch
from nexus.callbacks.hold import Desk
from nexus.callbacks.metrics_csv import MetricsCsv
from nexus.callbacks.power_budget import PowerBudget
from nexus.callbacks.progress import TrainingProgress
from nexus.callbacks.quiet_hours import QuietHours, minute_of_day
from nexus.callbacks.run_control import RunControl
from nexus.callbacks.thermal_pause import ThermalPause
from nexus.config.compose import compose_config
from nexus.data.module import NexusDataModule
from nexus.flags import Flags
from nexus.methods.sft import SFT
from nexus.stages.watch import watched
from nexus.storage.run_status import Board
from nexus.types import MicroBatch
from tests import small

STEPS = 110
WARM_STEPS = 10
ROUNDS = 3
STEP_SECONDS = 0.1
LIMIT = 0.01


class Idle(SFT):
    """A method whose forward and backward passes are a wait, as they are for the processor beside a busy GPU."""

    def accumulate(self, batch: list[MicroBatch]) -> dict[str, torch.Tensor]:
        """No gradient, so the optimizer passes over all weights."""
        time.sleep(STEP_SECONDS)
        return {"train/loss": torch.tensor(1.0)}


class Clock(Callback):
    """Measures what lies between a step's end and the next one's begin, by the clock and by what was computed."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self._ended = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """The boundary is over."""
        if trainer.global_step > WARM_STEPS:
            wall, computed = self._ended
            self.seconds.append((time.perf_counter() - wall, time.thread_time() - computed))

    def on_train_batch_end(self, *_: Any) -> None:
        """First of all callbacks: the boundary begins."""
        self._ended = time.perf_counter(), time.thread_time()


class Cool:
    """A sensor that costs what reading a file of the kernel costs."""

    def read(self) -> float:
        """Degrees Celsius, or watts."""
        return 40.0 + len(Path("/proc/self/stat").read_text()) % 2


def all_callbacks(folder: Path, desk: Desk) -> list[Callback]:
    """Everything of `conf/callbacks/default.yaml` with its settings and switched on, but for saves, answers and memory.

    Samples are made every 100 steps by generating text, validation by passes over rows, saves write files and the
    memory probe ends after two steps: their cost has other measures.
    """
    config: Any = OmegaConf.to_container(compose_config("train", []).callbacks, resolve=False)
    for node in config.values():
        node.pop("_target_")
    on = {"enabled": True, "desk": desk}
    made = {
        "metrics_csv": MetricsCsv(**config["metrics_csv"], path=str(folder / "metrics.csv")),
        "progress": TrainingProgress(**config["progress"]),
        "thermal_pause": ThermalPause(**config["thermal_pause"] | on, find_sensors=lambda: {"cpu": Cool()}),
        "cooldown": Cooldown(**config["cooldown"] | on),
        "quiet_hours": QuietHours(**config["quiet_hours"] | {"desk": desk, "enabled": False}, now=minute_of_day),
        "hang_watch": HangWatch(**config["hang_watch"] | on),
        "power_budget": PowerBudget(**config["power_budget"] | on, find_power=Cool),
        "run_control": RunControl(**config["run_control"], desk=desk),
    }
    left_out = {"checkpoint", "samples", "memory_probe", "validation"}
    assert set(made) | left_out == set(config), "a callback is missing in this benchmark"
    return list(made.values())


def boundaries(*, callbacks: bool) -> list[tuple[float, float]]:
    """Seconds between steps: by the clock, and of the processor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        desk, clock = Desk(board=Board(folder), flags=Flags()), Clock()
        method = small.make_method(Idle, total_steps=STEPS)
        method.configure_model()
        method.train()
        others = all_callbacks(folder, desk) if callbacks else []
        corpus = small.make_corpus(small.make_tokenizer(), epochs=None, max_steps=STEPS)
        trainer = small.make_trainer(folder, max_steps=STEPS, callbacks=[clock, *others])
        with watched(folder, desk.board, desk.flags):
            trainer.fit(method, datamodule=NexusDataModule(corpus))
    return clock.seconds


def main() -> int:
    """Measure and print; 1 if the callbacks cost more than they may."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for callbacks in (False, True):
            found[callbacks] += boundaries(callbacks=callbacks)
    computed = [statistics.fmean(seconds for _, seconds in found[callbacks]) for callbacks in (False, True)]
    middle = [statistics.median(seconds for seconds, _ in found[callbacks]) for callbacks in (False, True)]
    cost = (computed[1] - computed[0]) / STEP_SECONDS
    for label, (without, with_all) in (("processor time, mean", computed), ("by the clock, median", middle)):
        print(f"between two steps, {label}: {1e3 * without:.3f} ms without callbacks, {1e3 * with_all:.3f} ms with all")
    print(f"overhead of all callbacks, saves apart, over {len(found[True])} steps of 100 ms: {cost:.2%}")
    return int(cost > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
