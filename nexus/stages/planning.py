"""Memory, disk and time of a run, from its resolved config and the model's facts. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nexus.config.folders import conf_dir, groups
from nexus.errors import NexusError
from nexus.hardware.cost import DiskPlan, forward_flops, matmul_flops_per_second, plan_disk, training_flops
from nexus.hardware.memory_parts import OptimizerKind, Storage, optimizer_bytes, plain_storage, weight_bytes
from nexus.hardware.memory_plan import GIB, MemoryPlan, MemorySettings, plan_memory
from nexus.hardware.memory_remedies import Offer, Options, memory_problem
from nexus.hardware.probe import probe_host
from nexus.models.facts import StoredTensor, read_tensors, resolve_model
from nexus.models.published import quantization
from nexus.stages.row_lengths import RowLengths, longest_answer, longest_rows
from nexus.storage.run_folder import free_space_problem
from nexus.types import CHUNK_LOGITS, ModelFacts

_EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")
_OPTIMIZERS: dict[str, OptimizerKind] = {
    "torch.optim.AdamW": "adamw",
    "torch.optim.Adam": "adamw",
    "torch.optim.SGD": "sgd",
    "nexus.methods.muon.MuonAdamW": "muon",
    "nexus.methods.bnb_adamw.BnbAdamW": "adamw",  # with moments of 32 bits; with 8 see `optimizer_kind`
}
#: Values of `hardware.gradient_checkpointing` that can be advised.
_CHECKPOINTING = {"true": "on", "offload": "offload"}


@dataclass(frozen=True)
class Counts:
    """Parameters of a run.

    Attributes:
        total: of the base model.
        trainable: weights that receive a gradient.
        adapter: of them, those that the adapter adds.
    """

    total: int
    trainable: int
    adapter: int


#: Rows that any data has.
_SHORTEST = RowLengths.at_most(2)

#: Methods that train a head with one output on the last hidden states.
HEAD_METHODS = frozenset({"ppo", "reward_model"})


def answers_prompts(config: Mapping[str, Any]) -> bool:
    """Whether what is trained answers prompts; a reward model judges answers and gives none."""
    return bool(config["method"]["name"] != "reward_model")


def lora_parameters(
    tensors: Mapping[str, StoredTensor], *, r: int, target_modules: str | list[str], magnitudes: bool = False
) -> int:
    """Weights that LoRA adds, from the headers: r * (in + out) for every matched matrix.

    Args:
        tensors: headers by name.
        r: rank.
        target_modules: `all-linear`, or endings of layer names.
        magnitudes: DoRA (arXiv 2402.09353, equation 5) adds one number per output.

    Returns:
        The count, equal to PEFT's.
    """
    total = 0
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if len(tensor.shape) != 2 or layer == name or any(part in layer for part in _EMBEDDINGS):
            continue
        if target_modules == "all-linear" or layer.rsplit(".", 1)[-1] in target_modules:
            total += r * sum(tensor.shape) + (tensor.shape[0] if magnitudes else 0)
    return total


def _insist_on_targets(tensors: Mapping[str, StoredTensor], target_modules: str | Sequence[str]) -> None:
    """`E-CFG-22` for a name that no stored matrix has; `models.adapters` asks the layers themselves, once loaded."""
    if target_modules == "all-linear":
        return
    layers = {
        name.split(".")[-2]
        for name, tensor in tensors.items()
        if "." in name and len(tensor.shape) == 2 and not any(part in name for part in _EMBEDDINGS)
    }
    lost = [name for name in target_modules if name.rsplit(".", 1)[-1] not in layers]
    if lost:
        raise NexusError(
            "E-CFG-22",
            f"no linear layer is called {', '.join(lost)}",
            where="adapter.target_modules",
            remedy=f"all-linear, or from: {', '.join(sorted(layers))}",
        )


def count_parameters(facts: ModelFacts, adapter: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Counts:
    """Total and trainable parameters of a model under an adapter.

    Args:
        facts: the model.
        adapter: a file of `conf/adapter`.
        tensors: the model's headers; not read without an adapter.

    Returns:
        The counts.

    Raises:
        NexusError: `E-CFG-22` for a target that the model lacks.
    """
    if adapter["name"] == "none":
        return Counts(total=facts.num_parameters, trainable=facts.num_parameters, adapter=0)
    _insist_on_targets(tensors, adapter["target_modules"])
    added = lora_parameters(
        tensors, r=adapter["r"], target_modules=adapter["target_modules"], magnitudes=adapter["name"] == "dora"
    )
    return Counts(total=facts.num_parameters, trainable=added, adapter=added)


def largest_micro_batch(
    lengths: RowLengths,
    *,
    rows: int,
    tokens: int | None,
    global_batch_size: int,
    packing: bool,
    num_rows: int | None = None,
) -> tuple[int, bool]:
    """Tokens of the largest micro-batch, and whether a step has several.

    Args:
        lengths: of the rows.
        rows: `hardware.micro_batch_size`.
        tokens: `hardware.micro_batch_tokens`.
        global_batch_size: rows of a step.
        packing: without it, rows are padded to the longest of them.
        num_rows: rows of the data, fewer of which than a step's make the step smaller; None if that is not known.

    Returns:
        Packed, the sum over `rows` rows and three standard deviations of such a sum, so that few micro-batches are
        larger; never more than the limit, unless a single row is.
    """
    global_batch_size = global_batch_size if num_rows is None else min(global_batch_size, num_rows)
    rows = min(rows, global_batch_size)
    sums = rows * lengths.mean + 3 * lengths.spread * math.sqrt(rows)
    most = min(math.ceil(sums), rows * lengths.longest) if packing else rows * lengths.longest
    several = rows < global_batch_size or (tokens is not None and global_batch_size * lengths.mean > tokens)
    return max(lengths.longest, most if tokens is None else min(most, tokens)), several


def optimizer_kind(optimizer: Mapping[str, Any]) -> OptimizerKind:
    """What an optimizer's state weighs like.

    Args:
        optimizer: node `method.optimizer`.

    Returns:
        A key of `memory_parts.OPTIMIZER_BYTES`; AdamW for one that the plan does not know, which is on the safe side.
    """
    if optimizer.get("state_bits") == 8:
        return "paged_adamw_8bit" if optimizer.get("paged") else "adamw_8bit"
    return _OPTIMIZERS.get(optimizer["_target_"], "adamw")


def storage_of(config: Mapping[str, Any], precision: str) -> Storage:
    """How the linear layers' weights will lie in memory.

    Args:
        config: checked and resolved.
        precision: of the computation.

    Returns:
        32 bits where they are trained themselves; else what they are quantized to, or the computation's precision.
    """
    adapter = config["adapter"]
    if adapter["name"] == "none":
        return "fp32"
    if quantization(config["base_model"]["path"]) == "gptq":
        return "gptq4"
    if adapter["name"] == "qlora":
        return "nf4" if adapter["double_quant"] else "nf4_single"
    return "bf16" if precision == "bf16" else "fp32"


def memory_plan_of(
    config: Mapping[str, Any],
    facts: ModelFacts,
    counts: Counts,
    lengths: RowLengths,
    *,
    precision: str | None = None,
    on_gpu: bool | None = None,
    num_rows: int | None = None,
) -> MemoryPlan:
    """Memory that one run needs.

    Args:
        config: checked and resolved.
        facts: of the base model.
        counts: its parameters.
        lengths: of its rows.
        precision: `fp32` or `bf16`, once the device is known; None goes by the config.
        on_gpu: whether it trains on a device, once that is known; None goes by the config.
        num_rows: rows of the data; None if that is not known.

    Returns:
        The plan.
    """
    hardware, adapter, data = config["hardware"], config["adapter"], config["data"]
    if precision is None:
        precision = "bf16" if hardware["precision"] == "bf16" else "fp32"
    tokens, several = largest_micro_batch(
        lengths,
        rows=hardware["micro_batch_size"],
        tokens=hardware["micro_batch_tokens"],
        global_batch_size=data["global_batch_size"],
        packing=data["packing"],
        num_rows=num_rows,
    )
    answer, judge = longest_answer(config), _judge_parameters(config)
    prompt = max(1, round(lengths.longest * (1 - lengths.learned))) if lengths.learned < 1 else lengths.longest
    evaluation, prompts = config["evaluation"], config["scale"]["eval_prompts"]
    rows = (
        min(evaluation["batch_size"], prompts or evaluation["batch_size"]) if answer and answers_prompts(config) else 0
    )
    rollout = config["method"].get("rollout")
    on_gpu = hardware["accelerator"] == "gpu" if on_gpu is None else on_gpu
    chunk = config["method"]["module"].get("chunk_size", 1)  # a reward model makes one number and no logits
    settings = MemorySettings(
        precision=precision,
        storage=storage_of(config, precision),
        trains_base=not counts.adapter,
        adapter_parameters=counts.adapter,
        adapter_rank=adapter["r"] if counts.adapter else 0,
        dora=adapter["name"] == "dora",
        optimizer=optimizer_kind(config["method"]["optimizer"]),
        checkpointing=checkpointing_of(hardware),
        micro_batch_tokens=tokens,
        longest_row=lengths.longest,
        target_tokens=max(1, round(tokens * lengths.learned)),
        several_micro_batches=several,
        chunk_tokens=chunk if on_gpu else max(1, min(chunk, CHUNK_LOGITS // facts.vocab_size)),
        score_rows=rows if evaluation["before"] or evaluation["after"] else 0,
        score_tokens=prompt + answer,
        prompt_tokens=prompt,
        scores_after=evaluation["after"],
        packages=config["package"]["enabled"],
        on_gpu=on_gpu,
        overhead_bytes=int(hardware["overhead_gib"] * GIB),
        fragmentation=hardware["fragmentation"],
        rollout_rows=0 if rollout is None else _answers_at_a_time(config),
        judge_parameters=judge,
        judge_bytes=judge * (2 if precision == "bf16" else 4),
        keeps_reference=rollout is not None and config["method"]["kl_coef"] > 0,
    )
    return plan_memory(facts, settings)


def _answers_at_a_time(config: Mapping[str, Any]) -> int:
    """Answers that a rollout samples together."""
    rollout = config["method"]["rollout"]
    all_of_them = config["data"]["global_batch_size"] * rollout["steps_per_rollout"] * rollout["num_generations"]
    return min(int(rollout["batch_size"]), int(all_of_them))


def _judge_parameters(config: Mapping[str, Any]) -> int:
    """Weights of `method.reward_model`, counted from its headers."""
    path = config["method"].get("reward_model")
    if path is None:
        return 0
    return sum(tensor.count for tensor in read_tensors(resolve_model(path, None)).values())


def checkpointing_of(hardware: Mapping[str, Any]) -> str:
    """`hardware.gradient_checkpointing` in the plan's words."""
    value = hardware["gradient_checkpointing"]
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def memory_limit(config: Mapping[str, Any]) -> int | None:
    """Bytes that a run may use: the configured limit, or this host's free memory; None for a device not yet seen."""
    hardware = config["hardware"]
    if hardware["memory_gib"] is not None:
        return int(hardware["memory_gib"] * GIB)
    return None if hardware["accelerator"] == "gpu" else probe_host().available_bytes


