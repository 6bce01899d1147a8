"""Supervised fine-tuning against TRL and a bare loop: same weights, rows, optimizer; one thread; one process each.

    python -m tests.benchmarks.bench_sft [--case tiny] [--seconds 110] [--rounds 5] [--steps 5] [--modes nexus,loop]

`--case` is a vocabulary of 8,192 (tiny, lora) or of 151,936 (wide, wide_bf16), on prompts and answers in a made-up
language of 65 to 842 tokens, 296 in the mean, of which 61 % are learned; a model so small that only the overhead of a
step is left (overhead); or the time until the first step is done, with imports and tokenizing (start).

The processes take turns, round after round, for overhead every 20 steps, until the time is used up. Counted is
processor time between the first and the last optimizer step (imports, tokenizing and the first step are left out), and
the target tokens of those steps.

TRL runs at the setting that is fair to it: no gradient checkpointing (its default would compute every layer twice), and
its fused head skips prompt positions, which on a processor it does only when told that the device is a Triton one;
`trl_as_is` leaves that out. Gains of Nexus that remain come from the layout without padding and from the loss.
The bare packed loop has the same levers and no framework: the limit. Of `lora` each draws its adapter's first weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.common import (
    Clock,
    Result,
    Row,
    compose_config,
    fit_nexus,
    measure,
    spread,
    step_in_turns,
    table,
    take_turns,
)
from tests.benchmarks.models import load_network, make_model, peft_config
from tests.benchmarks.sft_cases import CASES, START_ROWS, Case, start_nexus, start_trl

MODULE = "tests.benchmarks.bench_sft"
LEARNING_RATE = 2e-3
MODES = {
    "nexus": "Nexus: method sft, packed, through Lightning",
    "packed": "bare PyTorch loop, packed: the limit",
    "loop": "bare PyTorch loop, padded, transformers' own loss",
    "trl_padded": "TRL SFTTrainer, padded (its default), fair",
    "trl_grouped": "TRL SFTTrainer, padded, grouped by length, fair",
    "trl_packed": "TRL SFTTrainer, packing (bfd), fair",
    "trl_as_is": "TRL SFTTrainer, padded, as it is on a processor",
}
#: All but the one that TRL's makers would call unfair.
DEFAULT_MODES = [mode for mode in MODES if mode != "trl_as_is"]


def config(case: Case, model: Path, steps: int) -> dict[str, Any]:
    """The run's settings, as the command line would compose them."""
    return compose_config(
        [
            f"data.train={model.parent / 'rows.jsonl'}",
            "data.validation_fraction=0",
            f"base_model.path={model}",
            "hardware=cpu",
            f"hardware.micro_batch_size={case.rows_per_step}",
            "hardware.micro_batch_tokens=null",
            f"data.global_batch_size={case.rows_per_step}",
            "data.shuffle=false",
            "method.schedule=constant",
            "method.warmup_ratio=0.0",
            f"method.lr={LEARNING_RATE}",
            "method.optimizer.betas=[0.9,0.999]",
            *case.overrides,
        ]
    )


def read_corpus(case: Case, model: Path, steps: int) -> tuple[dict[str, Any], Any]:
    """Settings, and what `prepare` made of them: the corpus is read."""
    from nexus.stages.prepare import prepare

    settings = config(case, model, steps)
    prepared = prepare(settings)
    prepared.corpus.setup("fit")
    assert len(prepared.corpus.rows) == case.rows_per_step * steps
    return settings, prepared


