"""GRPO steps and rollouts against TRL, transformers and a bare loop: same weights, prompts, counts; one process each.

    python -m tests.benchmarks.bench_rl [--cases grpo,grpo_long,rollout,rollout_unequal] [--rounds 5] [--device cpu]

The processes take turns step by step. Counted is processor time of every step but the first (imports are left out), and
the sampled tokens. Weights are random, and the end token lies beyond the vocabulary, so
every answer takes all its tokens; a group has 8 answers, their reward is the share of vowels in their text.

TRL runs at the setting that is fair to it: float32, no gradient checkpointing, and a fused head that skips prompt
positions also on a processor. No run has a divergence from a reference, which TRL leaves out by default.

Rollouts alone are measured against `generate` as TRL calls it. Where lengths are unequal, Nexus ends an answer at any
of a set of tokens; its lengths then are forced on the others, so that all sample as many tokens. The bare loop has all
levers and no framework: the limit.

With `--device cuda` the model has the shape of a 0.5 B one, adapters are trained in bf16 beside a bf16 and an nf4 base,
time is the wall's and memory the GPU's. The bare decoder reads plain weights, so it has no part in the nf4 case.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.bare import answer_logits, bare_attention, lay_out
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
from tests.benchmarks.models import SHAPES, WEIGHTS, load_network, make_prompts, peft_config

MODULE = "tests.benchmarks.bench_rl"
LEARNING_RATE = 1e-5
EACH = 8
SEED = 7
GRPO_MODES = {
    "nexus": "Nexus: method grpo",
    "loop": "bare PyTorch loop: the limit",
    "trl": "TRL GRPOTrainer with transformers' generate, fair",
}
ROLLOUT_MODES = {
    "nexus": "Nexus: rollout.generate, the native engine",
    "loop": "bare PyTorch decoder: the limit",
    "generate": "transformers' generate, as TRL calls it",
}


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        kind: `grpo` or `rollout`.
        prompt: shortest and longest prompt.
        answer: tokens of an answer, at most.
        prompts: of one step.
        ends: tokens of the vocabulary that end an answer, as a share of one in so many; None for none.
        shape: of the model, one of `SHAPES`.
        device: `cpu` or `cuda`.
        adapter: `none`, `lora` or `qlora`.
        goal: wanted factor.
    """

    kind: str
    prompt: tuple[int, int]
    answer: int
    goal: float
    prompts: int = 2
    ends: int | None = None
    shape: str = "8k"
    device: str = "cpu"
    adapter: str = "none"

    @property
    def modes(self) -> dict[str, str]:
        """What is compared."""
        modes = GRPO_MODES if self.kind == "grpo" else ROLLOUT_MODES
        return {mode: title for mode, title in modes.items() if mode != "loop" or self.adapter != "qlora"}

    @property
    def measured(self) -> list[str]:
        """The modes that have a process of their own: all."""
        return list(self.modes)

    @property
    def comparisons(self) -> list[Comparison]:
        """The claims."""
        theirs = list(self.modes)[-1]
        name = "TRL's GRPO step" if self.kind == "grpo" else "transformers' generate"
        found = [Comparison(f"as fast as {name} times", "nexus", theirs, self.goal)]
        if "loop" in self.modes:
            found.append(Comparison("speed by the bare loop's", "nexus", "loop", 0.9))
        return found

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        return [] if self.ends is None else list(range(16, SHAPES[self.shape]["vocab_size"], self.ends))


