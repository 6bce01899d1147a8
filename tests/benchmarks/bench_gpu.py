"""Fine-tuning of large shapes on a GPU: tokens a second, share of the card's speed, peak memory against the plan.

    python -m tests.benchmarks.bench_gpu [--cases 0.5b_full,7b_qlora] [--steps 8] [--device cuda]

Weights are random in the shapes of Qwen2.5; rows are those of `bench_sft`. Each case is a process of its own and takes
its first step before the clock starts. The share of the card's speed (MFU) is the arithmetic of `hardware.cost`, which
leaves attention scores out, over what large bfloat16 products reach on the same card at that time, not over a data
sheet. The peak is torch's own, of tensors; the plan's is that of its training phase, without context and fragmentation.

With `--device cpu` small shapes take the place of the large ones: that shows that the script works, no more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.common import Clock, Result, compose_config, fit_nexus, insist_on_cuda, measure
from tests.benchmarks.models import WEIGHTS, make_model
from tests.benchmarks.sft_cases import write_texts

MODULE = "tests.benchmarks.bench_gpu"
#: Rows of an optimizer step, by device.
ROWS_PER_STEP = {"cuda": 32, "cpu": 4}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        shape: of the model on a GPU, one of `models.SHAPES`.
        adapter: `none`, `lora` or `qlora`.
        tokens: of a micro-batch at most.
        checkpointing: `hardware.gradient_checkpointing`.
    """

    shape: str
    adapter: str
    tokens: int = 8192
    checkpointing: str = "false"


CASES = {
    "0.5b_full": Case("0.5b", "none"),
    "0.5b_lora": Case("0.5b", "lora"),
    "0.5b_qlora": Case("0.5b", "qlora"),
    "1.5b_full": Case("1.5b", "none"),
    "1.5b_lora": Case("1.5b", "lora"),
    "1.5b_qlora": Case("1.5b", "qlora"),
    "7b_lora": Case("7b", "lora", tokens=4096, checkpointing="true"),
    "7b_qlora": Case("7b", "qlora", tokens=4096, checkpointing="true"),
}


def settings_of(case: Case, model: Path, device: str) -> dict[str, Any]:
    """The run's settings, as the command line would compose them."""
    return compose_config(
        [
            f"data.train={model.parent / 'rows.jsonl'}",
            "data.validation_fraction=0",
            f"base_model.path={model}",
            f"adapter={case.adapter}",
            *(["hardware=cpu"] if device == "cpu" else ["hardware=auto", "hardware.accelerator=gpu"]),
            f"hardware.micro_batch_size={ROWS_PER_STEP[device]}",
            f"hardware.micro_batch_tokens={case.tokens}",
            f"hardware.gradient_checkpointing={case.checkpointing}",
            f"data.global_batch_size={ROWS_PER_STEP[device]}",
            "method.schedule=constant",
            "method.lr=1e-5",
        ]
    )


def product_speed(device: str) -> float:
    """Operations a second of large bfloat16 products (float32 on a processor), after some that warm up."""
    import torch

    clock = Clock(device)
    size, rounds = (8192, 20) if device == "cuda" else (1024, 4)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    for _ in range(3):
        a @ a
    started = clock.now()
    for _ in range(rounds):
        a @ a
    return 2 * size**3 * rounds / (clock.now() - started)


def run(case: Case, model: Path, steps: int, folder: Path, device: str) -> Result:
    """One measurement, in this process."""
    from nexus.data.module import NexusDataModule
    from nexus.hardware.cost import training_flops
    from nexus.stages import assemble
    from nexus.stages.planning import checkpointing_of
    from nexus.stages.prepare import prepare

    clock = Clock(device)
    settings = settings_of(case, model, device)
    prepared = prepare(settings)
    prepared.corpus.setup("fit")
    plan = assemble.device_plan(settings, prepared)
    losses = fit_nexus(
        settings,
        prepared,
        steps=steps,
        folder=folder,
        clock=clock,
        make_data=lambda method: NexusDataModule(prepared.corpus),
    )
    # steps draw their rows by seed, all of them as many
    tokens = sum(len(row.input_ids) for row in prepared.corpus.rows) * (steps - 1) / steps
    flops = training_flops(
        prepared.facts,
        tokens=tokens,
        trains_base=case.adapter == "none",
        checkpointing=checkpointing_of(settings["hardware"]),
    )
    result = clock.result(losses[-1])
    return result | {
        "tokens_per_second": tokens / result["seconds"],
        "mfu": flops / result["seconds"] / product_speed(device),
        "planned_mib": plan.train.num_bytes / 2**20,
        "parameters": prepared.facts.num_parameters,
    }


def line(name: str, case: Case, found: Result) -> str:
    """A line of the table."""
    return (
        f"{name:<12}{found['parameters'] / 1e6:>10,.0f} M  {WEIGHTS[case.adapter]:<32}"
        f"{found['tokens_per_second']:>10,.0f}{found['mfu']:>8.2f}{found['peak_mib']:>12,.0f}{found['planned_mib']:>12,.0f}"
        f"{found['planned_mib'] / found['peak_mib']:>9.3f}"
    )


def main() -> None:
    """Measure and print the table; with `--child`, be one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="of " + ", ".join(CASES))
    parser.add_argument("--steps", type=int, default=8, help="of each case, the first not counted")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small shapes, to try the script"
    )
    parser.add_argument("--child", nargs=2, metavar=("NAME", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, model = given.child
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps(run(CASES[name], Path(model), given.steps, Path(folder), given.device)))
        return
    names = given.cases.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"--cases {','.join(unknown)}: there are {', '.join(CASES)}")
    if given.steps < 2:
        parser.error("--steps must be at least 2")
    print(insist_on_cuda() if given.device == "cuda" else "the processor, small shapes in place of the large ones")
    print(f"{'':<58}{'tokens/s':>10}{'MFU':>8}{'peak, MiB':>12}{'planned':>12}{'ratio':>9}")
    for name in names:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            make_model(model, case.shape if given.device == "cuda" else "8k")
            write_texts(Path(folder) / "rows.jsonl", ROWS_PER_STEP[given.device] * given.steps)
            found = measure(MODULE, name, model, ["--steps", str(given.steps), "--device", given.device])
        print(line(name, case, found), flush=True)


if __name__ == "__main__":
    main()