def run_nexus(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """Nexus as a run uses it: loader, method, metrics and progress."""
    from nexus.data.module import NexusDataModule

    clock = Clock(turns=case.turns)
    settings, prepared = read_corpus(case, model, steps)
    losses = fit_nexus(
        settings,
        prepared,
        steps=steps,
        folder=folder,
        clock=clock,
        make_data=lambda method: NexusDataModule(prepared.corpus),
    )
    return clock.result(losses[-1])


def run_loop(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """What one writes by hand: padding, transformers' own loss on all logits, AdamW, clipping."""
    from nexus.data.collate import collate_micro_batch

    def losses(network: Any, batches: list[Any]) -> Iterator[tuple[Any, int]]:
        for rows in batches:
            batch = collate_micro_batch(rows, packing=False, pad_token_id=0, loss_scale=1.0)
            with case.arithmetic():
                # only the loss is kept: logits would live through the next forward pass
                loss = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
            yield loss, batch.num_target_tokens

    return _loop(case, model, steps, losses)


def run_packed(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """What one writes by hand who knows every lever: no padding, the head on learned positions only, huge pages."""
    from torch.nn.functional import cross_entropy

    from nexus.hardware.processor import use_processor
    from tests.benchmarks.bare import answer_logits, bare_attention, lay_out_rows

    def losses(network: Any, batches: list[Any]) -> Iterator[tuple[Any, int]]:
        with bare_attention(network):
            for rows in batches:
                layout = lay_out_rows([(row.input_ids, row.loss_mask) for row in rows], "cpu")
                with case.arithmetic():
                    loss = cross_entropy(answer_logits(network, layout).float(), layout.targets)
                yield loss, len(layout.targets)

    use_processor(threads=1)
    return _loop(case, model, steps, losses)


def _loop(case: Case, model: Path, steps: int, losses: Callable[[Any, list[Any]], Iterator[tuple[Any, int]]]) -> Result:
    """Train on losses and their numbers of target tokens, made of the network and the rows of each step."""
    import torch

    clock = Clock(turns=case.turns)
    settings, prepared = read_corpus(case, model, steps)
    network = load_network(model, settings, "cpu", with_adapter=True)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    rows, size = prepared.corpus.rows, case.rows_per_step
    last = 0.0
    for loss, targets in losses(network, [rows[start : start + size] for start in range(0, len(rows), size)]):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()
        clock.end_step()
        clock.work.append(targets)
    return clock.result(last)


def run_trl(case: Case, model: Path, steps: int, folder: Path, *, fair: bool = True, **changes: Any) -> Result:
    """TRL's trainer on the same tokenized rows."""
    import datasets
    import trl
    import trl.trainer.utils
    from transformers import TrainerCallback

    if fair:
        # the only use in that module: whether positions without a label are left out of the head
        trl.trainer.utils._use_triton = lambda device: True
    clock = Clock(turns=case.turns)
    run_settings, prepared = read_corpus(case, model, steps)
    corpus = prepared.corpus
    rows = []
    for row in corpus.rows:
        labels = [token if counts else -100 for token, counts in zip(row.input_ids, row.loss_mask, strict=True)]
        rows.append({"input_ids": row.input_ids, "labels": labels})
    tokens = sum(len(row.input_ids) for row in corpus.rows)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.end_step()

    settings = {
        "per_device_train_batch_size": case.rows_per_step,
        "train_sampling_strategy": "sequential",
        "packing": False,
        **case.trl,
    } | changes
    if settings["packing"]:  # as many tokens a step as the others have
        settings["per_device_train_batch_size"] = max(1, round(tokens / steps / 1024))
    trainer = trl.SFTTrainer(
        model=load_network(model, run_settings, "cpu", with_adapter=False),
        args=trl.SFTConfig(
            output_dir=str(folder),
            report_to=[],
            use_cpu=True,
            bf16=case.half,
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
        peft_config=peft_config(run_settings),
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


RUNS: dict[str, Callable[[Case, Path, int, Path], Result]] = {
    "nexus": run_nexus,
    "packed": run_packed,
    "loop": run_loop,
    "trl_padded": run_trl,
    "trl_grouped": lambda *a: run_trl(*a, train_sampling_strategy="group_by_length"),
    "trl_packed": lambda *a: run_trl(*a, packing=True),
    "trl_as_is": lambda *a: run_trl(*a, fair=False),
}
STARTS: dict[str, Callable[[Case, Path, Path], Result]] = {"nexus": start_nexus, "trl_padded": start_trl}


def rounds(name: str, modes: Iterable[str], *, seconds: float, most: int, steps: int) -> dict[str, list[Result]]:
    """Measure a case in turns until the time is used up, at least once each.

    Args:
        name: one of `CASES`.
        modes: what is compared.
        seconds: no round begins that would end later.
        most: at most so many rounds.
        steps: of each measurement.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, CASES[name].shape)
        rows = START_ROWS if name == "start" else CASES[name].rows_per_step * steps
        CASES[name].write_rows(Path(folder) / "rows.jsonl", rows)

        arguments = ["--case", name, "--steps", str(steps)]
        if CASES[name].turns:
            at_a_time, made = CASES[name].turns, []
            started = time.monotonic()
            while not made or (len(made) < most and (time.monotonic() - started) * (1 + 1 / len(made)) <= seconds):
                made.append(step_in_turns(MODULE, modes, model, steps, arguments, at_a_time=at_a_time))
            return {mode: [one[mode] for one in made] for mode in modes}

        def measure_one(mode: str) -> Result:
            started = time.time()
            found = measure(MODULE, mode, model, arguments)
            return found | {"wall": found["moment"] - started} if name == "start" else found

        return take_turns(modes, measure_one, seconds=seconds, most=most)


def compare(results: dict[str, list[Result]], mode: str, what: str) -> str:
    """Median and range over the rounds of Nexus' figure by another mode's; neighbors in time are compared."""
    pairs = zip(results["nexus"], results[mode], strict=True)
    return spread([ours[what] / theirs[what] for ours, theirs in pairs], ".2f")


def show_starts(results: dict[str, list[Result]]) -> None:
    """Print how long the first step takes to come."""
    count = len(next(iter(results.values())))
    print(f"seconds from the process's start until its first optimizer step is done; {count} rounds\n")
    for mode, runs in results.items():
        cpu, wall = (spread([run[what] for run in runs], ".2f") for what in ("cpu", "wall"))
        print(f"{MODES[mode]:<52}{cpu:>24} CPU s{wall:>24} s")
    if len(results) == len(STARTS):
        print(f"\nNexus by TRL: {compare(results, 'trl_padded', 'cpu')} of the CPU seconds")


def show(case: Case, results: dict[str, list[Result]], steps: int) -> None:
    """Print table and comparisons."""
    print(f"{case.title}; {steps} steps of {case.rows_per_step} rows, one thread; median (least-most)\n")
    print(table([Row.of_runs(MODES[mode], runs) for mode, runs in results.items()], work="target tokens"))
    print("\nloss: last step's, of TRL the mean over its steps; grouped and packed rows come in another order")
    for mode in [mode for mode in results if mode != "nexus" and "nexus" in results]:
        times, memory = (compare(results, mode, what) for what in ("seconds", "peak_mib"))
        print(f"Nexus by {mode}, round by round: {times} of its time, {memory} of its memory")
    if case is not CASES["overhead"] or "packed" not in results:
        return
    for mode in [mode for mode in results if mode != "packed"]:
        pairs = zip(results[mode], results["packed"], strict=True)
        more = [1e3 * seconds_more(framework, bare, case.turns) for framework, bare in pairs]
        print(f"{MODES[mode]}: a step takes {spread(more, '.2f')} ms more than the bare packed loop's")


def seconds_more(ours: Result, theirs: Result, turns: int) -> float:
    """Seconds of a step beyond another mode's: the median over turns, each compared with its neighbor in time.

    Args:
        ours: of a mode.
        theirs: of another one in the same round.
        turns: steps of a turn; the first turn warms up.
    """
    pairs = list(zip(ours["step_seconds"], theirs["step_seconds"], strict=True))[turns - 1 :]
    each = [pairs[start : start + turns] for start in range(0, len(pairs), turns)]
    return statistics.median(statistics.fmean(a - b for a, b in turn) for turn in each)


def run(name: str, mode: str, model: Path, steps: int, folder: Path) -> Result:
    """One measurement, in this process."""
    case = CASES[name]
    return STARTS[mode](case, model, folder) if name == "start" else RUNS[mode](case, model, steps, folder)


def main() -> None:
    """Measure and print the table; with `--child`, be one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*CASES], default="tiny")
    parser.add_argument("--seconds", type=float, default=110.0, help="no round begins that would end later")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many rounds")
    parser.add_argument("--steps", type=int, help="of one measurement, the first not counted; else as the case says")
    parser.add_argument("--modes", help=f"of {', '.join(MODES)}; else as the case says")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    case = CASES[given.case]
    steps = case.steps if given.steps is None else given.steps
    if given.child:
        mode, model = given.child
        import torch

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps(run(given.case, mode, Path(model), steps, Path(folder))))
        return
    modes = given.modes.split(",") if given.modes else case.modes or DEFAULT_MODES
    known = STARTS if given.case == "start" else RUNS
    unknown = [mode for mode in modes if mode not in known]
    if unknown:
        parser.error(f"--modes {','.join(unknown)}: there are {', '.join(known)}")
    if steps < 2 or given.rounds < 1:
        parser.error("--steps must be at least 2, --rounds at least 1")
    results = rounds(given.case, modes, seconds=given.seconds, most=given.rounds, steps=steps)
    if given.case == "start":
        show_starts(results)
    else:
        show(case, results, steps)


if __name__ == "__main__":
    main()