CASES = {
    "grpo": Case("grpo", (64, 72), 64, 1.5),
    "grpo_long": Case("grpo", (184, 200), 64, 2.0),
    "rollout": Case("rollout", (64, 72), 64, 1.3),
    "rollout_unequal": Case("rollout", (64, 72), 128, 1.3, ends=48),
}
_GPU: dict[str, Any] = dict(shape="0.5b", device="cuda", prompts=4)
CUDA_CASES = {
    "grpo_bf16": Case("grpo", (64, 72), 128, 1.5, adapter="lora", **_GPU),
    "grpo_long_bf16": Case("grpo", (376, 392), 128, 2.0, adapter="lora", **_GPU),
    "grpo_nf4": Case("grpo", (64, 72), 128, 1.5, adapter="qlora", **_GPU),
    "rollout_bf16": Case("rollout", (64, 72), 128, 1.3, adapter="lora", **_GPU),
    "rollout_unequal_bf16": Case("rollout", (64, 72), 256, 1.3, ends=96, adapter="lora", **_GPU),
}


def settings_of(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """The Nexus run."""
    reward = folder / "reward.py"
    reward.write_text("def vowels(completion):\n    return sum(c in 'aeiou' for c in completion) / 100\n")
    return compose_config(
        [
            "+capability=tools",
            f"base_model.path={model}",
            f"adapter={case.adapter}",
            "method=grpo",
            *(["hardware=cpu"] if case.device == "cpu" else ["hardware=auto", "hardware.accelerator=gpu"]),
            f"hardware.micro_batch_size={case.prompts}",
            "hardware.micro_batch_tokens=null",
            f"data.global_batch_size={case.prompts}",
            "data.shuffle=false",
            "method.schedule=constant",
            "method.warmup_ratio=0.0",
            f"method.lr={LEARNING_RATE}",
            "method.kl_coef=0",
            "method.epochs=1",
            "method.optimizer.betas=[0.9,0.999]",
            f"method.rollout.num_generations={EACH}",
            f"method.rollout.batch_size={EACH * case.prompts}",
            f"capabilities.tools.max_new_tokens={case.answer}",
            f"capabilities.tools.rewards.tool_call.function={reward}:vowels",
            "~capabilities.tools.rewards.tool_call.options",
            "+capabilities.tools.rewards.tool_call.options={}",
        ]
    )


def prompts_of(case: Case, steps: int) -> list[list[int]]:
    """The prompts of all steps."""
    return make_prompts(case.prompts * steps, SHAPES[case.shape]["vocab_size"], case.prompt)


def endless_tokenizer(model: Path, shape: str) -> Any:
    """The model's tokenizer with an end token beyond the vocabulary, which therefore is never drawn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    size = SHAPES[shape]["vocab_size"]
    tokenizer.add_tokens([f"<|{index}|>" for index in range(len(tokenizer), size)])
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    assert tokenizer.eos_token_id == size
    return tokenizer


def nexus_grpo(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """A run of method grpo: rollouts, rewards, updates."""
    from dataclasses import replace

    from nexus.data.token_rows import flat_rows
    from nexus.stages import assemble
    from nexus.stages.prepare import prepare
    from nexus.types import Example, TokenizedPrompt

    clock = Clock(case.device, turns=True)
    settings = settings_of(case, model, folder)
    prepared = replace(prepare(settings), tokenizer=endless_tokenizer(model, case.shape))
    (source,) = (card["name"] for card in settings["capabilities"]["tools"]["sources"].values())
    prepared.corpus.rows = [
        TokenizedPrompt(f"prompt:{index}", source, ids, Example(f"prompt:{index}", source))
        for index, ids in enumerate(prompts_of(case, steps))
    ]
    prepared.corpus.flat = flat_rows(prepared.corpus.rows)  # type: ignore[arg-type]
    losses = fit_nexus(
        settings,
        prepared,
        steps=steps,
        folder=folder,
        clock=clock,
        make_data=lambda method: assemble.make_rollouts(settings, prepared, method, packing=True),
    )
    return clock.result(losses[-1])


def loop_grpo(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """The limit: sample, reward, one step; formulas by hand, no framework."""
    import torch

    from tests.benchmarks.bare_decode import sample

    clock = Clock(case.device, turns=True)
    settings = settings_of(case, model, folder)
    tokenizer = endless_tokenizer(model, case.shape)
    network = load_network(model, settings, case.device, with_adapter=True)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    prompts = prompts_of(case, steps)
    loss = torch.zeros(())
    for step in range(steps):
        asked = prompts[step * case.prompts : (step + 1) * case.prompts]
        with torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.device == "cuda"):
            answers = sample(_plain(network), asked, EACH, [case.answer] * EACH * len(asked))
            rewards = torch.tensor([vowels(text) for text in tokenizer.batch_decode(answers)]).view(-1, EACH)
            spread = rewards.std(1, keepdim=True) + 1e-4
            advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread).flatten().to(case.device)
            groups = [(prompt, answers[i * EACH : (i + 1) * EACH]) for i, prompt in enumerate(asked)]
            layout = lay_out(groups, case.device)
            with bare_attention(network):
                logprobs = torch.log_softmax(answer_logits(network, layout).float(), -1)
            chosen = logprobs.gather(1, layout.targets[:, None])[:, 0]
            with torch.no_grad():
                entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
            ratio = (chosen - chosen.detach()).exp()
            by_token = advantages[layout.rows]
            gain = torch.minimum(ratio * by_token, ratio.clamp(0.8, 1.2) * by_token)
            loss = -gain.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.end_step()
        clock.work.append(len(layout.targets))
    assert entropy > 0
    return clock.result(loss.item())


def _plain(network: Any) -> Any:
    """The network with its adapter merged for sampling, where it has one."""
    if not hasattr(network, "peft_config"):
        return network
    import copy

    return copy.deepcopy(network).merge_and_unload()


def vowels(text: str) -> float:
    """The reward."""
    return sum(c in "aeiou" for c in text) / 100


def trl_grpo(case: Case, model: Path, steps: int, folder: Path) -> Result:
    """TRL's trainer on the same prompts."""
    import datasets
    import trl
    import trl.trainer.utils
    from transformers import TrainerCallback

    # the only use in that module: whether positions without a label are left out of the head
    trl.trainer.utils._use_triton = lambda device: True
    clock = Clock(case.device, turns=True)
    settings = settings_of(case, model, folder)
    prompts = prompts_of(case, steps)
    network = load_network(model, settings, case.device, with_adapter=False)
    network.generation_config.eos_token_id = None

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.end_step()

    class Tokenized(trl.GRPOTrainer):
        def _tokenize_prompts(self, names: Any) -> Any:
            return [prompts[int(name)] for name in names], None, {}

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._generate_single_turn(*args, **kwargs)
            clock.work.append(sum(map(len, found[0])))
            return found

    trainer = Tokenized(
        model=network,
        reward_funcs=lambda completions, **_: [vowels(text) for text in completions],
        args=trl.GRPOConfig(
            output_dir=str(folder),
            report_to=[],
            use_cpu=case.device == "cpu",
            bf16=case.device == "cuda",
            gradient_checkpointing=False,
            per_device_train_batch_size=case.prompts * EACH,
            num_generations=EACH,
            max_completion_length=case.answer,
            shuffle_dataset=False,
            loss_type="grpo",
            beta=0.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            num_train_epochs=1,
            logging_steps=steps,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": [str(index) for index in range(len(prompts))]}),
        processing_class=endless_tokenizer(model, case.shape),
        peft_config=peft_config(settings),
        callbacks=[Watch()],
    )
    return clock.result(trainer.train().training_loss)


def rollout(case: Case, mode: str, model: Path, steps: int, folder: Path) -> Result:
    """Batches of answers through one of the decoders."""
    import torch

    clock = Clock(case.device, turns=True)
    settings = settings_of(case, model, folder) | {"adapter": {"name": "none"}}
    tokenizer = endless_tokenizer(model, case.shape)
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32
    network = load_network(model, settings, case.device, with_adapter=False).to(dtype).eval()
    prompts = prompts_of(case, steps)
    batches = [prompts[start : start + case.prompts] for start in range(0, len(prompts), case.prompts)]
    lengths = [[case.answer] * EACH * case.prompts for _ in batches]
    if case.ends is not None and mode != "nexus":
        lengths = [[len(one) for one in _ask_nexus(case, network, tokenizer, asked)] for asked in batches]
    clock.begun = clock.now()
    for asked, limits in zip(batches, lengths, strict=True):
        match mode:
            case "nexus":
                answers = _ask_nexus(case, network, tokenizer, asked)
            case "loop":
                answers = _ask_loop(network, asked, limits)
            case _:
                answers = _ask_generate(network, tokenizer, asked, limits)
        clock.work.append(sum(map(len, answers)))
        clock.end_step()
    return clock.result(0.0)


def _ask_nexus(case: Case, network: Any, tokenizer: Any, prompts: list[list[int]]) -> list[Any]:
    from nexus.rollout.generate import generate

    repeated = [prompt for prompt in prompts for _ in range(EACH)]
    made = generate(
        model=network,
        tokenizer=tokenizer,
        prompts=repeated,
        max_new_tokens=case.answer,
        temperature=1.0,
        seeds=[SEED + index for index in range(len(repeated))],
        batch_size=len(repeated),
        stop_token_ids=[*case.stops, tokenizer.eos_token_id],
    )
    return [one.token_ids for one in made]


def _ask_loop(network: Any, prompts: list[list[int]], limits: list[int]) -> list[Any]:
    from tests.benchmarks.bare_decode import sample

    return sample(network, prompts, EACH, limits)


def _ask_generate(network: Any, tokenizer: Any, prompts: list[list[int]], limits: list[int]) -> list[Any]:
    """As `GRPOTrainer._generate_single_turn` does it."""
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    repeated = [prompt for prompt in prompts for _ in range(EACH)]
    width = max(map(len, repeated))
    device = network.device
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(one)) + one for one in repeated], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in repeated], device=device)
    ends = torch.tensor(limits, device=device) + width

    class Ends(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return ends <= input_ids.shape[1]

    config = GenerationConfig(
        max_new_tokens=max(limits),
        do_sample=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        disable_compile=True,
    )
    unequal = len(set(limits)) > 1
    with torch.no_grad():
        made = network.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([Ends()]) if unequal else None,
        )
    return [row[width : width + limit] for row, limit in zip(made.tolist(), limits, strict=True)]