def insist_on_fit(
    config: Mapping[str, Any], plan: MemoryPlan, tensors: Mapping[str, StoredTensor], *, limit_bytes: int | None
) -> None:
    """Refuse a plan that does not fit.

    Args:
        config: checked and resolved.
        plan: of the run.
        tensors: headers of the base model, to count an adapter that could be used instead.
        limit_bytes: what may be used; None refuses nothing.

    Raises:
        NexusError: `E-MEM-01` with the overrides that make it fit.
    """
    if limit_bytes is None or plan.total_bytes <= limit_bytes:
        return
    options = Options(
        adapters={name: _offer(name, tensors) for name in ("lora", "qlora")},
        optimizers=frozenset(groups()["optimizer"]),
        checkpointing=_CHECKPOINTING,
    )
    problem = memory_problem(plan, limit_bytes=limit_bytes, limit_key="hardware.memory_gib", options=options)
    if problem is not None:
        raise NexusError(problem.code, problem.message, where=problem.key, remedy=problem.remedy)


def _offer(adapter: str, tensors: Mapping[str, StoredTensor]) -> Offer:
    """What an adapter costs as its file has it."""
    settings: Any = OmegaConf.load(conf_dir() / "adapter" / f"{adapter}.yaml")
    added = lora_parameters(tensors, r=settings["r"], target_modules=settings["target_modules"])
    return Offer(rank=settings["r"], parameters=added)


