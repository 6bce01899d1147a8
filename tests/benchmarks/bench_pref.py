"""Preference methods against TRL and a bare loop: same weights, pairs, tokens, optimizer; one process each.

    python -m tests.benchmarks.bench_pref [--cases dpo,orpo,orpo_152k] [--rounds 5] [--device cpu]

The processes take turns step by step. Counted is processor time of every step but the first (imports are left out), and
the answers' tokens. Where the reference is to run in each step, the time of Nexus' pass for it is added, by its share
of the steps: over one epoch that is the same work.

TRL runs at the setting that is fair to it: float32, no gradient checkpointing (its default would compute every layer
twice), and its fused head skips prompt positions, which on a processor it does only when told that the device is a
Triton one. Its ORPO trainer (experimental) builds all logits and adds the prompt of the chosen answer to the
likelihood, hence another loss; that is the trainer as it is. The bare loop has all levers and no framework: the limit.

With `--device cuda` the model has the shape of a 0.5 B one, adapters are trained in bf16 beside a bf16 and an nf4 base,
time is the wall's and memory the GPU's.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.bare import answer_sums, bare_attention, lay_out
from tests.benchmarks.common import (
    Bench,
    Clock,
    Comparison,
    Result,
    Results,
    Row,
    compose_config,
    drive,
    fit_nexus,
    table,
)
from tests.benchmarks.models import SHAPES, WEIGHTS, load_network, make_pairs, peft_config

MODULE = "tests.benchmarks.bench_pref"
LEARNING_RATE = 1e-4
BETA = 0.1
DPO_MODES = {
    "nexus": "Nexus: method dpo, reference kept (its default)",
    "nexus_each": "Nexus: method dpo, the reference's pass counted",  # made of the runs of the first
    "loop": "bare PyTorch loop, reference kept: the limit",
    "trl_kept": "TRL DPOTrainer, precompute_ref_log_probs, fair",
    "trl_each": "TRL DPOTrainer, reference each step (default), fair",
}
ORPO_MODES = {
    "nexus": "Nexus: method orpo",
    "loop": "bare PyTorch loop: the limit",
    "trl": "TRL ORPOTrainer (experimental)",
}


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        method: `dpo` or `orpo`.
        shape: of the model, one of `SHAPES`.
        pairs: of one step.
        device: `cpu` or `cuda`.
        adapter: `none`, `lora` or `qlora`.
        speed: wanted factors, of DPO kept, each and default, of ORPO one.
        memory: wanted share of TRL's memory; None for no claim.
    """

    method: str
    shape: str
    pairs: int
    device: str = "cpu"
    adapter: str = "none"
    speed: tuple[float, ...] = (1.9, 2.1, 2.7)
    memory: float | None = None

    @property
    def modes(self) -> dict[str, str]:
        """What is compared."""
        return DPO_MODES if self.method == "dpo" else ORPO_MODES

    @property
    def measured(self) -> list[str]:
        """The modes that have a process of their own."""
        return [mode for mode in self.modes if mode != "nexus_each"]

    @property
    def comparisons(self) -> list[Comparison]:
        """The claims."""
        if self.method == "dpo":
            titles = ("both references kept", "both references run in each step", "default against default")
            ours, theirs = ("nexus", "nexus_each", "nexus"), ("trl_kept", "trl_each", "trl_each")
        else:
            titles, ours, theirs = ("ORPO",), ("nexus",), ("trl",)
        found = [
            Comparison(f"{title}: as fast as TRL times", *rest)
            for title, *rest in zip(titles, ours, theirs, self.speed, strict=True)
        ]
        if self.memory is not None:
            found.append(Comparison("peak memory by TRL's", "nexus", "trl", self.memory, of="memory"))
        return [*found, Comparison("speed by the bare loop's", "nexus", "loop", 0.9)]


CASES = {
    "dpo": Case("dpo", "8k", pairs=4),
    "orpo": Case("orpo", "8k", pairs=4, speed=(2.4,)),
    "orpo_152k": Case("orpo", "152k", pairs=2, speed=(3.8,), memory=0.45),
}
CUDA_CASES = {
    "dpo_bf16": Case("dpo", "0.5b", pairs=8, device="cuda", adapter="lora"),
    "dpo_nf4": Case("dpo", "0.5b", pairs=8, device="cuda", adapter="qlora"),
    "orpo_bf16": Case("orpo", "0.5b", pairs=8, device="cuda", adapter="lora", speed=(2.4,), memory=0.45),
    "orpo_nf4": Case("orpo", "0.5b", pairs=8, device="cuda", adapter="qlora", speed=(2.4,), memory=0.45),
}