def run(case: Case, mode: str, model: Path, steps: int, folder: Path) -> Result:
    """One measurement, in this process."""
    if case.kind == "rollout":
        return rollout(case, mode, model, steps, folder)
    return {"nexus": nexus_grpo, "loop": loop_grpo, "trl": trl_grpo}[mode](case, model, steps, folder)


def print_case(name: str, case: Case, results: Results, steps: int, machine: str) -> None:
    """Table and claims."""
    tokens = results["nexus"]["all_work"] / steps / case.prompts / EACH
    print(
        f"{name}: {steps - 1} steps of {case.prompts} prompts of {case.prompt[0]}-{case.prompt[1]} tokens with {EACH} "
        f"answers of {f'{tokens:.0f} on average, at most ' if case.ends else ''}{case.answer}; vocabulary "
        f"{SHAPES[case.shape]['vocab_size']:,}; {WEIGHTS[case.adapter] if case.kind == 'grpo' else 'sampling alone'}; "
        f"{machine}; median (least-most)\n"
    )
    lines = [Row.of_steps(title, results[mode]) for mode, title in case.modes.items()]
    print(table(lines, work="new tokens", device=case.device) + "\n")
    for comparison in case.comparisons:
        print(comparison.line(results))
    print(flush=True)


BENCH = Bench(MODULE, CASES, CUDA_CASES, run, print_case)

if __name__ == "__main__":
    drive(__doc__, BENCH)
