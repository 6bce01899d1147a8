"""Supervised fine-tuning against TRL and a bare loop: same weights, rows, optimizer; one thread; one process each.

    python -m tests.benchmarks.bench_sft [--seconds 110] [--rounds 5] [--steps 5] [--modes nexus,trl_as_is]

The processes take turns, round after round, until the time is used up. Counted is processor time between the first and
the last optimizer step (imports, tokenizing and the first step are left out), and the target tokens of those steps.

TRL runs at the setting that is fair to it: no gradient checkpointing (its default would compute every layer twice), and
its fused head skips prompt positions, which on a processor it does only when told that the device is a Triton one;
`trl_as_is` leaves that out. Gains of Nexus that remain come from the layout without padding and from the loss.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.common import ASSET, Clock, Result, Row, compose_config, fit_nexus, measure, table, take_turns

MODULE = "tests.benchmarks.bench_sft"
ROWS_PER_STEP = 16
LEARNING_RATE = 2e-3
MODES = {
    "nexus": "Nexus: method sft, packed, through Lightning",
    "loop": "bare PyTorch loop, padded, transformers' own loss",
    "trl_padded": "TRL SFTTrainer, padded (its default), fair",
    "trl_grouped": "TRL SFTTrainer, padded, grouped by length, fair",
    "trl_packed": "TRL SFTTrainer, packing (bfd), fair",
    "trl_as_is": "TRL SFTTrainer, padded, as it is on a processor",
}
#: All but the one that TRL's makers would call unfair.
DEFAULT_MODES = [mode for mode in MODES if mode != "trl_as_is"]


def config(model: Path, steps: int) -> dict[str, Any]:
    """The run's settings, as the command line would compose them."""
    return compose_config(
        [
            "+capability=tools",
            f"base_model.path={model}",
            "hardware=cpu",
            f"hardware.micro_batch_size={ROWS_PER_STEP}",
            "hardware.micro_batch_tokens=null",
            f"data.global_batch_size={ROWS_PER_STEP}",
            "data.shuffle=false",
            f"scale.rows_per_source={ROWS_PER_STEP * steps}",
            "method.schedule=constant",
            "method.warmup_ratio=0.0",
            f"method.lr={LEARNING_RATE}",
            "method.optimizer.betas=[0.9,0.999]",
        ]
    )


def read_corpus(model: Path, steps: int) -> tuple[dict[str, Any], Any]:
    """Settings, and what `prepare` made of them: the corpus of the embedded tools rows is read."""
    from nexus.stages.prepare import prepare

    settings = config(model, steps)
    prepared = prepare(settings)
    prepared.corpus.setup("fit")
    assert len(prepared.corpus.rows) == ROWS_PER_STEP * steps
    return settings, prepared


def run_nexus(model: Path, steps: int, folder: Path) -> Result:
    """Nexus as a run uses it: loader, method, metrics and progress."""
    from nexus.data.module import NexusDataModule

    clock = Clock()
    settings, prepared = read_corpus(model, steps)
    losses = fit_nexus(
        settings,
        prepared,
        steps=steps,
        folder=folder,
        clock=clock,
        make_data=lambda method: NexusDataModule(prepared.corpus),
    )
    return clock.result(losses[-1])


def run_loop(model: Path, steps: int, folder: Path) -> Result:
    """What one writes by hand: padding, transformers' own loss on all logits, AdamW, clipping."""
    import torch
    from transformers import AutoModelForCausalLM

    from nexus.data.collate import collate_micro_batch

    clock = Clock()
    corpus = read_corpus(model, steps)[1].corpus
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    loss = torch.zeros(())
    for step in range(steps):
        rows = corpus.rows[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]
        batch = collate_micro_batch(rows, packing=False, pad_token_id=0, loss_scale=1.0)
        loss = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.end_step()
        clock.work.append(batch.num_target_tokens)
    return clock.result(loss.item())


def run_trl(model: Path, steps: int, folder: Path, *, fair: bool = True, **changes: Any) -> Result:
    """TRL's trainer on the same tokenized rows."""
    import datasets
    import torch
    import trl
    import trl.trainer.utils
    from transformers import AutoModelForCausalLM, TrainerCallback

    if fair:
        # the only use in that module: whether positions without a label are left out of the head
        trl.trainer.utils._use_triton = lambda device: True
    clock = Clock()
    corpus = read_corpus(model, steps)[1].corpus
    rows = []
    for row in corpus.rows:
        labels = [token if counts else -100 for token, counts in zip(row.input_ids, row.loss_mask, strict=True)]
        rows.append({"input_ids": row.input_ids, "labels": labels})
    tokens = sum(len(row.input_ids) for row in corpus.rows)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.end_step()

    settings = {
        "per_device_train_batch_size": ROWS_PER_STEP,
        "train_sampling_strategy": "sequential",
        "packing": False,
    } | changes
    if settings["packing"]:  # as many tokens a step as the others have
        settings["per_device_train_batch_size"] = max(1, round(tokens / steps / 1024))
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.SFTConfig(
            output_dir=str(folder),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            num_train_epochs=1,
            max_length=1024,
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=corpus.tokenizer,
        callbacks=[Watch()],
    )
    collate = trainer.data_collator

    def counted(examples: Any) -> Any:
        batch = collate(examples)
        clock.work.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch

    trainer.data_collator = counted
    result = trainer.train()
    return clock.result(result.training_loss)


RUNS: dict[str, Callable[..., Result]] = {
    "nexus": run_nexus,
    "loop": run_loop,
    "trl_padded": run_trl,
    "trl_grouped": lambda *a: run_trl(*a, train_sampling_strategy="group_by_length"),
    "trl_packed": lambda *a: run_trl(*a, packing=True),
    "trl_as_is": lambda *a: run_trl(*a, fair=False),
}


def make_model(folder: Path) -> None:
    """The shipped architecture and tokenizer with fresh random weights: speed does not depend on training."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ASSET), dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ASSET).save_pretrained(folder)


def rounds(modes: Iterable[str], *, seconds: float, most: int, steps: int) -> dict[str, list[Result]]:
    """Measure in turns until the time is used up, at least once each."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        return take_turns(
            modes, lambda mode: measure(MODULE, mode, model, ["--steps", str(steps)]), seconds=seconds, most=most
        )


def main() -> None:
    """Measure and print the table; with `--child`, be one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=110.0, help="no round begins that would end later")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many rounds")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of one measurement")
    parser.add_argument("--modes", default=",".join(DEFAULT_MODES), help=f"of {', '.join(MODES)}")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        mode, model = given.child
        import torch

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps(RUNS[mode](Path(model), given.steps, Path(folder))))
        return
    results = rounds(given.modes.split(","), seconds=given.seconds, most=given.rounds, steps=given.steps)
    print(f"{given.steps} steps of {ROWS_PER_STEP} tools rows, float32, one thread; median (least-most)\n")
    print(table([Row.of_runs(MODES[mode], runs) for mode, runs in results.items()], work="target tokens"))
    print("\nloss: last step's, of TRL the mean over its steps; grouped and packed rows come in another order")


if __name__ == "__main__":
    main()