def refuse_hopeless(config: Mapping[str, Any], facts: ModelFacts, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse what cannot fit however short the rows are: before anything is downloaded, read or tokenized.

    Args:
        config: checked and resolved.
        facts: of the base model.
        tensors: its headers.

    Raises:
        NexusError: `E-MEM-01`; its remedies hold for rows as long as `data.max_seq_len` allows.
    """
    counts, limit = count_parameters(facts, config["adapter"], tensors), memory_limit(config)
    if limit is not None and memory_plan_of(config, facts, counts, _SHORTEST).total_bytes > limit:
        insist_on_fit(config, memory_plan_of(config, facts, counts, longest_rows(config)), tensors, limit_bytes=limit)


def insist_on_room(config: Mapping[str, Any], disk: DiskPlan) -> None:
    """Refuse a run that would fill the disk.

    Args:
        config: checked and resolved.
        disk: what the run writes at most.

    Raises:
        NexusError: `E-OUT-02`.
    """
    key, folder = output_folder(config)
    problem = free_space_problem(folder, needed_bytes=disk.total_bytes, key=key)
    if problem is not None:
        raise NexusError(problem.code, problem.message, where=problem.key, remedy=problem.remedy)


def output_folder(config: Mapping[str, Any]) -> tuple[str, Path]:
    """The setting that decides where a run writes, and the folder that it names."""
    for key in ("resume", "run_dir"):
        if config[key] is not None:
            return key, Path(config[key])
    return "paths.output_dir", Path(config["paths"]["output_dir"])


def is_validated(config: Mapping[str, Any]) -> bool:
    """Whether held-out rows are looked at while training; the best checkpoint is then kept beside the newest."""
    return bool((config.get("callbacks", {}).get("validation") or {}).get("enabled"))


def disk_plan_of(
    config: Mapping[str, Any], facts: ModelFacts, counts: Counts, plan: MemoryPlan, steps: int
) -> DiskPlan:
    """Disk that one run needs.

    Args:
        config: checked and resolved.
        facts: of the base model.
        counts: its parameters.
        plan: of the memory.
        steps: optimizer steps.

    Returns:
        The plan.
    """
    callbacks, settings = config["callbacks"], plan.settings
    every = (callbacks.get("metrics_csv") or {}).get("every_n_steps", steps)
    plain = plain_storage(settings.storage, settings.precision)
    state = optimizer_bytes(facts, trained=counts.trainable, kind=settings.optimizer, trains_base=settings.trains_base)
    return plan_disk(
        trained=counts.trainable,
        state_bytes=state,
        keep=(callbacks.get("checkpoint") or {}).get("keep", 0) + is_validated(config),
        package_bytes=weight_bytes(facts, plain, settings.precision) if settings.packages else 0,
        adapter_parameters=counts.adapter,
        log_rows=steps // max(1, every) + 2,
    )


def training_seconds(
    config: Mapping[str, Any], facts: ModelFacts, counts: Counts, tokens: float, *, reference_tokens: float = 0.0
) -> tuple[float, str]:
    """Time of the training phase, without scoring, and what the estimate rests on.

    Args:
        config: checked and resolved.
        facts: of the base model.
        counts: its parameters.
        tokens: that will pass through it.
        reference_tokens: that pass through it forward only (`forward_tokens`).

    Returns:
        Seconds and one line of words.
    """
    hardware = config["hardware"]
    measured = hardware["tflops"] is None
    speed = matmul_flops_per_second() if measured else hardware["tflops"] * 1e12
    share = hardware["utilization"]
    flops = training_flops(
        facts, tokens=tokens, trains_base=not counts.adapter, checkpointing=checkpointing_of(hardware)
    ) + forward_flops(facts, tokens=reference_tokens)
    source = "this processor's measured" if measured else f"hardware={hardware['name']}: the data sheet's"
    return flops / speed / share, f"{source} {speed / 1e12:.3g} TFLOP/s times {share:.2f}; scoring not counted"