def settings_of(case: Case, model: Path) -> dict[str, Any]:
    """The Nexus run."""
    return compose_config(
        [
            "+capability=tools",
            f"base_model.path={model}",
            f"adapter={case.adapter}",
            f"method={case.method}",
            *(["hardware=cpu"] if case.device == "cpu" else ["hardware=auto", "hardware.accelerator=gpu"]),
            f"hardware.micro_batch_size={case.pairs}",
            "hardware.micro_batch_tokens=null",
            f"data.global_batch_size={case.pairs}",
            "data.shuffle=false",
            "method.schedule=constant",
            "method.warmup_ratio=0.0",
            f"method.beta={BETA}",
            f"method.lr={LEARNING_RATE}",
            "method.optimizer.betas=[0.9,0.999]",
        ]
    )


def pairs_of(case: Case, steps: int) -> list[Any]:
    """The pairs of all steps."""
    return make_pairs(case.pairs * steps, SHAPES[case.shape]["vocab_size"])


def run_nexus(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """Nexus as a run uses it, from the reference on."""
    from nexus.data.module import NexusDataModule
    from nexus.data.token_rows import flat_rows
    from nexus.stages import assemble
    from nexus.stages.prepare import prepare
    from nexus.stages.reference import attach_reference

    clock = Clock(case.device, turns=True)
    reference = [0.0]
    settings = settings_of(case, model)
    prepared = prepare(settings)
    prepared.corpus.rows = pairs_of(case, steps)
    prepared.corpus.flat = flat_rows(prepared.corpus.rows)

    def make_data(method: Any) -> Any:
        data = NexusDataModule(prepared.corpus, loss_unit=method.loss_unit)
        if method.needs_reference:
            device, precision = assemble.device_of(settings)
            file = folder / "reference.safetensors"
            started = clock.now()
            attach_reference(
                method.policy, data, file=file, device=device.kind, precision=precision, tell=lambda line: None
            )
            reference[0] = clock.now() - started
        return data

    losses = fit_nexus(settings, prepared, steps=steps, folder=folder, clock=clock, make_data=make_data)
    return clock.result(statistics.mean(losses), reference=reference[0])


def run_loop(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """The limit: formulas by hand, no framework."""
    import torch
    from torch.nn.functional import logsigmoid

    clock = Clock(case.device, turns=True)
    settings = settings_of(case, model)
    network = load_network(model, settings, case.device, with_adapter=True)
    switched = bare_attention(network)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    pairs = [(row.prompt_ids, row.completions) for row in pairs_of(case, steps)]
    batches = [lay_out(pairs[start : start + case.pairs], case.device) for start in range(0, len(pairs), case.pairs)]
    with switched, torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.device == "cuda"):
        with torch.no_grad():
            kept = [answer_sums(network, batch) for batch in batches] if case.method == "dpo" else []
        losses = []
        for step, batch in enumerate(batches):
            sums = answer_sums(network, batch)
            if case.method == "dpo":
                chosen, rejected = (sums - kept[step]).view(-1, 2).unbind(1)
                loss = -logsigmoid(BETA * (chosen - rejected)).mean()
            else:
                means = sums / torch.bincount(batch.rows)
                chosen, rejected = (means - torch.log1p(-means.exp())).view(-1, 2).unbind(1)
                loss = -means[::2].mean() - BETA * logsigmoid(chosen - rejected).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            clock.end_step()
            clock.work.append(len(batch.targets))
    return clock.result(statistics.mean(losses))


def run_trl(case: Case, model: Path, steps: int, folder: Path, *, keep: bool = False) -> Result:
    """TRL's trainer on the same tokens."""
    import datasets
    import torch
    import trl.trainer.utils
    from transformers import TrainerCallback

    # the only use in that module: whether positions without a label are left out of the head
    trl.trainer.utils._use_triton = lambda device: True
    clock = Clock(case.device, turns=True)
    reference = [0.0]
    losses = []
    settings = settings_of(case, model)
    rows = pairs_of(case, steps)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.end_step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    common: dict[str, Any] = dict(
        output_dir=str(folder),
        report_to=[],
        use_cpu=case.device == "cpu",
        bf16=case.device == "cuda",
        gradient_checkpointing=False,
        per_device_train_batch_size=case.pairs,
        train_sampling_strategy="sequential",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        num_train_epochs=1,
        max_length=2048,
        beta=BETA,
        logging_steps=steps,
        save_strategy="no",
        disable_tqdm=True,
    )
    make = _dpo_trainer if case.method == "dpo" else _orpo_trainer
    trainer = make(
        common | ({"precompute_ref_log_probs": keep} if case.method == "dpo" else {}),
        datasets.Dataset.from_list([_trl_row(row) for row in rows]),
        clock,
        reference,
        model=load_network(model, settings, case.device, with_adapter=False),
        peft_config=peft_config(settings),
        callbacks=[Watch()],
    )
    trainer.data_collator = _counting(trainer.data_collator, clock)
    torch.manual_seed(0)
    trainer.train()
    return clock.result(losses[-1], reference=reference[0])


def _trl_row(row: Any) -> dict[str, Any]:
    chosen, rejected = row.completions
    return {
        **{"prompt": "p", "chosen": "c", "rejected": "r"},  # ORPO looks for text before it asks for tokens
        **{"prompt_ids": row.prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected},
    }


def _counting(collate: Any, clock: Clock) -> Any:
    """A collator that tells the clock how many tokens are learned in the step."""

    def counted(examples: Any) -> Any:
        clock.work.append(sum(len(e["chosen_ids"]) + len(e["rejected_ids"]) for e in examples))
        return collate(examples)

    return counted


def _dpo_trainer(arguments: dict[str, Any], rows: Any, clock: Clock, reference: list[float], **more: Any) -> Any:
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset.remove_columns(["prompt", "chosen", "rejected"])

        def _precompute_ref_logps(self, *args: Any) -> Any:
            started = clock.now()
            found = super()._precompute_ref_logps(*args)
            reference[0] = clock.now() - started
            return found

    tokenizer = AutoTokenizer.from_pretrained(more["model"].config._name_or_path)
    return Tokenized(args=DPOConfig(**arguments), train_dataset=rows, processing_class=tokenizer, **more)


def _orpo_trainer(arguments: dict[str, Any], rows: Any, clock: Clock, reference: list[float], **more: Any) -> Any:
    from transformers import AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class Tokenized(ORPOTrainer):
        def tokenize_row(self, feature: Any, model: Any = None) -> Any:
            prompt = feature["prompt_ids"]
            found = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
            for name in ("chosen", "rejected"):
                answer = feature[f"{name}_ids"]
                found[f"{name}_input_ids"] = prompt + answer
                found[f"{name}_attention_mask"] = [1] * len(prompt + answer)
                found[f"{name}_labels"] = [-100] * len(prompt) + answer
            return found

    tokenizer = AutoTokenizer.from_pretrained(more["model"].config._name_or_path)
    return Tokenized(args=ORPOConfig(**arguments), train_dataset=rows, processing_class=tokenizer, **more)


def run(case: Case, mode: str, model: Path, steps: int, folder: Path) -> Result:
    """One measurement, in this process."""
    if mode == "nexus":
        return run_nexus(case, model, steps, folder)
    if mode == "loop":
        return run_loop(case, model, steps, folder)
    return run_trl(case, model, steps, folder, keep=mode == "trl_kept")


def _each(result: Result, steps: int) -> Result:
    """The same run with the reference's pass in the time of its steps."""
    return result | {"step_seconds": [seconds + result["reference"] / steps for seconds in result["step_seconds"]]}


def print_case(name: str, case: Case, results: Results, steps: int, machine: str) -> None:
    """Table and claims."""
    results = {mode: results[mode] if mode in results else _each(results["nexus"], steps) for mode in case.modes}
    rows = pairs_of(case, steps)
    prompts, answers = sum(len(row.prompt_ids) for row in rows), sum(len(a) for row in rows for a in row.completions)
    print(
        f"{name}: {steps - 1} steps of {case.pairs} pairs; mean prompt {prompts / len(rows):.0f} tokens, mean answer "
        f"{answers / len(rows) / 2:.0f}; vocabulary {SHAPES[case.shape]['vocab_size']:,}; {WEIGHTS[case.adapter]}; "
        f"{machine}; median (least-most)\n"
    )
    lines = [Row.of_steps(title, results[mode]) for mode, title in case.modes.items()]
    print(table(lines, work="answer tokens", device=case.device) + "\n")
    for comparison in case.comparisons:
        print(comparison.line(results))
    if case.method == "dpo":
        passes = (results["nexus"]["reference"], results["trl_kept"]["reference"])
        print(f"reference of all {len(rows)} pairs, once: Nexus {passes[0]:.1f} s, TRL {passes[1]:.1f} s")
    print(flush=True)


BENCH = Bench(MODULE, CASES, CUDA_CASES, run, print_case)

if __name__ == "__main__":
    drive(__doc__, BENCH)
